// Notes of calls under way, through the real blob.
#include "abi/pending.h"

#include <gtest/gtest.h>
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <thread>
#include <vector>

#include "user_engine/shm/code_for_test.h"

namespace spile::shm {
namespace {

class Pending : public testing::Test {
 protected:
  Pending()
      : table_(mmap(nullptr,
                    abi::kPendingTableBytes,
                    PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
                    -1,
                    0),
               abi::kPendingTableBytes),
        code_(r_, [this](abi::RtConsts& consts) {
          consts.pending_table = reinterpret_cast<uint64_t>(table_.data());
        }) {}

  uint64_t entry(int32_t which, const uint64_t* slot, uint64_t number) const {
    return reinterpret_cast<TestCode::Function>(code_.begin() + *rt::helper_offset(which))(
        reinterpret_cast<uint64_t>(slot), number, 0, 0, 0);
  }
  void note(const uint64_t* slot, uint64_t number = 1) const {
    entry(rt::kNotePending, slot, number);
  }
  bool take(const uint64_t* slot, uint64_t number = 1) const {
    return entry(rt::kTakePending, slot, number) != 0;
  }
  /// Number 1 knows the code at 0x1000 to 0x1fff and at 0x5000 to 0x5fff.
  void leave(const uint64_t* slot, uint64_t target, bool is_address = false) const {
    static const struct {
      abi::KnownCode head;
      abi::KnownCode::Range ranges[2];
    } kKnown = {{2}, {{0x1000, 0x2000}, {0x5000, 0x6000}}};
    reinterpret_cast<TestCode::Function>(code_.begin() + *rt::helper_offset(rt::kLeavePending))(
        reinterpret_cast<uint64_t>(slot), 1, target, reinterpret_cast<uint64_t>(&kKnown),
        static_cast<uint64_t>(is_address));
  }
  uint64_t unseen() const { return r_.region().stats_untrusted().unseen_returns; }
  uint64_t missed() const { return r_.region().stats_untrusted().missed; }

