#include "user_engine/target/stopped.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <map>
#include <set>

#include "abi/private_stack.h"
#include "os/process.h"
#include "os/scheduling.h"
#include "user_engine/target/test_program.h"
#include "user_engine/target/threads_inside.h"

namespace spile::target {
namespace {

using std::chrono::milliseconds;

std::string odd() {
  return build_program("odd.c", "cc -O1 -pthread");
}

/// Stops, looks, detaches.
Result<void> look(pid_t pid,
                  const std::function<void(StoppedProcess&)>& work,
                  StopOptions options = {}) {
  return while_busy([&] {
    return with_tracer_thread([&]() -> Result<void> {
      SPILE_TRY(const Target target, Target::open(pid));
      SPILE_TRY(StoppedProcess process, StoppedProcess::stop(target, options));
      work(process);
      return {};
    });
  });
}

TEST(Stop, HoldsEveryThreadOfAProcess) {
  Program program = Program::start({build_program("sleepers.c", "cc -O1 -pthread")});
  ASSERT_TRUE(program.ready());
  auto done = look(program.pid(), [&](StoppedProcess& process) {
    auto tids = os::list_threads(program.pid());
    ASSERT_TRUE(tids);
    EXPECT_EQ(tids->size(), 13u);
    EXPECT_EQ(process.threads().size(), tids->size());
    for (pid_t tid : *tids) EXPECT_EQ(os::read_stat(program.pid(), tid)->state, 't');
    EXPECT_TRUE(process.fs_bases_usable());
    EXPECT_EQ(process.tid_offset(), 720);
    auto rseq = process.common_rseq();
    ASSERT_TRUE(rseq);
    EXPECT_EQ(rseq->signature, 0x53053053u);
  });
  ASSERT_TRUE(done) << done.error().message;
  EXPECT_EQ(program.finish(), "exit-success");
}

TEST(Stop, FiftyTimesWakesNoSleeper) {
  Program program = Program::start({build_program("sleepers.c", "cc -O1 -pthread")});
  ASSERT_TRUE(program.ready());
  for (int i = 0; i < 50; ++i) {
    auto done = look(program.pid(), [](StoppedProcess&) {});
    ASSERT_TRUE(done) << done.error().message;
  }
  EXPECT_EQ(program.finish(), "exit-success");
}

/// How often a thread was given a processor.
uint64_t times_run(pid_t pid, pid_t tid) {
  auto text = os::read_file(fmt::format("/proc/{}/task/{}/schedstat", pid, tid));
  if (!text) return 0;
  uint64_t run_ns = 0, waited_ns = 0, times = 0;
  EXPECT_EQ(std::sscanf(text->c_str(), "%lu %lu %lu", &run_ns, &waited_ns, &times), 3);
  return times;
}

TEST(LetRun, LetsGoTheseThreadsAloneAndHoldsAllAgain) {
  Program program = Program::start({build_program("sleepers.c", "cc -O1 -pthread")});
  ASSERT_TRUE(program.ready());
  auto done = look(program.pid(), [&](StoppedProcess& process) {
    std::map<pid_t, uint64_t> before;
    for (const StoppedThread& t : process.threads())
      before[t.tid] = times_run(program.pid(), t.tid);
    const std::vector<pid_t> some{process.threads()[1].tid, process.threads().back().tid};
    ASSERT_TRUE(process.let_run(some, std::chrono::microseconds(100)));
    EXPECT_EQ(process.threads().size(), before.size());
    for (const StoppedThread& t : process.threads()) {
      EXPECT_EQ(os::read_stat(program.pid(), t.tid)->state, 't');
      const bool has_run = times_run(program.pid(), t.tid) > before.at(t.tid);
      EXPECT_EQ(has_run, std::ranges::find(some, t.tid) != some.end()) << t.tid;
    }
  });
  ASSERT_TRUE(done) << done.error().message;
  EXPECT_EQ(program.finish(), "exit-success");
}

/// The tracer thread is an ordinary one again as soon as nothing competes with it.
TEST(Stop, LeavesRealTimeBehind) {
  Program program = Program::start({build_program("sleepers.c", "cc -O1 -pthread")});
  ASSERT_TRUE(program.ready());
  auto done = look(program.pid(), [&](StoppedProcess& process) {
    EXPECT_FALSE(os::is_real_time());
    ASSERT_TRUE(process.let_run({}, std::chrono::microseconds(1)));
    EXPECT_FALSE(os::is_real_time());
    process.detach();
    EXPECT_FALSE(os::is_real_time());
  });
  ASSERT_TRUE(done) << done.error().message;
  EXPECT_EQ(program.finish(), "exit-success");
}

TEST(Stop, CatchesAStormOfShortThreads) {
  Program program = Program::start({build_program("storm.c", "cc -O1 -pthread")});
  ASSERT_TRUE(program.ready());
  int stopped = 0;
  for (int i = 0; i < 20; ++i) {
    auto done = look(program.pid(),
                     [&](StoppedProcess& process) {
                       auto tids = os::list_threads(program.pid());
                       std::set<pid_t> held;
                       for (const StoppedThread& t : process.threads()) held.insert(t.tid);
                       for (pid_t tid : *tids) {
                         auto stat = os::read_stat(program.pid(), tid);
                         const bool runs = stat && stat->state != 'Z' && stat->state != 'X';
                         EXPECT_TRUE(!runs || held.contains(tid));
                       }
                     },
                     {milliseconds(3000)});
    ASSERT_TRUE(done || done.error().code == ErrorCode::kBusy) << done.error().message;
    stopped += done ? 1 : 0;
    ::usleep(2000);
  }
  EXPECT_GE(stopped, 18);
  EXPECT_EQ(program.finish(), "exit-success");
}

TEST(Stop, LeavesAJobStoppedProcessStopped) {
  Program program = Program::start({odd()});
  ASSERT_TRUE(program.ready());
  ::kill(program.pid(), SIGSTOP);
  while (program.state() != 'T') ::usleep(100);
  for (int i = 0; i < 3; ++i) {
    auto done = look(program.pid(), [](StoppedProcess& process) {
      EXPECT_TRUE(process.threads()[0].group_stopped);
    });
    ASSERT_TRUE(done) << done.error().message;
    // It stops anew, which takes a processor.
    EXPECT_EQ(program.state_after_waiting_for('T'), 'T');
  }
  ::kill(program.pid(), SIGCONT);
  EXPECT_EQ(program.finish(), "exit-success");
}

TEST(Stop, GivesUpOnAVforkParentAndNamesIt) {
  Program program = Program::start({odd(), "vfork"});
  ASSERT_TRUE(program.ready());
  ::usleep(20'000);
  auto done = look(program.pid(), [](StoppedProcess&) {}, {milliseconds(100)});
  ASSERT_FALSE(done);
  EXPECT_EQ(done.error().code, ErrorCode::kBusy);
  EXPECT_NE(done.error().message.find(std::to_string(program.pid())), std::string::npos)
      << done.error().message;
  EXPECT_NE(done.error().message.find("vfork"), std::string::npos) << done.error().message;
  EXPECT_EQ(os::read_status(program.pid())->tracer, 0) << "still traced";
  EXPECT_EQ(program.finish(), "exit-success");
}

TEST(Stop, RefusesAProcessWhoseMemoryAnotherOneShares) {
  Program program = Program::start({odd(), "clone-vm"});
  ASSERT_TRUE(program.ready());
  auto done = look(program.pid(), [](StoppedProcess&) {});
  ASSERT_FALSE(done);
  EXPECT_EQ(done.error().code, ErrorCode::kUnsafe) << done.error().message;
  EXPECT_EQ(program.finish(), "exit-success");
}

TEST(Stop, WorksWhenTheLeaderHasExited) {
  Program program = Program::start({odd(), "zombie-leader"});
  ASSERT_TRUE(program.ready());
  ASSERT_EQ(program.state(), 'Z');
  auto done = look(program.pid(), [&](StoppedProcess& process) {
    ASSERT_EQ(process.threads().size(), 1u);
    EXPECT_NE(process.threads()[0].tid, program.pid());
    EXPECT_TRUE(process.memory().alive());
  });
  ASSERT_TRUE(done) << done.error().message;
  EXPECT_EQ(program.finish(), "exit-success");
}

TEST(Stop, LosesNoTickOfAFastTimer) {
  Program program = Program::start({odd(), "timer"});
  ASSERT_TRUE(program.ready());
  for (int i = 0; i < 100; ++i) {
    auto done = look(program.pid(), [](StoppedProcess&) {});
    ASSERT_TRUE(done) << done.error().message;
  }
  EXPECT_EQ(program.finish(), "exit-success");
}

TEST(Stop, NoticesAnExecInBetween) {
  Program program = Program::start({odd(), "exec"});
  ASSERT_TRUE(program.ready());
  int stopped = 0;
  // On a busy machine every one of sixty may fall into an exec: then until one does not.
  for (int i = 0; i < 60 || (stopped == 0 && i < 2000); ++i) {
    auto done = look(program.pid(),
                     [&](StoppedProcess& process) { EXPECT_TRUE(process.memory().alive()); });
    if (!done) {
      EXPECT_TRUE(done.error().code == ErrorCode::kTargetGone ||
                  done.error().code == ErrorCode::kBusy)
          << done.error().message;
    }
    stopped += done ? 1 : 0;
  }
  EXPECT_GT(stopped, 0);
  EXPECT_EQ(program.finish(), "exit-success");
}

TEST(Stop, OfAProcessThatHasCalledExecSinceItWasOpenedIsRefused) {
  Program program = Program::start({odd(), "exec"});
  ASSERT_TRUE(program.ready());
  auto target = Target::open(program.pid());
  ASSERT_TRUE(target) << target.error().message;
  while (target->memory().alive()) ::usleep(200);
  const auto stop = [&]() -> Result<void> {
    auto process = StoppedProcess::stop(*target);
    if (!process) return std::unexpected(process.error());
    return {};
  };
  auto done = while_busy([&] { return with_tracer_thread(stop); });
  ASSERT_FALSE(done) << "what is written next would go to memory that is gone";
  EXPECT_EQ(done.error().code, ErrorCode::kTargetGone) << done.error().message;
  EXPECT_EQ(program.finish(), "exit-success");
}

TEST(TracerThread, TakesNoSignalOfTheProgramItLivesIn) {
  sigset_t outside{}, inside{};
  on_tracer_thread([&] { ::pthread_sigmask(SIG_BLOCK, nullptr, &inside); });
  ::pthread_sigmask(SIG_BLOCK, nullptr, &outside);
  for (const int signal : {SIGINT, SIGTERM, SIGCHLD, SIGALRM, SIGUSR1, SIGPROF, SIGTRAP}) {
    EXPECT_EQ(::sigismember(&inside, signal), 1) << signal;
    EXPECT_EQ(::sigismember(&outside, signal), 0) << signal;
  }
}

TEST(Stop, NamesAnotherTracer) {
  Program program = Program::start({odd()});
  ASSERT_TRUE(program.ready());
  const pid_t other = ::fork();
  if (other == 0) {
    (void)look(program.pid(), [](StoppedProcess&) { ::pause(); });
    ::_exit(0);
  }
  while (os::read_status(program.pid())->tracer == 0) ::usleep(200);
  auto done = look(program.pid(), [](StoppedProcess&) {});
  ASSERT_FALSE(done);
  EXPECT_EQ(done.error().code, ErrorCode::kBusy);
  EXPECT_NE(done.error().message.find(std::to_string(other)), std::string::npos)
      << done.error().message;
  ::kill(other, SIGKILL);
  ::waitpid(other, nullptr, 0);
  ::kill(other, SIGKILL);
  ::waitpid(other, nullptr, 0);
  EXPECT_EQ(program.finish(), "exit-success");
}

TEST(Stop, IsRefusedOutsideATracerThread) {
  Program program = Program::start({odd()});
  ASSERT_TRUE(program.ready());
  auto target = Target::open(program.pid());
  ASSERT_TRUE(target);
  auto process = StoppedProcess::stop(*target);
  ASSERT_FALSE(process);
  EXPECT_EQ(process.error().code, ErrorCode::kInternal);
}

TEST(TidOffset, IsCheckedInEveryThreadOfMany) {
  Program program = Program::start({odd(), "threads", "40"});
  ASSERT_TRUE(program.ready());
  auto done = look(program.pid(), [](StoppedProcess& process) {
    ASSERT_EQ(process.threads().size(), 41u);
    EXPECT_EQ(process.tid_offset(), 720);
    // The last thread's own copy is wrong for a moment: then the offset proves nothing.
    const TargetAddr place(process.threads().back().registers.fs_base + 720);
    auto tid = process.memory().read_value<uint32_t>(place);
    ASSERT_TRUE(tid);
    const uint8_t other[4] = {1, 0, 0, 0};
    ASSERT_TRUE(process.memory().write(place, other));
    EXPECT_EQ(process.tid_offset(), std::nullopt);
    ASSERT_TRUE(
        process.memory().write(place, {reinterpret_cast<const uint8_t*>(&*tid), sizeof *tid}));
  });
  ASSERT_TRUE(done) << done.error().message;
  EXPECT_EQ(program.finish(), "exit-success");
}

TEST(TidOffset, IsFoundInMuslAndGo) {
  const std::string musl = build_program("sleepers.c", "musl-gcc -O1 -pthread");
  if (!musl.empty()) {
    Program program = Program::start({musl});
    ASSERT_TRUE(program.ready());
    auto done = look(program.pid(), [](StoppedProcess& process) {
      EXPECT_EQ(process.tid_offset(), 48);
      EXPECT_FALSE(process.common_rseq());
    });
    ASSERT_TRUE(done) << done.error().message;
  }
  const std::string go = build_program("waiter.go", "go build");
  if (go.empty()) GTEST_SKIP() << "no Go compiler";
  Program program = Program::start({go});
  ASSERT_TRUE(program.ready());
  // A thread of Go that begins has not noted its number yet.
  bool found = false;
  for (int i = 0; i < 50 && !found; i++) {
    ASSERT_TRUE(look(program.pid(), [&](StoppedProcess& process) {
      ASSERT_GE(process.threads().size(), 2u);
      found = !process.fs_bases_usable() || process.tid_offset();
    }));
    if (!found) ::usleep(20'000);
  }
  EXPECT_TRUE(found);
  EXPECT_EQ(program.finish(), "exit-success");
}

TEST(StackOffset, IsThatOfTheLibcWithAndWithoutThreads) {
  std::optional<int64_t> with, without;
  Program threads = Program::start({build_program("sleepers.c", "cc -O1 -pthread")});
  ASSERT_TRUE(threads.ready());
  ASSERT_TRUE(look(threads.pid(), [&](StoppedProcess& p) { with = p.stack_offset(); }));
  EXPECT_EQ(threads.finish(), "exit-success");
  Program alone = Program::start({odd(), "threads", "0"});
  ASSERT_TRUE(alone.ready());
  ASSERT_TRUE(look(alone.pid(), [&](StoppedProcess& p) { without = p.stack_offset(); }));
  EXPECT_EQ(alone.finish(), "exit-success");
  ASSERT_TRUE(with);
  EXPECT_EQ(with, without);
  const std::string musl = build_program("sleepers.c", "musl-gcc -O1 -pthread");
  if (musl.empty()) GTEST_SKIP() << "no musl";
  Program other = Program::start({musl});
  ASSERT_TRUE(other.ready());
  ASSERT_TRUE(look(other.pid(), [&](StoppedProcess& p) { with = p.stack_offset(); }));
  EXPECT_TRUE(with);
}

TEST(StackOffset, IsNotUsedInAProgramThatCutsHolesIntoItsStacks) {
  Program program = Program::start({build_program("holes.c", "cc -O0 -pthread")});
  ASSERT_TRUE(program.ready());
  auto done = look(program.pid(), [](StoppedProcess& process) {
    EXPECT_EQ(process.threads().size(), 2u);
    EXPECT_TRUE(process.tid_offset());
    EXPECT_EQ(process.stack_offset(), std::nullopt);
  });
  ASSERT_TRUE(done) << done.error().message;
  EXPECT_EQ(program.finish(), "exit-success");
}

/// What is found through the pointer of such a thread goes with the other's stack.
TEST(FsBases, AreNotUsedWhereTwoThreadsHaveTheSame) {
  const std::string path = build_program("shared_tls.c", "cc -O1 -pthread");
  Program alone = Program::start({path, "alone"});
  ASSERT_TRUE(alone.ready());
  auto done = look(alone.pid(), [](StoppedProcess& process) {
    EXPECT_EQ(process.threads().size(), 2u);
    EXPECT_TRUE(process.fs_bases_usable());
    EXPECT_TRUE(process.stack_offset());
  });
  ASSERT_TRUE(done) << done.error().message;
  EXPECT_EQ(alone.finish(), "exit-success");
  Program sharing = Program::start({path});
  ASSERT_TRUE(sharing.ready());
  done = look(sharing.pid(), [](StoppedProcess& process) {
    EXPECT_EQ(process.threads().size(), 3u);
    EXPECT_FALSE(process.fs_bases_usable());
    EXPECT_EQ(process.tid_offset(), std::nullopt);
    EXPECT_EQ(process.stack_offset(), std::nullopt);
  });
  ASSERT_TRUE(done) << done.error().message;
  EXPECT_EQ(sharing.finish(), "exit-success");
}

TEST(Eintr, IsCuredOnlyWhereACallMayStartAgain) {
  EXPECT_TRUE(restartable_after_eintr(232, false));   // epoll_wait
  EXPECT_TRUE(restartable_after_eintr(45, true));     // recvfrom
  EXPECT_FALSE(restartable_after_eintr(0, false));    // read of a file
  EXPECT_FALSE(restartable_after_eintr(42, true));    // connect
  EXPECT_FALSE(restartable_after_eintr(230, false));  // clock_nanosleep
}

// ---- threads inside ranges
// ---------------------------------------------------------------------------------------------

TEST(ThreadsInside, SeesRipAndRestart) {
  Program program = Program::start({build_program("waiter.c", "cc -O1"), "read"});
  ASSERT_TRUE(program.ready());
  auto done = look(program.pid(), [&](StoppedProcess& process) {
    ASSERT_TRUE(process.threads()[0].will_restart());
    const TargetAddr rip(process.threads()[0].registers.rip);
    const AddressRange at{rip, rip + 1}, before{rip - 2, rip}, elsewhere{rip + 64, rip + 128};
    ASSERT_EQ(threads_at(process, {&at, 1}).size(), 1u);
    EXPECT_EQ(threads_at(process, {&at, 1})[0].how, ThreadInside::How::kRip);
    ASSERT_EQ(threads_at(process, {&before, 1}).size(), 1u);
    EXPECT_EQ(threads_at(process, {&before, 1})[0].how, ThreadInside::How::kRestart);
    EXPECT_TRUE(threads_at(process, {&elsewhere, 1}).empty());
  });
  ASSERT_TRUE(done) << done.error().message;
  EXPECT_EQ(program.finish(), "exit-success");
}

/// The executable part of the program itself.
AddressRange text_of(const StoppedProcess& process) {
  auto modules = process.target().modules();
  AddressRange text{};
  for (const Module& m : modules ? *modules : std::vector<Module>()) {
    for (const Segment& s : m.segments) {
      if (m.main_program && s.exec) text = {s.start, s.end};
    }
  }
  return text;
}

/// Contexts in the program's own text that live_contexts() finds in a mode of frames.c, and threads
/// it knows nothing of.
std::pair<size_t, size_t> live_in(const char* mode) {
  std::pair<size_t, size_t> result{99, 99};
  Program program = Program::start({build_program("frames.c", "cc -O1"), mode});
  EXPECT_TRUE(program.ready());
  auto done = look(program.pid(), [&](StoppedProcess& process) {
    const AddressRange text = text_of(process);
    const LiveContexts live = live_contexts(process, {&text, 1});
    result = {live.found.size(), live.incomplete.size()};
    for (const LiveContext& c : live.found)
      EXPECT_EQ(process.memory().read_value<uint64_t>(c.location), c.rip.value);
  });
  EXPECT_TRUE(done) << done.error().message;
  EXPECT_EQ(program.finish(), "exit-success");
  return result;
}

TEST(LiveContexts, AreSeenBehindAHandlerOnTheAlternateStack) {
  EXPECT_EQ(live_in("nest"), std::pair(size_t{1}, size_t{0}));
}

TEST(LiveContexts, AreSeenOnACoroutineOfALargeMapping) {
  EXPECT_EQ(live_in("other"), std::pair(size_t{1}, size_t{0}));
}

TEST(LiveContexts, EndWithTheHandlerAlthoughItsFrameIsStillThere) {
  EXPECT_EQ(live_in("beside"), std::pair(size_t{0}, size_t{0}));
}

/// As AreSeenOnACoroutineOfALargeMapping, but the thread has just gone to a private stack: further
/// up the same large mapping, where nothing is.
TEST(LiveContexts, AreSeenFromAPrivateStackToo) {
  Program program = Program::start({build_program("frames.c", "cc -O1"), "other"});
  ASSERT_TRUE(program.ready());
  auto done = look(program.pid(), [&](StoppedProcess& process) {
    const AddressRange text = text_of(process);
    const os::Registers before = process.threads()[0].registers;
    const TargetAddr start((before.rsp & ~uint64_t{0xfff}) + (16 << 20));
    const AddressRange pool{start, start + abi::kPrivatePoolBytes};
    const uint64_t owner_at =
        abi::private_control_offset(0) + offsetof(abi::PrivateStackControl, owner_sp);
    ASSERT_TRUE(process.memory().write(start + owner_at,
                                       {reinterpret_cast<const uint8_t*>(&before.rsp), 8}));
    os::Registers inside = before;
    inside.rsp = start.value + abi::private_control_offset(0) - 512;
    ASSERT_TRUE(process.set_registers(0, inside));
    EXPECT_EQ(live_contexts(process, {&text, 1}).found.size(), 0u) << "without the pool";
    const LiveContexts live = live_contexts(process, {&text, 1}, pool);
    EXPECT_EQ(live.found.size(), 1u);
    EXPECT_EQ(live.incomplete.size(), 0u);
    ASSERT_TRUE(process.set_registers(0, before));
  });
  ASSERT_TRUE(done) << done.error().message;
  EXPECT_EQ(program.finish(), "exit-success");
}

TEST(LiveContexts, AreFewInAGoProgramWithALargeHeap) {
  const std::string go = build_program("heap.go", "go build");
  if (go.empty()) GTEST_SKIP() << "no Go compiler";
  Program program = Program::start({go});
  ASSERT_TRUE(program.ready());
  int without = 0;
  for (int i = 0; i < 30; ++i) {
    auto done = look(program.pid(), [&](StoppedProcess& process) {
      const LiveContexts live = live_contexts(process, [](TargetAddr) { return true; });
      EXPECT_TRUE(live.incomplete.empty());
      EXPECT_LE(live.found.size(), process.threads().size());
      without += live.found.empty() ? 1 : 0;
      if (i == 29)
        RecordProperty("stopped_us", static_cast<int>(process.stopped_for().count() / 1000));
    });
    ASSERT_TRUE(done) << done.error().message;
    ::usleep(1000);
  }
  // Handlers that really run at that moment are rare.
  EXPECT_GE(without, 15);
  EXPECT_EQ(program.finish(), "exit-success");
}

TEST(ThreadsInside, ClearsRestartableSequencesIntoARange) {
  Program program = Program::start({build_program("waiter.c", "cc -O1"), "read"});
  ASSERT_TRUE(program.ready());
  auto done = look(program.pid(), [&](StoppedProcess& process) {
    auto state = process.rseq(0);
    ASSERT_TRUE(state);
    if (state->config.area == 0) GTEST_SKIP() << "this libc registers no rseq";
    // A descriptor on the red zone's far side, with code at a made-up place.
    struct {
      uint32_t version, flags;
      uint64_t start, length, abort;
    } descriptor{0, 0, 0x10000, 16, 0x10100};
    const TargetAddr at(((process.threads()[0].registers.rsp - 4096) & ~63ull));
    ASSERT_TRUE(
        process.memory().write(at, {reinterpret_cast<uint8_t*>(&descriptor), sizeof descriptor}));
    ASSERT_TRUE(process.memory().write(TargetAddr(state->config.area + 8),
                                       {reinterpret_cast<const uint8_t*>(&at), 8}));
    const AddressRange other{TargetAddr(0x20000), TargetAddr(0x30000)},
        code{TargetAddr(0x10000), TargetAddr(0x11000)};
    EXPECT_EQ(*clear_rseq_into(process, {&other, 1}), 0u);
    EXPECT_EQ(*clear_rseq_into(process, {&code, 1}), 1u);
    EXPECT_EQ(process.rseq(0)->descriptor, 0u);
  });
  ASSERT_TRUE(done) << done.error().message;
  EXPECT_EQ(program.finish(), "exit-success");
}

}  // namespace
}  // namespace spile::target
