// Probes switched off and on, in children that run through them meanwhile.
#include "user_engine/switches.h"

#include <numeric>
#include <random>

#include "user_engine/detach.h"
#include "user_engine/test_worker.h"

extern "C" __attribute__((noinline)) long spile_engine_test_hot(long a, long b) {
  asm volatile("" : "+r"(a));
  return a * 3 + b;
}

namespace spile::user_engine {
namespace {

using namespace testing;

/// A gate of probes `of` in an image of one page.
CodeImage image_with_gates(const std::vector<std::vector<uint32_t>>& gates) {
  CodeImage image;
  image.bytes.resize(4096);
  for (size_t i = 0; i < gates.size(); i++) {
    auto first = static_cast<uint32_t>(image.gate_probes.size());
    image.gates.push_back({static_cast<uint32_t>(8 * i), first,
                           static_cast<uint32_t>(gates[i].size()), 100 + i, 200 + i});
    image.gate_probes.insert(image.gate_probes.end(), gates[i].begin(), gates[i].end());
  }
  return image;
}

struct Words {
  Words() {
    void* memory = mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    words = static_cast<uint64_t*>(memory);
    std::iota(words, words + 8, 100);
  }
  Mapping view() { return Mapping(words, 4096); }
  std::vector<bool> closed(size_t count) const {
    std::vector<bool> all;
    for (size_t i = 0; i < count; i++) all.push_back(words[i] >= 200);
    return all;
  }
  uint64_t* words = nullptr;
};

size_t set(Switches& switches, std::vector<int> probes, bool on) {
  return switches.set(probes, on);
}

TEST(Switches, AGateIsClosedWhenAllOfItsProbesAreOff) {
  Words memory;
  Switches switches(3);
  switches.add(image_with_gates({{0}, {0, 1}, {2, 2}}), memory.view());
  EXPECT_EQ(set(switches, {0}, false), 1u);
  EXPECT_EQ(memory.closed(3), (std::vector{true, false, false}));
  EXPECT_EQ(set(switches, {0, 1, 2, 0}, false), 2u);
  EXPECT_EQ(memory.closed(3), (std::vector{true, true, true}));
  EXPECT_EQ(set(switches, {1}, true), 1u);
  EXPECT_EQ(memory.closed(3), (std::vector{true, false, true}));
  EXPECT_EQ(set(switches, {0, 2}, true), 2u);
  EXPECT_EQ(memory.closed(3), (std::vector{false, false, false}));
}

TEST(Switches, AGateOfSomethingThatIsNeverSwitchedStaysOpen) {
  Words memory;
  Switches switches(2);
  switches.add(image_with_gates({{0, 2}, {1}}), memory.view());
  EXPECT_EQ(set(switches, {0, 1, 2}, false), 1u);
  EXPECT_EQ(memory.closed(2), (std::vector{false, true}));
}

TEST(Switches, CodeThatComesLaterIsAsItsProbesAre) {
  Words first, later;
  Switches switches(3);
  switches.add(image_with_gates({{0}, {1}}), first.view());
  EXPECT_EQ(set(switches, {0, 1}, false), 2u);
  switches.add(image_with_gates({{0}, {0, 1}, {0, 2}, {2}}), later.view());
  EXPECT_EQ(later.closed(4), (std::vector{true, true, false, false}));
  EXPECT_EQ(set(switches, {0}, true), 3u) << "of the first code one, of the later two";
  EXPECT_EQ(later.closed(4), (std::vector{false, false, false, false}));
}

TEST(Switches, WhatIsNoProbeOrIsSoAlreadyChangesNothing) {
  Words memory;
  Switches switches(1);
  switches.add(image_with_gates({{0}}), memory.view());
  EXPECT_EQ(set(switches, {-1, 1, 7}, false), 0u);
  EXPECT_EQ(set(switches, {0}, true), 0u);
  EXPECT_EQ(set(switches, {0, 0}, false), 1u);
}

// ---- in live processes

/// Two probes on the hot function, each with a key of its own.
Bundle two_probes() {
  Bundle bundle = counting_bundle();
  bundle.maps[0].max_entries = 2;
  bundle.programs.push_back(bundle.programs[0]);
  bundle.programs[1].name = "count too";
  bundle.programs[1].code = count_program(0, 1);
  bundle.probes.push_back(bundle.probes[0]);
  bundle.probes[1].program = 1;
  return bundle;
}

void switch_or_fail(engine::Trace& trace, std::vector<int> probes, bool on) {
  auto switched = trace.switch_probes(probes, on);
  ASSERT_TRUE(switched) << switched.error().message;
}

TEST(SwitchedProbes, CountNothingWhileOffAndEverythingWhileOn) {
  Worker worker;
  Snapshot before = Snapshot::of(worker.pid());
  {
    auto trace = attach_or_fail(counting_bundle(), {.pids = {worker.pid()}}, true);
    ASSERT_TRUE(trace);
    uint64_t expected = 0;
    for (int i = 0; i < 5; i++) {
      worker.run(1000);
      expected += 1000;
      EXPECT_EQ(total(*trace), expected);
      switch_or_fail(*trace, {0}, false);
      worker.run(1000);
      EXPECT_EQ(total(*trace), expected);
      EXPECT_EQ(trace->stats()->hits, expected);
      switch_or_fail(*trace, {0}, true);
    }
    switch_or_fail(*trace, {0}, false);
    ASSERT_TRUE(trace->detach());
  }
  expect_same(before, Snapshot::of(worker.pid()));
}

TEST(SwitchedProbes, MayStartOff) {
  Worker worker;
  auto trace = attach_or_fail(counting_bundle(), {.pids = {worker.pid()}, .paused = true});
  ASSERT_TRUE(trace);
  worker.run(1000);
  EXPECT_EQ(total(*trace), 0u);
  switch_or_fail(*trace, {0}, true);
  worker.run(1000);
  EXPECT_EQ(total(*trace), 1000u);
}

TEST(SwitchedProbes, OfOnePlaceAreSwitchedOneByOne) {
  for (bool measure : {false, true}) {
    Worker worker;
    auto trace = attach_or_fail(two_probes(), {.pids = {worker.pid()}}, measure);
    ASSERT_TRUE(trace);
    uint64_t first = 0, second = 0, hits = 0;
    for (unsigned on : {3u, 2u, 0u, 1u, 3u, 0u, 2u, 1u}) {
      switch_or_fail(*trace, {0}, (on & 1) != 0);
      switch_or_fail(*trace, {1}, (on & 2) != 0);
      worker.run(100);
      first += on & 1 ? 100 : 0;
      second += on & 2 ? 100 : 0;
      hits += on != 0 ? 100 : 0;
      EXPECT_EQ(total(*trace, 0), first) << on;
      EXPECT_EQ(total(*trace, 1), second) << on;
      EXPECT_EQ(trace->stats()->hits, measure ? hits : 0) << on;
    }
  }
}

TEST(SwitchedProbes, OfForkedChildrenAreSwitchedWithTheirParents) {
  int done[2];
  ASSERT_EQ(pipe2(done, O_CLOEXEC), 0);
  Told parent([&](auto wait) {
    if (!wait()) return 1;
    pid_t child = fork();
    if (child == 0) {
      for (char c = 0; wait();) {
        for (long i = 0; i < 100; i++) spile_engine_test_hot(i, 7);
        if (write(done[1], &c, 1) != 1) break;
      }
      _exit(0);
    }
    int status = 0;
    return waitpid(child, &status, 0) == child ? status : 1;
  });
  auto trace = attach_or_fail(counting_bundle(), {.pids = {parent.pid()}});
  ASSERT_TRUE(trace);
  parent.go();  // the fork
  auto work = [&] {
    char c = 0;
    parent.go();
    ASSERT_EQ(read(done[0], &c, 1), 1);
  };
  work();
  EXPECT_EQ(total(*trace), 100u);
  switch_or_fail(*trace, {0}, false);
  work();
  EXPECT_EQ(total(*trace), 100u);
  switch_or_fail(*trace, {0}, true);
  work();
  EXPECT_EQ(total(*trace), 200u);
  ASSERT_TRUE(trace->detach());
  kill(parent.pid(), SIGKILL);
  close(done[0]);
  close(done[1]);
}

/// SPILE_SOAK=1: more of it.
int cycles(int quick, int soak) {
  const char* asked = getenv("SPILE_SOAK");
  return asked != nullptr && *asked != 0 ? soak : quick;
}

/// The probe that is never switched counts every call, and the target checks every result.
TEST(SwitchedProbes, LoseNoHitOfOthersWhileEightThreadsRunThroughThem) {
  Worker worker(8);
  auto trace = attach_or_fail(two_probes(), {.pids = {worker.pid()}});
  ASSERT_TRUE(trace);
  std::mt19937 dice(1);
  uint64_t calls = 0;
  const int toggles = cycles(10'000, 100'000);
  for (int i = 0; i < toggles;) {
    worker.start(1'000'000);
    calls += 8 * 1'000'000;
    for (int k = 0; k < 500; k++, i++) {
      switch_or_fail(*trace, {1}, i % 2 != 0);
      if (i % 4 != 0) usleep(dice() % 30);
    }
    worker.join();
    ASSERT_EQ(total(*trace, 0), calls);
  }
  EXPECT_GT(total(*trace, 1), 0u);
  EXPECT_LT(total(*trace, 1), calls);
  // The gate of the whole place, for all of them.
  worker.start(20'000'000);
  for (int i = 0; i < toggles; i++) {
    switch_or_fail(*trace, {0, 1}, i % 2 != 0);
    if (i % 4 != 0) usleep(dice() % 30);
  }
  worker.join();
  const uint64_t first = total(*trace, 0), second = total(*trace, 1);
  EXPECT_LE(first, calls + 8 * 20'000'000);
  worker.run(1000);
  EXPECT_EQ(total(*trace, 0), first + 8000);
  EXPECT_EQ(total(*trace, 1), second + 8000);
}

/// 1,000 attaches and 10,000 switches, bounded in time: a loaded machine does fewer, and says so.
TEST(SwitchedProbes, ComeGoAndAreSwitchedUnderEightThreads) {
  Worker worker(8);
  worker.run(1);
  Snapshot before = Snapshot::of(worker.pid());
  const int wanted = cycles(1000, 10'000);
  const auto until = std::chrono::steady_clock::now() + std::chrono::seconds(cycles(20, 600));
  uint64_t seen = 0;
  int done = 0;
  for (; done < wanted && std::chrono::steady_clock::now() < until;) {
    worker.start(20'000'000);
    for (int k = 0; k < 10; k++, done++) {
      auto trace = attach_or_fail(two_probes(), {.pids = {worker.pid()}, .paused = done % 3 == 0});
      ASSERT_TRUE(trace);
      for (int i = 0; i < 10; i++) switch_or_fail(*trace, {i % 2, 1}, i % 3 != 0);
      usleep(200);
      auto detached = trace->detach();
      ASSERT_TRUE(detached) << detached.error().message;
      seen += total(*trace);
    }
    worker.join();
  }
  std::printf("  %d attaches, %d switches, %llu hits\n", done, 10 * done,
              static_cast<unsigned long long>(seen));
  EXPECT_GT(done, 0);
  EXPECT_GT(seen, 0u) << "no hit at all";
  Snapshot after = Snapshot::of(worker.pid());
  EXPECT_TRUE(before.code == after.code) << "code bytes changed";
}

}  // namespace
}  // namespace spile::user_engine
