// Attach, detach and toggle, thousands of times, in a process whose threads never rest.
//
// Each thread counts its own calls, before and behind them, in memory that it shares with the test. How many calls a cycle
// sees nobody knows, but bounds are known that hold whatever the scheduler does: every call that began behind the attach and
// ended before the detach is counted, and none that ended before the attach or began behind the detach is. Now and then the
// threads are parked between calls and sent through a given number of them: that number is exact.
//
// As many attaches as fit in some seconds, at most 10,000; SPILE_ATTACH_CYCLES asks for a number of them whatever time they
// take, SPILE_SOAK for 100,000. Toggles are 10,000, or as many as those.
//
// Most cycles are made with real-time priority where that is allowed: else most of the time goes by until the test, one of
// nine that want two processors, has its turn. The first cycles do without, as a usual tracer.
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <chrono>
#include <cstdlib>

#include "crowd.h"
#include "os/scheduling.h"
#include "user_engine/test_worker.h"

namespace spile::user_engine {
namespace {

using namespace testing;

constexpr int kExactEvery = 50, kOrdinaryCycles = 20;
constexpr int kToggles = 10'000, kTogglesPerAttach = 1000, kTogglesPerLook = 50;
constexpr uint64_t kExactRounds = 1000;
using Counts = std::array<uint64_t, kThreads>;

/// How often, and how long.
class Budget {
 public:
  explicit Budget(std::chrono::seconds usual_time, int least = 2 * kOrdinaryCycles)
      : end_(Clock::now() + usual_time), least_(least) {
    if (const char* text = std::getenv("SPILE_ATTACH_CYCLES")) {
      least_ = most_ = std::atoi(text);
    } else if (std::getenv("SPILE_SOAK") != nullptr) {
      least_ = most_ = 100'000;
    }
  }
  bool lets(int cycle) const { return cycle < least_ || (cycle < most_ && Clock::now() < end_); }

