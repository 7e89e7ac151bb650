#include "user_engine/shm/maps.h"

#include <gtest/gtest.h>
#include <sys/time.h>

#include <algorithm>
#include <atomic>
#include <csignal>
#include <functional>
#include <map>
#include <random>
#include <set>
#include <thread>

#include "user_engine/shm/region_for_test.h"

namespace spile::shm {
namespace {

using bundle::MapKind;

template <typename T>
std::span<const uint8_t> as_bytes(const T& value) {
  return {reinterpret_cast<const uint8_t*>(&value), sizeof value};
}

uint64_t value_sum(const MapEntry& entry) {
  uint64_t sum = 0;
  for (const auto& value : entry.values) {
    uint64_t word = 0;
    std::memcpy(&word, value.data(), std::min<size_t>(8, value.size()));
    sum += word;
  }
  return sum;
}

std::map<uint64_t, uint64_t> sums_by_key(const Region& region, size_t map) {
  auto entries = snapshot(region, map);
  EXPECT_TRUE(entries) << entries.error().message;
  std::map<uint64_t, uint64_t> sums;
  for (const MapEntry& entry : *entries) {
    uint64_t key = 0;
    std::memcpy(&key, entry.key.data(), std::min<size_t>(8, entry.key.size()));
    EXPECT_FALSE(sums.contains(key)) << "key " << key << " occurs twice";
    sums[key] += value_sum(entry);
  }
  return sums;
}

TEST(Maps, ArrayHoldsItsIndicesAndNoOthers) {
  TestRegion r({map_spec(MapKind::kArray, 4, 8, 3)});
  const uint64_t seven = 7;
  for (uint32_t i = 0; i < 3; ++i) EXPECT_TRUE(update(r.region(), 0, as_bytes(i), as_bytes(seven)));
  const uint32_t beyond = 3, far = 0xffffffff;
  EXPECT_FALSE(update(r.region(), 0, as_bytes(beyond), as_bytes(seven)));
  EXPECT_EQ(rt::map_lookup(r.consts(), r.map(), raw(beyond), 0), nullptr);
  EXPECT_EQ(rt::map_lookup(r.consts(), r.map(), raw(far), 0), nullptr);
  EXPECT_EQ(rt::map_update(r.consts(), r.map(), raw(beyond), raw(seven), rt::kFlagAny, 0),
            rt::kErrTooBig);
  const uint32_t zero_index = 0;
  EXPECT_EQ(rt::map_update(r.consts(), r.map(), raw(zero_index), raw(seven), rt::kFlagNoExist, 0),
            rt::kErrExists);
  EXPECT_EQ(rt::map_update(r.consts(), r.map(), raw(zero_index), raw(seven), 3, 0),
            rt::kErrInvalid);
  EXPECT_EQ(rt::map_delete(r.consts(), r.map(), raw(zero_index)), rt::kErrInvalid);
  EXPECT_EQ(sums_by_key(r.region(), 0), (std::map<uint64_t, uint64_t>{{0, 7}, {1, 7}, {2, 7}}));
}

TEST(Maps, PerCpuValuesOfAllSlotsAreSeparate) {
  TestRegion r(
      {map_spec(MapKind::kPerCpuArray, 4, 12, 5), map_spec(MapKind::kPerCpuHash, 3, 12, 5)});
  for (size_t m = 0; m < 2; ++m) {
    std::set<uint64_t*> seen;
    for (uint32_t i = 0; i < 5; ++i) {
      if (m == 1) {
        EXPECT_EQ(
            rt::map_update(r.consts(), r.map(1), raw(i), raw(std::array<uint8_t, 16>{}), 0, 2), 0);
      }
      for (uint32_t cpu = 0; cpu < 4; ++cpu) {
        uint64_t* value = rt::map_lookup(r.consts(), r.map(m), raw(i), cpu);
        EXPECT_TRUE(seen.insert(value).second);
        EXPECT_EQ(value, rt::map_lookup(r.consts(), r.map(m), raw(i), cpu + 4))
            << "CPU numbers wrap";
      }
    }
  }
}

TEST(Maps, HashKeepsTheFlagsOfUpdate) {
  TestRegion r({map_spec(MapKind::kHash, 8, 8, 16)});
  const uint64_t key = 5, one = 1, two = 2;
  const auto put = [&](uint64_t value, uint64_t flags) {
    return rt::map_update(r.consts(), r.map(), raw(key), raw(value), flags, 0);
  };
  EXPECT_EQ(put(one, rt::kFlagExist), rt::kErrNoEntry);
  EXPECT_EQ(put(one, rt::kFlagNoExist), 0);
  EXPECT_EQ(put(two, rt::kFlagNoExist), rt::kErrExists);
  EXPECT_EQ(sums_by_key(r.region(), 0), (std::map<uint64_t, uint64_t>{{5, 1}}));
  EXPECT_EQ(put(two, rt::kFlagExist), 0);
  EXPECT_EQ(sums_by_key(r.region(), 0), (std::map<uint64_t, uint64_t>{{5, 2}}));
  EXPECT_EQ(put(two, 4), rt::kErrInvalid);
  EXPECT_EQ(rt::map_delete(r.consts(), r.map(), raw(key)), 0);
  EXPECT_EQ(rt::map_delete(r.consts(), r.map(), raw(key)), rt::kErrNoEntry);
}

TEST(Maps, ANewKeyOfAPerCpuHashIsZeroOnOtherCpus) {
  TestRegion r({map_spec(MapKind::kPerCpuHash, 8, 8, 2)});
  const uint64_t key = 1, other = 2, value = 9;
  for (uint32_t cpu = 0; cpu < 4; ++cpu)
    rt::map_update(r.consts(), r.map(), raw(key), raw(value), 0, cpu);
  EXPECT_EQ(value_sum(**lookup(r.region(), 0, as_bytes(key))), 36u);
  EXPECT_TRUE(*erase(r.region(), 0, as_bytes(key)));
  rt::map_update(r.consts(), r.map(), raw(other), raw(value), 0, 3);
  const auto entry = lookup(r.region(), 0, as_bytes(other));
  EXPECT_EQ(value_sum(**entry), 9u);
  EXPECT_EQ((*entry)->values[3][0], 9);
}

TEST(Maps, AFullMapSaysSoAndTakesAKeyAgainAfterADelete) {
  TestRegion r({map_spec(MapKind::kHash, 8, 8, 100)});
  const uint64_t value = 1;
  for (uint64_t k = 0; k < 100; ++k)
    ASSERT_TRUE(update(r.region(), 0, as_bytes(k), as_bytes(value))) << k;
  for (uint64_t round = 0; round < 1000; ++round) {
    const uint64_t extra = 100 + round;
    ASSERT_EQ(rt::map_update(r.consts(), r.map(), raw(extra), raw(value), 0, 0), rt::kErrTooBig);
    ASSERT_EQ(rt::map_update(r.consts(), r.map(), raw(extra - 100), raw(value), 0, 0), 0)
        << "existing keys stay";
    ASSERT_TRUE(*erase(r.region(), 0, as_bytes(round)));
    ASSERT_TRUE(update(r.region(), 0, as_bytes(extra), as_bytes(value)));
  }
  EXPECT_EQ(snapshot(r.region(), 0)->size(), 100u);
}

TEST(Maps, KeysOfEverySizeAreTold) {
  for (uint32_t size = 1; size <= 40; ++size) {
    TestRegion r({map_spec(MapKind::kHash, size, size, 300)});
    std::vector<uint8_t> key(size), value(size);
    for (int i = 0; i < 250; ++i) {
      key[static_cast<size_t>(i) % size] += static_cast<uint8_t>(1 + i % 7);
      value[size - 1] = static_cast<uint8_t>(i);
      ASSERT_TRUE(update(r.region(), 0, key, value));
      ASSERT_EQ((**lookup(r.region(), 0, key)).values[0], value);
    }
  }
}

TEST(Maps, BehavesAsAStandardMap) {
  TestRegion r({map_spec(MapKind::kHash, 8, 8, 64)});
  std::map<uint64_t, uint64_t> model;
  std::mt19937_64 random(1);
  for (int i = 0; i < 200'000; ++i) {
    const uint64_t key = random() % 100, value = random();
    if (random() % 3 == 0) {
      ASSERT_EQ(*erase(r.region(), 0, as_bytes(key)), model.erase(key) == 1);
    } else if (update(r.region(), 0, as_bytes(key), as_bytes(value))) {
      model[key] = value;
    } else {
      ASSERT_EQ(model.size(), 64u);
      ASSERT_FALSE(model.contains(key));
    }
  }
  EXPECT_EQ(sums_by_key(r.region(), 0), model);
  EXPECT_EQ(entries_accounted_for(r.map()), rt::head_of(r.map())->bump);
}

TEST(Maps, ClearRemovesKeysAndZeroKeepsThem) {
  TestRegion r(
      {map_spec(MapKind::kPerCpuHash, 8, 8, 64), map_spec(MapKind::kPerCpuArray, 4, 8, 4)});
  for (uint64_t k = 0; k < 64; ++k) add_one(r, r.map(0), raw(k));
  for (uint32_t k = 0; k < 4; ++k) add_one(r, r.map(1), raw(k));
  ASSERT_TRUE(zero(r.region(), 0));
  EXPECT_EQ(sums_by_key(r.region(), 0).size(), 64u);
  EXPECT_EQ(sums_by_key(r.region(), 0)[5], 0u);
  ASSERT_TRUE(clear(r.region(), 0));
  EXPECT_TRUE(snapshot(r.region(), 0)->empty());
  ASSERT_TRUE(clear(r.region(), 1));
  EXPECT_EQ(sums_by_key(r.region(), 1),
            (std::map<uint64_t, uint64_t>{{0, 0}, {1, 0}, {2, 0}, {3, 0}}));
}

TEST(Maps, RefusesWrongSizesAndRings) {
  TestRegion r({map_spec(MapKind::kHash, 8, 8, 64), ring_spec(4096)});
  const uint32_t small = 0;
  const uint64_t word = 0;
  EXPECT_EQ(update(r.region(), 0, as_bytes(small), as_bytes(word)).error().code,
            ErrorCode::kInvalid);
  EXPECT_EQ(update(r.region(), 0, as_bytes(word), as_bytes(small)).error().code,
            ErrorCode::kInvalid);
  EXPECT_EQ(snapshot(r.region(), 1).error().code, ErrorCode::kInvalid);
  EXPECT_EQ(snapshot(r.region(), 2).error().code, ErrorCode::kInvalid);
  EXPECT_EQ(rt::map_lookup(r.consts(), r.map(1), raw(word), 0), nullptr);
}

// ---- threads
// ------------------------------------------------------------------------------------------------------

constexpr int kThreads = 8;

template <typename Body>
void run_threads(Body body) {
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) threads.emplace_back(body, t);
  for (std::thread& thread : threads) thread.join();
}

/// Each key that a walk gives and that is there, with how often.
std::map<uint64_t, int> walked(TestRegion& r, const std::function<void(uint64_t)>& at_each = {}) {
  std::map<uint64_t, int> met;
  uint64_t key = 0;
  auto* bytes = reinterpret_cast<uint8_t*>(&key);
  for (uint64_t at = 0; (at = rt::map_next_key(r.map(), at, bytes)) != 0;) {
    if (rt::map_lookup(r.consts(), r.map(), bytes, 0) == nullptr) continue;
    met[key]++;
    if (at_each) at_each(key);
  }
  return met;
}

TEST(MapWalk, MeetsEveryElementOnce) {
  TestRegion r({map_spec(MapKind::kHash, 8, 8, 100)});
  const uint64_t value = 1;
  std::map<uint64_t, int> wanted;
  EXPECT_EQ(walked(r), wanted);
  for (uint64_t k = 0; k < 100; ++k) {
    ASSERT_TRUE(update(r.region(), 0, as_bytes(k), as_bytes(value)));
    wanted[k] = 1;
  }
  EXPECT_EQ(walked(r), wanted);
}

/// An entry that was given back keeps its old key until it is taken again.
TEST(MapWalk, IsNotLedAstrayByKeysThatMovedToOtherEntries) {
  TestRegion r({map_spec(MapKind::kHash, 8, 8, 100)});
  const uint64_t value = 1, two = 2, four = 4;
  for (const uint64_t& k : {two, four})
    ASSERT_TRUE(update(r.region(), 0, as_bytes(k), as_bytes(value)));
  for (const uint64_t& k : {two, four}) ASSERT_TRUE(*erase(r.region(), 0, as_bytes(k)));
  ASSERT_TRUE(update(r.region(), 0, as_bytes(two), as_bytes(value)));  // where 4 was
  EXPECT_EQ(walked(r), (std::map<uint64_t, int>{{2, 1}}));
}

TEST(MapWalk, MayDeleteWhatItMeets) {
  TestRegion r({map_spec(MapKind::kHash, 8, 8, 100)});
  const uint64_t value = 1;
  for (uint64_t k = 0; k < 100; ++k)
    ASSERT_TRUE(update(r.region(), 0, as_bytes(k), as_bytes(value)));
  const auto met = walked(r, [&](uint64_t k) { EXPECT_TRUE(*erase(r.region(), 0, as_bytes(k))); });
  EXPECT_EQ(met.size(), 100u);
  EXPECT_TRUE(std::ranges::all_of(met, [](const auto& one) { return one.second == 1; }));
  EXPECT_TRUE(walked(r).empty());
}

TEST(MapWalk, OfAScribbledMapEnds) {
  TestRegion r({map_spec(MapKind::kHash, 8, 8, 100)});
  rt::head_of(r.map())->bump = 0xffffffff;
  EXPECT_LE(walked(r).size(), 200u);
}

TEST(Maps, EightThreadsCountExactly) {
  for (const MapKind kind : {MapKind::kPerCpuHash, MapKind::kHash}) {
    TestRegion r({map_spec(kind, 8, 8, 1000)});
    run_threads([&](int t) {
      std::mt19937_64 random(static_cast<uint64_t>(t));
      for (int i = 0; i < 125'000; ++i) {
        const uint64_t key = random() % 1000;
        if (!add_one(r, r.map(), raw(key))) ADD_FAILURE() << "no room";
      }
    });
    uint64_t total = 0;
    const auto sums = sums_by_key(r.region(), 0);
    for (const auto& [key, sum] : sums) total += sum;
    EXPECT_EQ(sums.size(), 1000u);
    EXPECT_EQ(total, 1'000'000u);
    EXPECT_EQ(entries_accounted_for(r.map()), rt::head_of(r.map())->bump);
    EXPECT_EQ(r.region().stats_untrusted().map_contended, 0u);
  }
}

TEST(Maps, ChurnKeepsOwnKeysAndLosesNoEntry) {
  // Every thread inserts and deletes keys that only it uses, in few buckets, so a lost or doubled
  // key shows at once.
  TestRegion r({map_spec(MapKind::kHash, 8, 8, 64)});
  run_threads([&](int t) {
    std::mt19937_64 random(static_cast<uint64_t>(t));
    std::map<uint64_t, uint64_t> mine;
    for (int i = 0; i < 60'000; ++i) {
      const uint64_t key = (random() % 6) * kThreads + static_cast<uint64_t>(t), value = random();
      const auto found = mine.find(key);
      const uint64_t* now = rt::map_lookup(r.consts(), r.map(), raw(key), 0);
      if ((now != nullptr) != (found != mine.end()))
        ADD_FAILURE() << "key " << key << " lost or found";
      if (now != nullptr && *now != found->second) ADD_FAILURE() << "value of another key";
      if (random() % 2 == 0) {
        if (rt::map_update(r.consts(), r.map(), raw(key), raw(value), 0, 0) != 0)
          ADD_FAILURE() << "update";
        mine[key] = value;
      } else if ((rt::map_delete(r.consts(), r.map(), raw(key)) == 0) != (mine.erase(key) == 1)) {
        ADD_FAILURE() << "delete";
      }
    }
  });
  EXPECT_EQ(entries_accounted_for(r.map()), rt::head_of(r.map())->bump);
  EXPECT_EQ(r.region().stats_untrusted().corrupt, 0u);
}

TEST(Maps, ContendedKeysOccurOnce) {
  // All threads insert and delete the same few keys; a watcher finds none of them twice.
  TestRegion r({map_spec(MapKind::kHash, 8, 8, 16)});
  std::atomic<bool> stop = false;
  std::thread watcher([&] {
    while (!stop) {
      std::set<std::vector<uint8_t>> keys;
      auto entries = snapshot(r.region(), 0);
      if (!entries) continue;
      for (const MapEntry& entry : *entries) {
        uint64_t key = 0, value = 0;
        std::memcpy(&key, entry.key.data(), 8);
        std::memcpy(&value, entry.values[0].data(), 8);
        if (key != value) ADD_FAILURE() << "value " << value << " under key " << key;
        if (!keys.insert(entry.key).second) ADD_FAILURE() << "key twice";
      }
    }
  });
  run_threads([&](int t) {
    std::mt19937_64 random(static_cast<uint64_t>(t));
    for (int i = 0; i < 40'000; ++i) {
      const uint64_t key = random() % 4;
      if (random() % 2 == 0) {
        rt::map_update(r.consts(), r.map(), raw(key), raw(key), rt::kFlagNoExist, 0);
      } else {
        rt::map_delete(r.consts(), r.map(), raw(key));
      }
    }
  });
  stop = true;
  watcher.join();
  EXPECT_LE(snapshot(r.region(), 0)->size(), 4u);
  EXPECT_EQ(entries_accounted_for(r.map()), rt::head_of(r.map())->bump);
}

// ---- signals
// ------------------------------------------------------------------------------------------------------

TestRegion* storm_region;
std::atomic<uint64_t> storm_hits;

void storm_handler(int) {
  const uint64_t hit = storm_hits.fetch_add(1);
  const uint64_t own = 1000 + hit % 8, shared = hit % 4;
  add_one(*storm_region, storm_region->map(0), raw(shared));
  add_one(*storm_region, storm_region->map(1), raw(own));
  if (hit % 2 == 0) rt::map_delete(storm_region->consts(), storm_region->map(1), raw(own));
}

TEST(Maps, HandlersThatInterruptAnOperationDoTheSameAndNothingIsLost) {
  TestRegion r({map_spec(MapKind::kPerCpuHash, 8, 8, 16), map_spec(MapKind::kHash, 8, 8, 64)});
  storm_region = &r;
  storm_hits = 0;
  struct sigaction action = {};
  action.sa_handler = storm_handler;
  action.sa_flags = SA_NODEFER;  // Handlers interrupt handlers.
  sigaction(SIGALRM, &action, nullptr);
  const itimerval often = {{0, 50}, {0, 50}}, never = {};
  setitimer(ITIMER_REAL, &often, nullptr);
  uint64_t done = 0;
  for (; done < 3'000'000 && storm_hits < 10'000; ++done) {
    const uint64_t key = done % 4, churned = 1000 + done % 8;
    add_one(r, r.map(0), raw(key));
    add_one(r, r.map(1), raw(churned));
    rt::map_delete(r.consts(), r.map(1), raw(churned));
  }
  setitimer(ITIMER_REAL, &never, nullptr);
  signal(SIGALRM, SIG_IGN);
  uint64_t total = 0;
  for (const auto& [key, sum] : sums_by_key(r.region(), 0)) total += sum;
  EXPECT_EQ(total, done + storm_hits);
  EXPECT_GT(storm_hits, 100u);
  EXPECT_EQ(entries_accounted_for(r.map(1)), rt::head_of(r.map(1))->bump);
}

// ---- hostile memory
// -----------------------------------------------------------------------------------------------

TEST(Maps, ScribbledMemoryNeitherCrashesNorHangs) {
  TestRegion r({map_spec(MapKind::kHash, 8, 8, 200), map_spec(MapKind::kPerCpuHash, 16, 24, 50)});
  std::atomic<bool> stop = false;
  std::thread scribbler([&] {
    std::mt19937_64 random(7);
    auto* words = reinterpret_cast<uint64_t*>(r.memory().data());
    const uint64_t count = r.memory().size() / 8;
    while (!stop) {
      // Small numbers make links that are nearly right, which is worse than noise.
      const uint64_t word = random() % 3 == 0 ? random() : random() % 210 | (random() % 4) << 32;
      __atomic_store_n(words + random() % count, word, __ATOMIC_RELAXED);
    }
  });
  std::mt19937_64 random(8);
  const auto end = std::chrono::steady_clock::now() + std::chrono::milliseconds(1500);
  while (std::chrono::steady_clock::now() < end) {
    const std::array<uint64_t, 3> key = {random() % 100, 0, 0};
    for (size_t m = 0; m < 2; ++m) {
      const abi::RtMap& map = r.map(m);
      uint64_t* value = rt::map_lookup(r.consts(), map, raw(key), 1);
      if (value != nullptr) {
        const auto* byte = reinterpret_cast<uint8_t*>(value);
        ASSERT_TRUE(byte >= r.memory().data() &&
                    byte + map.value_size <= r.memory().data() + r.memory().size());
      }
      rt::map_update(r.consts(), map, raw(key), raw(key), 0, 1);
      rt::map_delete(r.consts(), map, raw(key));
      (void)snapshot(r.region(), m);
      (void)zero(r.region(), m);
      (void)clear(r.region(), m);
    }
  }
  stop = true;
  scribbler.join();
}

/// Whoever deleted it died before taking it out of its chain, of which it is the first.
TEST(Maps, ADeletedEntryThatIsStillInItsChainIsNotFound) {
  TestRegion r({map_spec(MapKind::kHash, 8, 8, 4)});
  const uint64_t key = 1;
  update(r.region(), 0, as_bytes(key), as_bytes(key)).value();
  ASSERT_NE(rt::map_lookup(r.consts(), r.map(), raw(key), 0), nullptr);
  rt::entry_of(r.map(), 0)->link |= abi::kLinkMark;
  EXPECT_EQ(rt::map_lookup(r.consts(), r.map(), raw(key), 0), nullptr);
  EXPECT_EQ(rt::map_update(r.consts(), r.map(), raw(key), raw(key), rt::kFlagNoExist, 0), 0);
  EXPECT_EQ(sums_by_key(r.region(), 0), (std::map<uint64_t, uint64_t>{{key, key}}));
}

/// The list of free entries begins with one that there is not; entries that were never used are
/// taken instead.
TEST(Maps, AFreeEntryThatThereIsNotIsNotTaken) {
  TestRegion r({map_spec(MapKind::kHash, 8, 8, 4)});
  const uint64_t key = 1;
  for (const uint64_t scribbled : {uint64_t{r.map().capacity} + 1, abi::kLinkIndexMask}) {
    rt::head_of(r.map())->free_head = scribbled;
    EXPECT_EQ(rt::take_freed_entry(r.map()), -1) << scribbled;
    EXPECT_EQ(rt::map_update(r.consts(), r.map(), raw(key), raw(key), rt::kFlagAny, 0), 0);
  }
  EXPECT_NE(rt::map_lookup(r.consts(), r.map(), raw(key), 0), nullptr);
}

TEST(Maps, AChainThatIsARingIsReportedAsCorrupt) {
  TestRegion r({map_spec(MapKind::kHash, 8, 8, 4)});
  const uint64_t key = 1, other = 2;
  update(r.region(), 0, as_bytes(key), as_bytes(key)).value();
  abi::HashEntry* entry = rt::entry_of(r.map(), 0);
  entry->link |= 1;  // Its own follower.
  EXPECT_EQ(snapshot(r.region(), 0).error().code, ErrorCode::kCorrupt);
  for (uint64_t k = other; k < 50; ++k) rt::map_lookup(r.consts(), r.map(), raw(k), 0);
  entry->link = (entry->link & ~abi::kLinkIndexMask) | 77;  // No such entry.
  EXPECT_EQ(snapshot(r.region(), 0).error().code, ErrorCode::kCorrupt);
}

}  // namespace
}  // namespace spile::shm
