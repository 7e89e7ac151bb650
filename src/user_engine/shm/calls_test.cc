// Maps of calls under way (rt/call_ops.h).
#include <gtest/gtest.h>

#include <atomic>
#include <thread>
#include <vector>

#include "user_engine/shm/maps.h"
#include "user_engine/shm/region_for_test.h"

namespace spile::shm {
namespace {

using bundle::MapKind;

class Calls : public testing::Test {
 protected:
  bool enter(uint64_t slot, uint64_t call, uint64_t first, uint64_t second = 0) {
    const uint64_t key[] = {slot, call}, value[] = {first, second};
    return rt::map_update(r_.consts(), r_.map(), raw(key), raw(value), rt::kFlagAny, 0) == 0;
  }
  /// The first word, or ~0.
  uint64_t find(uint64_t slot, uint64_t call) {
    const uint64_t key[] = {slot, call};
    const uint64_t* found = rt::map_lookup(r_.consts(), r_.map(), raw(key), 0);
    return found == nullptr ? ~uint64_t{0} : found[0] ^ found[1];
  }
  bool take(uint64_t slot, uint64_t call) {
    const uint64_t key[] = {slot, call};
    return rt::map_delete(r_.consts(), r_.map(), raw(key)) == 0;
  }
  TestRegion r_{{map_spec(MapKind::kCalls, 16, 16, 65536)}};
};

TEST_F(Calls, AreFoundBySlotAndNumber) {
  EXPECT_TRUE(enter(0x7000, 1, 11, 0x100));
  EXPECT_TRUE(enter(0x7000, 2, 12));
  EXPECT_TRUE(enter(0x7008, 1, 13));
  EXPECT_EQ(find(0x7000, 1), 11u ^ 0x100);
  EXPECT_EQ(find(0x7000, 2), 12u);
  EXPECT_EQ(find(0x7008, 1), 13u);
  EXPECT_EQ(find(0x7008, 2), ~uint64_t{0});
}

TEST_F(Calls, AreTakenOnce) {
  EXPECT_TRUE(enter(0x7000, 1, 11));
  EXPECT_TRUE(take(0x7000, 1));
  EXPECT_FALSE(take(0x7000, 1));
  EXPECT_EQ(find(0x7000, 1), ~uint64_t{0});
}

TEST_F(Calls, ALaterCallAtTheSlotTakesTheCellOfOneThatNeverReturned) {
  for (uint64_t i = 0; i < 1'000'000; ++i) ASSERT_TRUE(enter(0x7000, 1, i)) << i;
  EXPECT_EQ(find(0x7000, 1), 999'999u);
  EXPECT_TRUE(take(0x7000, 1));
  EXPECT_EQ(find(0x7000, 1), ~uint64_t{0});
}

TEST_F(Calls, NothingIsKeptUnderZero) {
  EXPECT_FALSE(enter(0, 1, 1));
  EXPECT_FALSE(enter(0x7000, 0, 1));
  EXPECT_EQ(find(0, 0), ~uint64_t{0});
  EXPECT_FALSE(take(0, 0));
}

/// 20,000 frames are left by longjmp, 20,000 others come and go.
TEST_F(Calls, LeftOversDoNotTakeTheRoomOfOthers) {
  for (uint64_t i = 1; i <= 20'000; ++i) ASSERT_TRUE(enter(0x10'0000 + 32 * i, 1, i));
  for (uint64_t i = 1; i <= 20'000; ++i) ASSERT_TRUE(enter(0x90'0000 + 48 * i, 1, i)) << i;
  for (uint64_t i = 1; i <= 20'000; ++i) {
    ASSERT_EQ(find(0x90'0000 + 48 * i, 1), i);
    ASSERT_TRUE(take(0x90'0000 + 48 * i, 1));
  }
}

TEST_F(Calls, WhatFindsNoRoomIsSaidAndNeverFound) {
  constexpr uint64_t kMany = 120'000;
  std::vector<bool> kept(kMany + 1);
  size_t refused = 0;
  for (uint64_t i = 1; i <= kMany; ++i) {
    kept[i] = enter(0x10'0000 + 16 * i, 1, i);
    refused += !kept[i];
  }
  EXPECT_GE(refused, kMany - 65536);
  for (uint64_t i = 1; i <= kMany; ++i)
    ASSERT_EQ(find(0x10'0000 + 16 * i, 1), kept[i] ? i : ~uint64_t{0});
}

TEST_F(Calls, ThreadsOnTheirOwnStacksDoNotDisturbEachOther) {
  constexpr uint64_t kThreads = 4, kRounds = 300, kDepth = 200;
  std::atomic<uint64_t> wrong = 0;
  std::vector<std::thread> threads;
  for (uint64_t t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      const uint64_t stack = 0x7f00'0000'0000 + t * 0x80'0000;
      for (uint64_t round = 0; round < kRounds; ++round) {
        for (uint64_t d = 0; d < kDepth; ++d) wrong += !enter(stack - 32 * d, 1 + d % 2, d ^ round);
        for (uint64_t d = kDepth; d-- > 0;) {
          wrong += find(stack - 32 * d, 1 + d % 2) != (d ^ round);
          wrong += !take(stack - 32 * d, 1 + d % 2);
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong, 0u);
}

/// The target may write anything to the shared memory: nothing outside of the storage is touched.
TEST_F(Calls, GarbageInTheCellsIsOnlyGarbage) {
  auto* words = reinterpret_cast<uint64_t*>(r_.map().values);
  for (uint64_t i = 0; i < uint64_t{r_.map().max_entries} * r_.map().value_stride / 8; ++i)
    words[i] = 0x5a5a'0000'0000'0000 + i;
  EXPECT_FALSE(enter(0x7000, 1, 1));
  EXPECT_EQ(find(0x7000, 1), ~uint64_t{0});
}

TEST(CallsMap, MustHaveCellsOfThatShape) {
  for (const auto& spec :
       {map_spec(MapKind::kCalls, 8, 16, 64), map_spec(MapKind::kCalls, 16, 12, 64),
        map_spec(MapKind::kCalls, 16, 16, 60)}) {
    bundle::Bundle bundle;
    bundle.maps = {spec};
    EXPECT_FALSE(plan_region(bundle, {}));
  }
}

}  // namespace
}  // namespace spile::shm