 private:
  using Clock = std::chrono::steady_clock;
  Clock::time_point end_;
  int least_, most_ = 10'000;
};

/// The program of eight threads. It ends with this.
class Target {
 public:
  Target() {
    const int fd = memfd_create("crowd", 0);
    EXPECT_EQ(ftruncate(fd, sizeof(Crowd)), 0);
    void* memory = mmap(nullptr, sizeof(Crowd), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    EXPECT_NE(memory, MAP_FAILED);
    crowd_ = static_cast<Crowd*>(memory);
    for (CrowdThread& t : crowd_->threads) t.limit = UINT64_MAX;
    pid_ = fork();
    if (pid_ == 0) {
      execl(SPILE_CROWD, SPILE_CROWD, std::to_string(fd).c_str(), nullptr);
      _exit(127);
    }
    close(fd);
    park();  // all threads are there when it returns
    let_run();
  }
  ~Target() {
    store(crowd_->ends, 1);
    int status = -1;
    waitpid(pid_, &status, 0);
    EXPECT_EQ(status, 0) << "the target did not end well";
    for (const CrowdThread& t : crowd_->threads) EXPECT_EQ(load(t.wrong), 0u) << "it computed something else";
    munmap(crowd_, sizeof(Crowd));
  }
  pid_t pid() const { return pid_; }
  bool alive() const { return waitpid(pid_, nullptr, WNOHANG) == 0; }

  Counts begun() const { return all(&CrowdThread::begun); }
  Counts done() const { return all(&CrowdThread::done); }

  /// Each thread stands between two rounds when it returns.
  void park() {
    for (CrowdThread& t : crowd_->threads) ask(t, 0);
    wait_until_parked();
  }
  /// Each parked thread makes `rounds` rounds and parks again.
  void run_exactly(uint64_t rounds) {
    for (CrowdThread& t : crowd_->threads) ask(t, load(t.done) + rounds);
    wait_until_parked();
  }
  void let_run() {
    for (CrowdThread& t : crowd_->threads) ask(t, UINT64_MAX);
  }

 private:
  static uint64_t load(const uint64_t& word) { return __atomic_load_n(&word, __ATOMIC_SEQ_CST); }
  static void store(uint64_t& word, uint64_t value) { __atomic_store_n(&word, value, __ATOMIC_SEQ_CST); }
  static void ask(CrowdThread& t, uint64_t limit) {
    store(t.limit, limit);
    store(t.asked, load(t.asked) + 1);
  }
  void wait_until_parked() const {
    for (const CrowdThread& t : crowd_->threads) {
      while (load(t.obeyed) != load(t.asked) && alive()) usleep(50);
    }
  }
  Counts all(uint64_t CrowdThread::*count) const {
    Counts counts;
    for (size_t i = 0; i < counts.size(); i++) counts[i] = load(crowd_->threads[i].*count);
    return counts;
  }

  Crowd* crowd_ = nullptr;
  pid_t pid_ = 0;
};

/// count() at each of the hot functions, all in one counter.
Bundle crowd_bundle() {
  Bundle bundle = counting_bundle();
  const bundle::Probe one = bundle.probes.front();
  bundle.probes.clear();
  for (const char* symbol : {"crowd_hot_3", "crowd_hot_5", "crowd_hot_9"}) {
    bundle.probes.push_back(one);
    bundle.probes.back().path = SPILE_CROWD;
    bundle.probes.back().symbol = symbol;
  }
  return bundle;
}

uint64_t rounds_between(const Counts& from, const Counts& to) {
  uint64_t sum = 0;
  for (size_t i = 0; i < from.size(); i++) sum += to[i] > from[i] ? to[i] - from[i] : 0;
  return sum;
}

/// Until there are calls that a probe cannot have missed.
void wait_for_rounds(const Target& target, const Counts& since) {
  while (rounds_between(since, target.done()) < kThreads && target.alive()) usleep(20);
}

struct Hits {
  uint64_t told = 0, at_least = 0;
};

/// One cycle. What cannot be missed is counted, what cannot have been seen is not.
void attach_and_detach(const Target& target, const Bundle& bundle, Hits& hits) {
  const Counts done_before = target.done();
  auto trace = make_engine({})->attach(bundle, {.pids = {target.pid()}});
  ASSERT_TRUE(trace) << trace.error().message;
  const Counts begun_inside = target.begun();
  wait_for_rounds(target, begun_inside);
  const Counts done_inside = target.done();
  auto detached = (*trace)->detach();
  ASSERT_TRUE(detached) << detached.error().message;
  const Counts begun_behind = target.begun();
  for (const std::string& warning : (*trace)->take_warnings()) ADD_FAILURE() << warning;
  const uint64_t told = total(**trace);
  const uint64_t at_least = kHotFunctions * rounds_between(begun_inside, done_inside);
  EXPECT_GE(told, at_least);
  EXPECT_LE(told, kHotFunctions * rounds_between(done_before, begun_behind));
  hits.told += told;
  hits.at_least += at_least;
}

/// With every thread parked when the probes come and go, each call is counted, and no other.
void expect_exact(Target& target, const Bundle& bundle) {
  constexpr uint64_t kExact = kHotFunctions * kThreads * kExactRounds;
  target.park();
  auto trace = make_engine({})->attach(bundle, {.pids = {target.pid()}});
  ASSERT_TRUE(trace) << trace.error().message;
  target.run_exactly(kExactRounds);
  EXPECT_EQ(total(**trace), kExact);
  ASSERT_TRUE((*trace)->detach());
  target.run_exactly(kExactRounds);
  EXPECT_EQ(total(**trace), kExact);
  target.let_run();
}

TEST(Cycles, AttachAndDetachCountEveryCallBetweenThem) {
  Target target;
  const Bundle bundle = crowd_bundle();
  target.park();
  const Snapshot before = Snapshot::of(target.pid());
  target.let_run();
  Hits hits;
  const Budget budget(std::chrono::seconds(24));
  const auto began = std::chrono::steady_clock::now();
  int done = 0;
  os::Urgency urgency;
  for (; budget.lets(done) && !HasFailure(); done++) {
    if (done == kOrdinaryCycles) urgency = os::Urgency::real_time();
    SCOPED_TRACE(fmt::format("cycle {}", done));
    attach_and_detach(target, bundle, hits);
    if (done % kExactEvery == 0) expect_exact(target, bundle);
  }
  const std::chrono::duration<double, std::milli> took = std::chrono::steady_clock::now() - began;
  fmt::print("{} cycles, {} hits, of which {} could not be missed; {:.2f} ms a cycle\n", done, hits.told, hits.at_least,
             took.count() / done);
  EXPECT_GE(hits.at_least, static_cast<uint64_t>(done) * kHotFunctions);
  target.park();
  expect_same(before, Snapshot::of(target.pid()));
  target.let_run();
}

/// Off, a probe counts nothing; on, everything. A call that had passed the gate before it closed has ended when its thread is
/// parked.
TEST(Cycles, ToggledProbesCountWhileTheyAreOn) {
  Target target;
  const Bundle bundle = crowd_bundle();
  constexpr std::array kAll{0, 1, 2};
  const Budget budget(std::chrono::seconds(0), kToggles);
  const os::Urgency urgency = os::Urgency::real_time();
  int toggles = 0;
  for (; budget.lets(toggles) && !HasFailure(); toggles += kTogglesPerAttach) {
    auto trace = make_engine({})->attach(bundle, {.pids = {target.pid()}});
    ASSERT_TRUE(trace) << trace.error().message;
    for (int toggle = 0; toggle < kTogglesPerAttach; toggle++) {
      ASSERT_TRUE((*trace)->switch_probes(kAll, toggle % 2 == 1));
      if (toggle % kTogglesPerLook > 1) continue;
      target.park();
      const uint64_t before = total(**trace);
      target.run_exactly(2);
      const uint64_t expected = toggle % 2 == 1 ? 2u * kHotFunctions * kThreads : 0u;
      EXPECT_EQ(total(**trace) - before, expected) << "toggle " << toggle;
      target.let_run();
    }
    ASSERT_TRUE((*trace)->detach());
  }
  fmt::print("{} toggles\n", toggles);
}

}  // namespace
}  // namespace spile::user_engine