  TestRegion r_{{map_spec(bundle::MapKind::kArray, 4, 8, 4)}};
  Mapping table_;
  TestCode code_;
};

/// A stack that many calls have their return addresses on.
std::vector<uint64_t> stack_of(size_t frames) {
  std::vector<uint64_t> slots(frames);
  for (size_t i = 0; i < frames; ++i) slots[i] = 0x401000 + i % 7;
  return slots;
}

TEST_F(Pending, ANoteIsTakenOnce) {
  const auto stack = stack_of(2);
  note(&stack[0]);
  EXPECT_FALSE(take(&stack[1]));
  EXPECT_TRUE(take(&stack[0]));
  EXPECT_FALSE(take(&stack[0]));
}

TEST_F(Pending, FunctionsAreToldApart) {
  const auto stack = stack_of(1);
  note(&stack[0], 1);
  note(&stack[0], abi::kMaxPendingNumber);
  EXPECT_FALSE(take(&stack[0], 2));
  EXPECT_TRUE(take(&stack[0], 1));
  EXPECT_TRUE(take(&stack[0], abi::kMaxPendingNumber));
}

/// What marks a note as doubted or half written is no part of a number.
TEST_F(Pending, NumbersThatDifferInOneBitAreToldApart) {
  const auto stack = stack_of(1);
  for (uint64_t bit = 1; bit <= abi::kMaxPendingNumber / 2; bit *= 2) {
    const uint64_t number = abi::kMaxPendingNumber - bit;
    note(&stack[0], number);
    EXPECT_FALSE(take(&stack[0], abi::kMaxPendingNumber)) << number;
    EXPECT_TRUE(take(&stack[0], number));
  }
  note(&stack[0], abi::kMaxPendingNumber / 2 + 2);
  EXPECT_FALSE(take(&stack[0], 1)) << "the highest bit counts";
}

TEST_F(Pending, AnotherReturnAddressIsAnotherCall) {
  auto stack = stack_of(1);
  note(&stack[0]);
  stack[0]++;
  EXPECT_FALSE(take(&stack[0])) << "the noted call ended by an exception";
  stack[0]--;
  EXPECT_FALSE(take(&stack[0])) << "and its note is gone";
}

TEST_F(Pending, ACallAtTheSameSlotTakesTheNoteOver) {
  auto stack = stack_of(1);
  note(&stack[0]);
  stack[0]++;
  note(&stack[0]);
  EXPECT_TRUE(take(&stack[0]));
  EXPECT_FALSE(take(&stack[0]));
}

TEST_F(Pending, ALeftOverNoteIsDroppedWhereACalledFunctionBegins) {
  const auto stack = stack_of(1);
  note(&stack[0]);
  entry(rt::kArrivePending, &stack[0], 1);
  EXPECT_FALSE(take(&stack[0])) << "no jump had announced it";
}

TEST_F(Pending, AnArmedNoteIsKeptOnce) {
  const auto stack = stack_of(1);
  note(&stack[0]);
  entry(rt::kArmPending, &stack[0], 1);
  entry(rt::kArrivePending, &stack[0], 1);
  EXPECT_TRUE(take(&stack[0]));
  note(&stack[0]);
  entry(rt::kArmPending, &stack[0], 1);
  entry(rt::kArrivePending, &stack[0], 1);
  entry(rt::kArrivePending, &stack[0], 1);
  EXPECT_FALSE(take(&stack[0])) << "the second arrival is another call";
}

TEST_F(Pending, ArmingIsNoNote) {
  const auto stack = stack_of(1);
  entry(rt::kArmPending, &stack[0], 1);
  EXPECT_FALSE(take(&stack[0]));
  note(&stack[0]);
  entry(rt::kArmPending, &stack[0], 1);
  EXPECT_TRUE(take(&stack[0])) << "its own ret, without an arrival";
}

TEST_F(Pending, ACallThatCameBackToItsEntryIsTakenAsOften) {
  const auto stack = stack_of(1);
  const auto enter = [&] { entry(rt::kNoteAgainPending, &stack[0], 1); };
  enter();
  for (int i = 0; i < 3; ++i) {
    entry(rt::kArmPending, &stack[0], 1);
    enter();
  }
  for (int i = 0; i < 4; ++i) EXPECT_TRUE(take(&stack[0])) << i;
  EXPECT_FALSE(take(&stack[0]));
}

TEST_F(Pending, AnEntryThatNoJumpAnnouncedIsAnotherCall) {
  const auto stack = stack_of(1);
  entry(rt::kNoteAgainPending, &stack[0], 1);
  entry(rt::kNoteAgainPending, &stack[0], 1);
  EXPECT_TRUE(take(&stack[0]));
  EXPECT_FALSE(take(&stack[0])) << "the first ended otherwise";
}

TEST_F(Pending, ACallFromElsewhereIsNoComingBack) {
  auto stack = stack_of(1);
  entry(rt::kNoteAgainPending, &stack[0], 1);
  entry(rt::kArmPending, &stack[0], 1);
  stack[0]++;
  entry(rt::kNoteAgainPending, &stack[0], 1);
  EXPECT_TRUE(take(&stack[0]));
  EXPECT_FALSE(take(&stack[0]));
}

TEST_F(Pending, CallsThatComeBackForEverAreCountedOnwards) {
  const auto stack = stack_of(1);
  entry(rt::kNoteAgainPending, &stack[0], 1);
  for (int i = 0; i < 0x8005; ++i) {
    entry(rt::kArmPending, &stack[0], 1);
    entry(rt::kNoteAgainPending, &stack[0], 1);
  }
  size_t taken = 0;
  while (take(&stack[0])) ++taken;
  EXPECT_LE(taken, 0x8000u);
  EXPECT_GE(taken + missed(), 0x8006u);
}

TEST_F(Pending, ACallThatLeavesForKnownCodeIsKept) {
  const auto stack = stack_of(1);
  for (const uint64_t target : {0x1000, 0x1fff, 0x5000}) {
    note(&stack[0]);
    leave(&stack[0], target);
    entry(rt::kArrivePending, &stack[0], 1);
    EXPECT_TRUE(take(&stack[0])) << "it was announced";
  }
  EXPECT_EQ(unseen(), 0u);
}

TEST_F(Pending, ACallThatLeavesForElsewhereIsCountedAndDropped) {
  const auto stack = stack_of(1);
  uint64_t counted = 0;
  for (const uint64_t target : {0x0, 0xfff, 0x2000, 0x4fff, 0x6000}) {
    note(&stack[0]);
    leave(&stack[0], target);
    EXPECT_FALSE(take(&stack[0])) << target;
    EXPECT_EQ(unseen(), ++counted);
  }
  EXPECT_EQ(missed(), 0u);
}

TEST_F(Pending, AStrayIsNotedOnceAndKeptWhenItIsWatched) {
  const auto stack = stack_of(1);
  const auto cells = r_.region().strays_untrusted();
  for (int i = 0; i < 2; i++) {
    note(&stack[0]);
    leave(&stack[0], 0x7000);
    EXPECT_FALSE(take(&stack[0]));
  }
  const auto is_used = [](const abi::StrayCell& cell) { return cell.key != 0; };
  ASSERT_EQ(std::ranges::count_if(cells, is_used), 1);
  abi::StrayCell& cell = *std::ranges::find_if(cells, is_used);
  EXPECT_EQ(cell.key, abi::stray_key(0x7000, 1));
  EXPECT_EQ(cell.state, abi::StrayState::kSeen);
  cell.state = abi::StrayState::kWatched;
  note(&stack[0]);
  leave(&stack[0], 0x7000);
  EXPECT_TRUE(take(&stack[0]));
  cell.state = abi::StrayState::kGivenUp;
  note(&stack[0]);
  leave(&stack[0], 0x7000);
  EXPECT_FALSE(take(&stack[0]));
  EXPECT_EQ(unseen(), 3u);
  cell.state = abi::StrayState::kForgotten;
  note(&stack[0]);
  leave(&stack[0], 0x7000);
  EXPECT_FALSE(take(&stack[0]));
  EXPECT_EQ(cell.state, abi::StrayState::kSeen);
}

TEST_F(Pending, AStrayThatFindsNoCellIsOnlyCounted) {
  const auto stack = stack_of(1);
  for (uint64_t target = 0x10000; target < 0x10000 + 4 * abi::kStrayCells; target++) {
    note(&stack[0]);
    leave(&stack[0], target);
    EXPECT_FALSE(take(&stack[0]));
  }
  EXPECT_EQ(unseen(), 4 * abi::kStrayCells);
  const auto behind =
      r_.region().memory().subspan(abi::kStrayOffset + abi::kStrayCells * sizeof(abi::StrayCell),
                                   abi::kStrayProbes * sizeof(abi::StrayCell));
  EXPECT_EQ(std::ranges::count(behind, uint8_t{0}), static_cast<ptrdiff_t>(behind.size()))
      << "only the table is written to";
}

TEST_F(Pending, WhereACallLeavesForMayBeInMemory) {
  const auto stack = stack_of(1);
  const uint64_t known = 0x1000, unknown = 0x2000;
  note(&stack[0]);
  leave(&stack[0], reinterpret_cast<uint64_t>(&known), true);
  EXPECT_TRUE(take(&stack[0]));
  note(&stack[0]);
  leave(&stack[0], reinterpret_cast<uint64_t>(&unknown), true);
  EXPECT_FALSE(take(&stack[0]));
  note(&stack[0]);
  leave(&stack[0], 8, true);
  EXPECT_FALSE(take(&stack[0])) << "the program will fault there, not we";
  EXPECT_EQ(unseen(), 2u);
}

TEST_F(Pending, WhatWasNotNotedDoesNotLeave) {
  const auto stack = stack_of(2);
  note(&stack[0]);
  leave(&stack[1], 0);
  EXPECT_EQ(unseen(), 0u);
  EXPECT_TRUE(take(&stack[0]));
}

TEST_F(Pending, AHundredThousandCallsAreUnderWayAtOnce) {
  const auto stack = stack_of(100'000);
  for (const uint64_t& slot : stack) note(&slot);
  size_t taken = 0;
  for (const uint64_t& slot : stack) taken += take(&slot);
  EXPECT_EQ(taken, stack.size());
  EXPECT_EQ(missed(), 0u);
}

TEST_F(Pending, WhatFindsNoRoomIsCounted) {
  const auto stack = stack_of(300'000);
  for (const uint64_t& slot : stack) note(&slot);
  size_t taken = 0;
  for (const uint64_t& slot : stack) taken += take(&slot);
  EXPECT_GT(missed(), 0u) << "the table has room for fewer";
  EXPECT_EQ(taken + missed(), stack.size());
}

TEST_F(Pending, NotesOfFramesThatAreGoneMakeRoom) {
  auto stack = stack_of(300'000);
  for (const uint64_t& slot : stack) note(&slot);
  for (uint64_t& slot : stack) slot = 0x402000;  // left by longjmp, and used for other calls since
  const auto other = stack_of(10'000);
  size_t lost = other.size();
  for (int round = 0; round < 10 && lost > 0; ++round) {
    const uint64_t before = missed();
    for (const uint64_t& slot : other) note(&slot);
    lost = missed() - before;
    size_t taken = 0;
    for (const uint64_t& slot : other) taken += take(&slot);
    ASSERT_EQ(taken + lost, other.size());
  }
  EXPECT_EQ(lost, 0u);
}

TEST_F(Pending, ThreadsDoNotDisturbEachOther) {
  constexpr size_t kThreads = 4, kFrames = 40'000, kRounds = 5;
  std::atomic<size_t> taken = 0;
  std::vector<std::thread> threads;
  for (size_t t = 0; t < kThreads; ++t) {
    threads.emplace_back([&] {
      auto stack = stack_of(kFrames);
      for (size_t round = 0; round < kRounds; ++round) {
        for (uint64_t& slot : stack) note(&(++slot));
        for (const uint64_t& slot : stack) taken += take(&slot);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(taken + missed(), kThreads * kFrames * kRounds);
}

TEST_F(Pending, AFullTableLosesNothingUncountedAmongThreads) {
  constexpr size_t kThreads = 4, kFrames = 80'000, kRounds = 3;
  std::atomic<size_t> taken = 0;
  std::vector<std::thread> threads;
  for (size_t t = 0; t < kThreads; ++t) {
    threads.emplace_back([&] {
      auto stack = stack_of(kFrames);
      for (size_t round = 0; round < kRounds; ++round) {
        for (uint64_t& slot : stack) note(&(++slot));
        for (const uint64_t& slot : stack) taken += take(&slot);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(taken + missed(), kThreads * kFrames * kRounds);
}

}  // namespace
}  // namespace spile::shm
