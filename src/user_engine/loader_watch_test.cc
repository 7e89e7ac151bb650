#include "user_engine/loader_watch.h"

#include <gtest/gtest.h>
#include <pthread.h>
#include <signal.h>
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <thread>
#include <utility>

#include "base/fd.h"
#include "bundle/bundle.h"
#include "user_engine/rt/loader_gate.h"

namespace spile::user_engine {
namespace {

/// Both sides of a gate in one process: the target's is the code that runs in targets.
class LoaderGate : public testing::Test {
 protected:
  LoaderGate() {
    auto layout = shm::plan_region(bundle_, {}).value();
    void* memory = mmap(nullptr, layout.size_bytes, PROT_READ | PROT_WRITE,
                        MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    memory_ = Mapping(memory, layout.size_bytes);
    region_ = shm::Region::format(memory_.bytes(), layout).value();
    consts_ = shm::consts_for(layout, reinterpret_cast<uint64_t>(memory), 0);
    consts_.flags = 0;
    consts_.allowed_calls = abi::kCallAll;
  }

  abi::LoaderGate& gate() { return region_.loader_gate_untrusted(); }
  std::jthread load() {
    return std::jthread([this] { rt::await_tracer(consts_); });
  }
  uint32_t next_request() {
    for (;;) {
      if (auto request = pending_request(region_)) return *request;
      sleep_until_request(region_, std::chrono::milliseconds(5));
    }
  }

  bundle::Bundle bundle_;
  Mapping memory_;
  shm::Region region_;
  abi::RtConsts consts_ = {};
};

TEST_F(LoaderGate, NobodyWaitsBeforeItIsOpen) {
  rt::await_tracer(consts_);
  EXPECT_FALSE(pending_request(region_));
  EXPECT_EQ(gate().in_vain, 1u) << "it is counted, to be told";
}

TEST_F(LoaderGate, NobodyWaitsWhereTheCallIsForbidden) {
  open_gate(region_);
  consts_.allowed_calls &= ~uint32_t{abi::kCallFutex};
  rt::await_tracer(consts_);
  EXPECT_FALSE(pending_request(region_));
}

TEST_F(LoaderGate, AnAnswerEndsTheWait) {
  open_gate(region_);
  for (int i = 0; i < 100; i++) {
    auto loading = load();
    answer_request(region_, next_request());
    loading.join();
  }
  EXPECT_EQ(gate().asked, 100u);
  EXPECT_EQ(gate().open, 1u);
}

TEST_F(LoaderGate, NumbersOfRequestsWrap) {
  gate().asked = gate().answered = UINT32_MAX;
  open_gate(region_);
  auto loading = load();
  answer_request(region_, next_request());
  loading.join();
  EXPECT_EQ(gate().asked, 0u);
  EXPECT_EQ(gate().in_vain, 0u);
  EXPECT_TRUE(rt::wait_for_answer(consts_, &gate(), UINT32_MAX)) << "it came before";
  gate().answered = UINT32_MAX;
  EXPECT_FALSE(rt::wait_for_answer(consts_, &gate(), 0)) << "nobody has answered it";
}

/// The clock is not to be had: what ends the wait are looks that find no sign of life.
TEST_F(LoaderGate, AWaitForADeadTracerEndsAndIsTheLast) {
  consts_.allowed_calls &= ~uint32_t{abi::kCallClockGettime};
  open_gate(region_);
  rt::await_tracer(consts_);
  EXPECT_EQ(gate().in_vain, 1u);
  EXPECT_EQ(gate().open, 0u);
  rt::await_tracer(consts_);
  EXPECT_EQ(gate().in_vain, 2u);
  EXPECT_EQ(gate().asked, 1u);
}

/// The clock is not to be had either: signs of life are what keeps it waiting, three times as long
/// as it waits without. Where this thread got no time for long, it may have given up: then again.
TEST_F(LoaderGate, ATracerAtWorkIsWaitedFor) {
  using Clock = std::chrono::steady_clock;
  using std::chrono::milliseconds;
  consts_.allowed_calls &= ~uint32_t{abi::kCallClockGettime};
  for (int attempt = 0; attempt < 100; attempt++) {
    open_gate(region_);
    gate().in_vain = 0;
    auto loading = load();
    const uint32_t request = next_request();
    const auto begin = Clock::now();
    auto last = begin;
    Clock::duration longest{};
    while (last - begin < 3 * abi::kMaxStillLooks * milliseconds(1)) {
      __atomic_add_fetch(&gate().beat, 1, __ATOMIC_ACQ_REL);
      std::this_thread::sleep_for(std::chrono::microseconds(500));
      const auto now = Clock::now();
      longest = std::max(longest, now - std::exchange(last, now));
    }
    answer_request(region_, request);
    loading.join();
    if (longest > milliseconds(abi::kMaxStillLooks / 2)) continue;
    EXPECT_EQ(gate().in_vain, 0u);
    return;
  }
  GTEST_SKIP() << "this machine is too busy";
}

TEST_F(LoaderGate, SignsOfLifeComeByThemselves) {
  const uint32_t before = gate().beat;
  const SignOfLife at_work(region_);
  while (__atomic_load_n(&gate().beat, __ATOMIC_ACQUIRE) - before < 3) std::this_thread::yield();
}

TEST_F(LoaderGate, ClosingItLetsThoseGoWhoWait) {
  open_gate(region_);
  auto loading = load();
  next_request();
  close_gate(region_);
  loading.join();
  EXPECT_FALSE(pending_request(region_));
}

TEST_F(LoaderGate, BehindAClosedOneNobodyWaits) {
  gate().asked = 1;
  EXPECT_TRUE(rt::wait_for_answer(consts_, &gate(), 1)) << "nor is it in vain";
}

/// Signs of life without an end: the clock ends the wait.
TEST_F(LoaderGate, ATracerThatNeverAnswersIsNotWaitedForForEver) {
  open_gate(region_);
  std::atomic<bool> done = false;
  std::thread loading([&] {
    rt::await_tracer(consts_);
    done = true;
  });
  while (!done) {
    __atomic_fetch_add(&gate().beat, 1, __ATOMIC_RELEASE);
    std::this_thread::sleep_for(std::chrono::microseconds(100));
  }
  loading.join();
  EXPECT_EQ(gate().in_vain, 1u);
  EXPECT_EQ(gate().open, 0u);
}

void on_signal(int) {}

/// Signals keep every look from timing out: the clock is what ends the wait.
TEST_F(LoaderGate, AStormOfSignalsDoesNotKeepItWaiting) {
  struct sigaction action = {};
  action.sa_handler = on_signal;
  sigaction(SIGUSR1, &action, nullptr);
  open_gate(region_);
  std::atomic<bool> done = false;
  std::thread loading([&] {
    rt::await_tracer(consts_);
    done = true;
  });
  while (!done) {
    pthread_kill(loading.native_handle(), SIGUSR1);
    std::this_thread::sleep_for(std::chrono::microseconds(50));
  }
  loading.join();
  EXPECT_EQ(gate().in_vain, 1u);
}

}  // namespace
}  // namespace spile::user_engine
