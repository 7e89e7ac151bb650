#include <gtest/gtest.h>
#include <pthread.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "os/affinity.h"
#include "os/memory.h"
#include "os/process.h"
#include "os/ptrace.h"
#include "os/scheduling.h"
#include "os/step.h"

namespace spile::os {
namespace {

/// A child that sleeps until it is killed.
struct Sleeper {
  Sleeper() {
    pid = ::fork();
    if (pid == 0) {
      for (;;) ::pause();
    }
    for (int i = 0; i < 1000 && read_stat(pid, pid)->state != 'S'; ++i) ::usleep(100);
  }
  ~Sleeper() {
    ::kill(pid, SIGKILL);
    ::waitpid(pid, nullptr, 0);
  }
  pid_t pid;
};

TEST(ParseMaps, ReadsEveryField) {
  auto maps = parse_maps(
      "55d0c1a0b000-55d0c1a0d000 r-xp 00002000 fe:01 1234 /usr/bin/a b (deleted)\n"
      "7ffc1000-7ffc2000 rw-s 00000000 00:00 0 \n"
      "7f0000-7f1000 ---p 00000000 00:00 0                          [stack]\n");
  ASSERT_TRUE(maps);
  ASSERT_EQ(maps->size(), 3u);
  EXPECT_EQ((*maps)[0].start.value, 0x55d0c1a0b000u);
  EXPECT_TRUE((*maps)[0].exec && (*maps)[0].read && !(*maps)[0].write && !(*maps)[0].shared);
  EXPECT_EQ((*maps)[0].offset, 0x2000u);
  EXPECT_EQ((*maps)[0].inode, 1234u);
  EXPECT_EQ((*maps)[0].path, "/usr/bin/a b");
  EXPECT_TRUE((*maps)[0].deleted);
  EXPECT_TRUE((*maps)[1].shared && (*maps)[1].path.empty());
  EXPECT_EQ((*maps)[2].path, "[stack]");
}

TEST(ParseMaps, UndoesTheKernelsEscapes) {
  auto maps = parse_maps("1000-2000 r--p 00000000 00:01 7 /a\\012b\\\n");
  ASSERT_TRUE(maps);
  EXPECT_EQ(maps->front().path, "/a\nb\\");
}

TEST(ParseMaps, RefusesWhatIsNoMap) {
  for (const char* text : {"x", "1000-2000", "2000-1000 r-xp 0 0:0 0", "1000-2000 rx 0 0:0 0",
                           "1000-2000 r-xp zz 0:0 0"}) {
    EXPECT_FALSE(parse_maps(text)) << text;
  }
}

TEST(Status, IsReadForAThreadWithAHostileName) {
  Sleeper child;
  const pid_t odd = ::fork();
  if (odd == 0) {
    ::prctl(PR_SET_NAME, "a) R 1 (b\nX:");
    for (;;) ::pause();
  }
  for (int i = 0; i < 1000 && read_stat(odd, odd)->state != 'S'; ++i) ::usleep(100);
  auto stat = read_stat(odd, odd);
  ASSERT_TRUE(stat);
  EXPECT_EQ(stat->state, 'S');
  EXPECT_GT(stat->start_time, 0u);
  auto status = read_status(odd);
  ASSERT_TRUE(status);
  EXPECT_EQ(status->tgid, odd);
  EXPECT_EQ(status->parent, ::getpid());
  EXPECT_TRUE(status->has_memory);
  ::kill(odd, SIGKILL);
  ::waitpid(odd, nullptr, 0);
  EXPECT_FALSE(read_status(odd));
}

TEST(Pidfd, TellsWhenTheProcessIsDead) {
  auto child = std::make_unique<Sleeper>();
  auto fd = open_pidfd(child->pid);
  ASSERT_TRUE(fd);
  EXPECT_TRUE(pidfd_alive(*fd));
  child.reset();
  EXPECT_FALSE(pidfd_alive(*fd));
}

TEST(ProcessMemory, ReadsAndWritesAndDiesWithTheProcess) {
  static uint64_t word = 42;
  auto child = std::make_unique<Sleeper>();
  auto memory = ProcessMemory::open(child->pid);
  ASSERT_TRUE(memory);
  const TargetAddr at(reinterpret_cast<uint64_t>(&word));
  EXPECT_EQ(*memory->read_value<uint64_t>(at), 42u);
  const uint8_t bytes[8] = {7};
  ASSERT_TRUE(memory->write(at, bytes));
  EXPECT_EQ(*memory->read_value<uint64_t>(at), 7u);
  EXPECT_EQ(word, 42u) << "our own copy";
  EXPECT_TRUE(memory->alive());
  EXPECT_EQ(memory->read_value<uint64_t>(TargetAddr(8)).error().code, ErrorCode::kNotFound);
  child.reset();
  EXPECT_FALSE(memory->alive());
  EXPECT_EQ(memory->read_value<uint64_t>(at).error().code, ErrorCode::kTargetGone);
}

TEST(Ptrace, StopsAndReleases) {
  Sleeper child;
  ASSERT_TRUE(ptrace_seize(child.pid, 0));
  ASSERT_TRUE(ptrace_interrupt(child.pid));
  auto stop = wait_stop(child.pid, Clock::now() + std::chrono::seconds(2), true);
  ASSERT_TRUE(stop && *stop);
  EXPECT_EQ((*stop)->kind, Stop::Kind::kEventStop);
  EXPECT_EQ((*stop)->signal, SIGTRAP);
  auto registers = ptrace_get_registers(child.pid);
  ASSERT_TRUE(registers);
  EXPECT_EQ(static_cast<int64_t>(registers->rax), kErestartNoHand);  // pause()
  EXPECT_TRUE(ptrace_rseq_config(child.pid));
  ASSERT_TRUE(ptrace_detach(child.pid, 0));
  EXPECT_EQ(read_status(child.pid)->tracer, 0);
}

TEST(Ptrace, WaitsNoLongerThanTold) {
  Sleeper child;
  ASSERT_TRUE(ptrace_seize(child.pid, 0));
  const auto start = Clock::now();
  auto stop = wait_stop(child.pid, start + std::chrono::milliseconds(20), true);
  ASSERT_TRUE(stop);
  EXPECT_FALSE(*stop);
  EXPECT_GE(Clock::now() - start, std::chrono::milliseconds(20));
}

TEST(Ptrace, TellsAnEndFromAStop) {
  const pid_t child = ::fork();
  if (child == 0) {
    ::pause();
    ::_exit(3);
  }
  ASSERT_TRUE(ptrace_seize(child, 0));
  ::kill(child, SIGKILL);
  auto stop = wait_stop(child, Clock::now() + std::chrono::seconds(2), true);
  ASSERT_TRUE(stop && *stop);
  EXPECT_EQ((*stop)->kind, Stop::Kind::kKilled);
  EXPECT_EQ(::waitpid(child, nullptr, 0), child) << "the zombie of a child is left to its parent";
  auto gone = peek_stop(child, true);
  ASSERT_TRUE(gone && *gone);
  EXPECT_EQ((*gone)->kind, Stop::Kind::kVanished);
}

TEST(Urgency, IsUndone) {
  for (auto raise : {&Urgency::prompt, &Urgency::real_time}) {
    const auto before = get_scheduling();
    ASSERT_TRUE(before);
    {
      const Urgency urgency = raise();
      const auto inside = get_scheduling();
      ASSERT_TRUE(inside);
      const bool differs =
          inside->policy != before->policy || inside->runtime_ns != before->runtime_ns;
      if (before->runtime_ns != 0) EXPECT_EQ(differs, urgency.active());  // Linux 6.12 tells slices
    }
    const auto after = get_scheduling();
    ASSERT_TRUE(after);
    EXPECT_EQ(after->policy, before->policy);
    EXPECT_EQ(after->runtime_ns, before->runtime_ns);
    EXPECT_EQ(after->nice, before->nice);
    EXPECT_FALSE(is_real_time());
  }
}

TEST(Urgency, LeavesAloneWhoChoseAnotherPolicy) {
  const auto before = get_scheduling();
  ASSERT_TRUE(before);
  Scheduling batch = *before;
  batch.policy = SCHED_BATCH;
  ASSERT_TRUE(set_scheduling(batch));
  EXPECT_FALSE(Urgency::prompt().active());
  ASSERT_TRUE(set_scheduling(*before));
  const Urgency first = Urgency::real_time();
  if (!first.active()) GTEST_SKIP() << "needs CAP_SYS_NICE";
  EXPECT_TRUE(is_real_time());
  EXPECT_FALSE(Urgency::real_time().active());
  EXPECT_TRUE(is_real_time());
}

TEST(CpuPin, IsUndone) {
  cpu_set_t before, after;
  ::sched_getaffinity(0, sizeof before, &before);
  {
    const CpuPin pin = CpuPin::to(::sched_getcpu());
    EXPECT_TRUE(pin.active());
    ::sched_getaffinity(0, sizeof after, &after);
    EXPECT_EQ(CPU_COUNT(&after), 1);
  }
  ::sched_getaffinity(0, sizeof after, &after);
  EXPECT_TRUE(CPU_EQUAL(&before, &after));
  EXPECT_FALSE(CpuPin::to(100000).active());
}

TEST(Step, KillsTheProcessBeforeTheGivenOperation) {
  EXPECT_EXIT(
      {
        kill_at_step(3);
        step("one");
        step("two");
        if (steps_taken() != 2) ::_exit(1);
        step("three");
        ::_exit(0);
      },
      testing::KilledBySignal(SIGKILL), "");
}

TEST(Limit, IsReadAndSet) {
  Sleeper child;
  auto limit = get_limit(child.pid, RLIMIT_NOFILE);
  ASSERT_TRUE(limit);
  ASSERT_TRUE(set_limit(child.pid, RLIMIT_NOFILE, {limit->soft - 1, limit->hard}));
  EXPECT_EQ(get_limit(child.pid, RLIMIT_NOFILE)->soft, limit->soft - 1);
}

TEST(SameMemory, TellsAForkedChildFromOurselves) {
  Sleeper child;
  EXPECT_EQ(*same_memory(::getpid(), child.pid), false);
  EXPECT_EQ(*same_memory(child.pid, child.pid), true);
}

}  // namespace
}  // namespace spile::os
