#include <execinfo.h>
#include <gtest/gtest.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <spile/probes.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstring>
#include <fstream>
#include <iterator>
#include <string>
#include <thread>
#include <vector>

#include "probed.h"

namespace {

/// A registration that undoes itself and counts.
struct Probe : spile_kprobe {
  std::atomic<long> hits{0}, behind{0};
  long first_argument = 0, ip = 0, ip_behind = 0;

  explicit Probe(const char* symbol, unsigned at = 0) : spile_kprobe{} {
    symbol_name = symbol;
    offset = at;
    pre_handler = [](spile_kprobe* p, spile_regs* regs) {
      auto* self = static_cast<Probe*>(p);
      ++self->hits;
      self->first_argument = static_cast<long>(spile_argument(regs, 0));
      self->ip = static_cast<long>(regs->ip);
      return 0;
    };
  }
  ~Probe() {
    if (internal != nullptr) spile_unregister_kprobe(this);
  }
  int add() { return spile_register_kprobe(this); }
  int remove() { return spile_unregister_kprobe(this); }
  void follow() {
    post_handler = [](spile_kprobe* p, spile_regs* regs, unsigned long) {
      auto* self = static_cast<Probe*>(p);
      ++self->behind;
      self->ip_behind = static_cast<long>(regs->ip);
    };
  }
};

std::string bytes_of(const void* at, size_t n = 16) { return std::string(static_cast<const char*>(at), n); }

TEST(Kprobe, RunsItsHandlerAndLeavesTheTextAsItWas) {
  const std::string before = bytes_of(reinterpret_cast<void*>(&probed_sum));
  Probe p("probed_sum");
  ASSERT_EQ(p.add(), 0) << spile_error_text();
  EXPECT_NE(bytes_of(reinterpret_cast<void*>(&probed_sum)), before);
  EXPECT_EQ(probed_sum(10, 20), 137);
  EXPECT_EQ(p.hits, 1);
  EXPECT_EQ(p.first_argument, 10);
  EXPECT_EQ(p.ip, reinterpret_cast<long>(p.addr) + 1);  // as behind a breakpoint
  ASSERT_EQ(p.remove(), 0) << spile_error_text();
  EXPECT_EQ(bytes_of(reinterpret_cast<void*>(&probed_sum)), before);
  EXPECT_EQ(probed_sum(10, 20), 137);
  EXPECT_EQ(p.hits, 1);
}

TEST(Kprobe, SeesAllArgumentsAndMayChangeThem) {
  Probe p("probed_many");
  p.pre_handler = [](spile_kprobe*, spile_regs* regs) {
    for (unsigned i = 0; i < 8; ++i) EXPECT_EQ(spile_argument(regs, i), i + 1);
    regs->di = 1000;
    return 0;
  };
  ASSERT_EQ(p.add(), 0) << spile_error_text();
  EXPECT_EQ(probed_many(1, 2, 3, 4, 5, 6, 7, 8), 1000 + 4 + 9 + 16 + 25 + 36 + 49 + 64);
}

TEST(Kprobe, KeepsVectorRegistersAndErrno) {
  Probe p("probed_doubles");
  p.pre_handler = [](spile_kprobe*, spile_regs*) {
    volatile double x[8];
    for (int i = 0; i < 8; ++i) x[i] = i * 3.25;
    EXPECT_EQ(x[7], 22.75);
    __asm__ volatile("vxorps %%ymm0,%%ymm0,%%ymm0\nvxorps %%ymm1,%%ymm1,%%ymm1\nvxorps %%ymm15,%%ymm15,%%ymm15"
                     : : : "xmm0", "xmm1", "xmm15");
    errno = EDOM;
    return 0;
  };
  ASSERT_EQ(p.add(), 0) << spile_error_text();
  errno = 0;
  EXPECT_EQ(probed_doubles(2.0, 8.0), 2.0);
  EXPECT_EQ(errno, 0);
}

TEST(Kprobe, KeepsFlagsInTheMiddleOfAFunction) {
  Probe p(nullptr);
  p.addr = const_cast<unsigned char*>(probed_flags_at);
  ASSERT_EQ(p.add(), 0) << spile_error_text();
  EXPECT_EQ(probed_flags(1, 2), 1);
  EXPECT_EQ(probed_flags(2, 1), 0);
  EXPECT_EQ(probed_flags(-5, 5), 1);
  EXPECT_EQ(p.hits, 3);
}

TEST(Kprobe, KeepsTheRedZone) {
  Probe p("probed_red_zone", 10);
  const int error = p.add();
  ASSERT_EQ(error, 0) << spile_error_text();
  EXPECT_EQ(probed_red_zone(21), 42);
  EXPECT_EQ(p.hits, 1);
}

TEST(Kprobe, RedirectsWhereThePreHandlerSaysSo) {
  Probe p("probed_sum");
  p.pre_handler = [](spile_kprobe*, spile_regs* regs) {
    spile_return_from_function(regs, 4711);
    return 1;
  };
  ASSERT_EQ(p.add(), 0) << spile_error_text();
  EXPECT_EQ(probed_sum(1, 1), 4711);
}

TEST(Kprobe, PostHandlerRunsBehindTheInstruction) {
  Probe p("probed_sum");
  p.follow();
  ASSERT_EQ(p.add(), 0) << spile_error_text();
  EXPECT_EQ(probed_sum(10, 20), 137);
  EXPECT_EQ(p.hits, 1);
  EXPECT_EQ(p.behind, 1);
  EXPECT_GT(p.ip_behind, reinterpret_cast<long>(p.addr));
  EXPECT_LE(p.ip_behind, reinterpret_cast<long>(p.addr) + 15);
}

std::vector<int> g_order;
TEST(Kprobe, SeveralAtOnePlaceRunNewestFirstAndStopAtTheOneThatRedirects) {
  Probe a("probed_sum"), b("probed_sum"), c("probed_sum");
  a.pre_handler = [](spile_kprobe*, spile_regs*) { g_order.push_back(1); return 0; };
  b.pre_handler = [](spile_kprobe*, spile_regs* regs) {
    g_order.push_back(2);
    if (regs->di != 99) return 0;
    spile_return_from_function(regs, 5);
    return 1;
  };
  c.pre_handler = [](spile_kprobe*, spile_regs*) { g_order.push_back(3); return 0; };
  spile_kprobe* all[] = {&a, &b, &c};
  ASSERT_EQ(spile_register_kprobes(all, 3), 0) << spile_error_text();
  g_order.clear();
  EXPECT_EQ(probed_sum(10, 20), 137);
  EXPECT_EQ(g_order, (std::vector<int>{3, 2, 1}));
  g_order.clear();
  EXPECT_EQ(probed_sum(99, 20), 5);
  EXPECT_EQ(g_order, (std::vector<int>{3, 2}));
  g_order.clear();
  ASSERT_EQ(c.remove(), 0);
  EXPECT_EQ(probed_sum(10, 20), 137);
  EXPECT_EQ(g_order, (std::vector<int>{2, 1}));
}

TEST(Kprobe, DisableAndEnable) {
  Probe p("probed_sum");
  p.flags = SPILE_FLAG_DISABLED;
  const std::string before = bytes_of(reinterpret_cast<void*>(&probed_sum));
  ASSERT_EQ(p.add(), 0) << spile_error_text();
  EXPECT_EQ(bytes_of(reinterpret_cast<void*>(&probed_sum)), before);
  probed_sum(1, 1);
  EXPECT_EQ(p.hits, 0);
  ASSERT_EQ(spile_enable_kprobe(&p), 0) << spile_error_text();
  probed_sum(1, 1);
  EXPECT_EQ(p.hits, 1);
  ASSERT_EQ(spile_disable_kprobe(&p), 0);
  probed_sum(1, 1);
  EXPECT_EQ(p.hits, 1);
  EXPECT_EQ(bytes_of(reinterpret_cast<void*>(&probed_sum)), before);
}

TEST(Kprobe, AProbeInsideAHandlerIsMissedAndTheProgramGoesOn) {
  Probe outer("probed_outer"), inner("probed_inner");
  outer.pre_handler = [](spile_kprobe* p, spile_regs*) {
    ++static_cast<Probe*>(p)->hits;
    EXPECT_EQ(probed_inner(2), 35);
    return 0;
  };
  ASSERT_EQ(outer.add(), 0) << spile_error_text();
  ASSERT_EQ(inner.add(), 0) << spile_error_text();
  EXPECT_EQ(probed_outer(1), 49);
  EXPECT_EQ(outer.hits, 1);
  EXPECT_EQ(inner.hits, 1);
  EXPECT_EQ(inner.nmissed, 1u);
}

TEST(Kprobe, EntryNopsAreUsedBehindTheEndbr) {
  Probe p("probed_nops");
  ASSERT_EQ(p.add(), 0) << spile_error_text();
  EXPECT_EQ(reinterpret_cast<long>(p.addr), reinterpret_cast<long>(&probed_nops) + 4);
  EXPECT_TRUE(p.flags & SPILE_FLAG_FTRACE);
  EXPECT_TRUE(p.flags & SPILE_FLAG_ON_FUNC_ENTRY);
  probed_nops();
  EXPECT_EQ(p.hits, 1);
}

TEST(Kprobe, AnswersAsTheKernelDoes) {
  Probe unknown("no_such_function_here");
  EXPECT_EQ(unknown.add(), -ENOENT);
  EXPECT_NE(std::string(spile_error_text()).find("no_such_function_here"), std::string::npos);
  Probe neither(nullptr);
  EXPECT_EQ(neither.add(), -EINVAL);
  Probe both("probed_sum");
  both.addr = reinterpret_cast<void*>(&probed_sum);
  EXPECT_EQ(both.add(), -EINVAL);
  Probe inside("probed_flags", 3);  // in the middle of mov %rdi,%rdx
  EXPECT_EQ(inside.add(), -EILSEQ) << spile_error_text();
  static long data[4];
  Probe no_code(nullptr);
  no_code.addr = data;
  EXPECT_EQ(no_code.add(), -EINVAL);
  Probe twice("probed_sum");
  ASSERT_EQ(twice.add(), 0) << spile_error_text();
  EXPECT_EQ(twice.add(), -EINVAL);
  EXPECT_EQ(twice.remove(), 0);
  EXPECT_EQ(twice.remove(), -EINVAL);
  Probe own(nullptr);
  own.addr = reinterpret_cast<void*>(&spile_enter);
  EXPECT_EQ(own.add(), -EINVAL);
}

TEST(Kprobe, AnErrorInTheMiddleOfAnArrayTakesTheOthersBack) {
  Probe good("probed_sum"), bad("no_such_function_here");
  spile_kprobe* all[] = {&good, &bad};
  const std::string before = bytes_of(reinterpret_cast<void*>(&probed_sum));
  EXPECT_EQ(spile_register_kprobes(all, 2), -ENOENT);
  EXPECT_EQ(bytes_of(reinterpret_cast<void*>(&probed_sum)), before);
  EXPECT_EQ(good.internal, nullptr);
}

TEST(Kprobe, UnregisterInsideAHandlerAnswersBusy) {
  static int answer = 0;
  Probe p("probed_sum");
  p.pre_handler = [](spile_kprobe* self, spile_regs*) {
    answer = spile_unregister_kprobe(self);
    return 0;
  };
  ASSERT_EQ(p.add(), 0) << spile_error_text();
  probed_sum(1, 1);
  EXPECT_EQ(answer, -EBUSY);
  EXPECT_EQ(p.remove(), 0);
}

TEST(Kprobe, ABacktraceInAHandlerShowsTheProbedFunctionAndItsCaller) {
  static void* frames[32];
  static int count = 0;
  ::backtrace(frames, 1);  // loads what it needs
  Probe p("probed_inner");
  p.pre_handler = [](spile_kprobe*, spile_regs*) {
    count = ::backtrace(frames, 32);
    return 0;
  };
  ASSERT_EQ(p.add(), 0) << spile_error_text();
  probed_outer(1);
  const auto inside = [](void* f, auto* function) {
    const long d = static_cast<char*>(f) - reinterpret_cast<char*>(function);
    return d >= 0 && d < 64;
  };
  int inner = -1, outer = -1;
  for (int i = 0; i < count; ++i) {
    if (inner < 0 && inside(frames[i], &probed_inner)) inner = i;
    if (outer < 0 && inside(frames[i], &probed_outer)) outer = i;
  }
  EXPECT_GE(inner, 0);
  EXPECT_EQ(outer, inner + 1);
}

TEST(Kprobe, WaitsForNobodyWhoStaysInTheBytesToBeChanged) {
  int ends[2];
  ASSERT_EQ(::pipe(ends), 0);
  std::atomic<pid_t> tid{0};
  char byte = 0;
  long got = 0;
  std::thread reader([&] {
    tid = ::gettid();
    got = probed_read(ends[0], &byte, 1);
  });
  // Blocked in the system call: the kernel will go back to its first byte to start it again.
  for (std::string state; state.find("S (sleeping)") == std::string::npos;) {
    if (tid == 0) continue;
    std::ifstream status("/proc/self/task/" + std::to_string(tid) + "/status");
    state.assign(std::istreambuf_iterator<char>(status), {});
  }
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  Probe p("probed_read");
  EXPECT_EQ(p.add(), -EBUSY);
  EXPECT_NE(std::string(spile_error_text()).find("stays inside"), std::string::npos) << spile_error_text();
  ASSERT_EQ(::write(ends[1], "x", 1), 1);
  reader.join();
  EXPECT_EQ(got, 1);
  ASSERT_EQ(p.add(), 0) << spile_error_text();
  ASSERT_EQ(::write(ends[1], "y", 1), 1);
  EXPECT_EQ(probed_read(ends[0], &byte, 1), 1);
  EXPECT_EQ(byte, 'y');
  EXPECT_EQ(p.hits, 1);
  ::close(ends[0]);
  ::close(ends[1]);
}

TEST(Kprobe, TwoJumpsNeverShareBytes) {
  Probe entry("probed_flags"), second("probed_flags", 2);
  ASSERT_EQ(entry.add(), 0) << spile_error_text();
  EXPECT_EQ(second.add(), -EBUSY);
  EXPECT_EQ(probed_flags(1, 2), 1);
  ASSERT_EQ(entry.remove(), 0);
  ASSERT_EQ(second.add(), 0) << spile_error_text();
  EXPECT_EQ(entry.add(), -EINVAL);  // addr is set by now, and symbol_name is, too
  entry.addr = nullptr;
  EXPECT_EQ(entry.add(), -EBUSY);
  entry.options = SPILE_ALLOW_TRAP;
  ASSERT_EQ(entry.add(), 0) << spile_error_text();
  entry.hits = 0;
  EXPECT_EQ(probed_flags(1, 2), 1);
  EXPECT_EQ(probed_flags(2, 1), 0);
  EXPECT_EQ(entry.hits, 2);
  EXPECT_EQ(second.hits, 2);
}

/// Not as a constant: code that names the inside of an instruction's window is a reason not to patch it.
const volatile unsigned char* tight_at() {
  static char* volatile function = reinterpret_cast<char*>(&probed_tight);
  return reinterpret_cast<unsigned char*>(function + 15);
}

/// One place where no jump fits: what follows the first instruction is jumped to, and so is that itself.
struct Tight : Probe {
  Tight() : Probe(nullptr) {
    addr = const_cast<unsigned char*>(tight_at());
    options = SPILE_ALLOW_TRAP;
  }
};

TEST(Breakpoint, IsTakenOnlyWhereItIsAllowed) {
  Tight trap;
  trap.options = 0;
  ASSERT_EQ(trap.add(), -EOPNOTSUPP);
  EXPECT_NE(std::string(spile_error_text()).find("SPILE_ALLOW_TRAP"), std::string::npos) << spile_error_text();
  EXPECT_EQ(*tight_at(), 0x31);
  trap.options = SPILE_ALLOW_TRAP;
  ASSERT_EQ(trap.add(), 0) << spile_error_text();
  EXPECT_EQ(*tight_at(), 0xcc);
  EXPECT_FALSE(trap.flags & SPILE_FLAG_OPTIMIZED);
  EXPECT_EQ(probed_tight(5), 5);
  EXPECT_EQ(probed_tight(7), 7);
  EXPECT_EQ(trap.hits, 2);
  EXPECT_EQ(trap.ip, reinterpret_cast<long>(tight_at()) + 1);
  ASSERT_EQ(trap.remove(), 0);
  EXPECT_EQ(*tight_at(), 0x31);
  EXPECT_EQ(probed_tight(5), 5);
  EXPECT_EQ(trap.hits, 2);
}

TEST(Breakpoint, MayHaveAPostHandlerAndARedirection) {
  Tight trap;
  trap.follow();
  ASSERT_EQ(trap.add(), 0) << spile_error_text();
  EXPECT_EQ(probed_tight(9), 9);
  EXPECT_EQ(trap.behind, 1);
  EXPECT_EQ(trap.ip_behind, reinterpret_cast<long>(tight_at()) + 2);
  ASSERT_EQ(trap.remove(), 0);
  Tight elsewhere;
  elsewhere.pre_handler = [](spile_kprobe*, spile_regs* regs) {
    spile_return_from_function(regs, 31);
    return 1;
  };
  ASSERT_EQ(elsewhere.add(), 0) << spile_error_text();
  EXPECT_EQ(probed_tight(9), 31);
}

TEST(Breakpoint, ComesAndGoesUnderRunningThreads) {
  std::atomic<bool> stop{false};
  std::atomic<long> wrong{0}, running{0};
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&] {
      ++running;
      while (!stop) wrong += probed_tight(3) != 3;
    });
  }
  // A thread begins with all signals blocked.
  while (running < 4) std::this_thread::yield();
  long hits = 0;
  for (int i = 0; i < 60; ++i) {
    Tight trap;
    ASSERT_EQ(trap.add(), 0) << spile_error_text();
    std::this_thread::yield();
    ASSERT_EQ(trap.remove(), 0);
    const long at_end = trap.hits;
    std::this_thread::yield();
    EXPECT_EQ(trap.hits, at_end);
    hits += at_end;
  }
  stop = true;
  for (auto& t : threads) t.join();
  EXPECT_EQ(wrong, 0);
  EXPECT_GT(hits, 0);
}

TEST(Breakpoint, IsRefusedWhereAThreadBlocksSigtrap) {
  sigset_t set, before;
  sigemptyset(&set);
  sigaddset(&set, SIGTRAP);
  ::pthread_sigmask(SIG_BLOCK, &set, &before);
  Tight trap;
  EXPECT_EQ(trap.add(), -EOPNOTSUPP);
  EXPECT_NE(std::string(spile_error_text()).find("SIGTRAP blocked"), std::string::npos) << spile_error_text();
  ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
  EXPECT_EQ(trap.add(), 0) << spile_error_text();
}

TEST(Breakpoint, IsRefusedWhereTheProgramHasTakenSigtrapBack) {
  {
    Tight trap;
    ASSERT_EQ(trap.add(), 0) << spile_error_text();
  }
  struct sigaction own = {}, before = {};
  own.sa_handler = [](int) {};
  ::sigaction(SIGTRAP, &own, &before);
  Tight trap;
  EXPECT_EQ(trap.add(), -EBUSY);
  ::sigaction(SIGTRAP, &before, nullptr);
}

std::atomic<long> g_signals{0};
void on_signal(int) {
  probed_sum(1, 1);
  ++g_signals;
}

/// Eight threads run what is probed, signals come in, and nothing runs behind an unregister.
TEST(Kprobe, ComesAndGoesUnderRunningThreadsAndSignals) {
  std::atomic<bool> stop{false};
  std::atomic<long> wrong{0}, calls{0};
  struct sigaction action = {};
  action.sa_handler = on_signal;
  action.sa_flags = SA_RESTART;
  ::sigaction(SIGUSR1, &action, nullptr);
  std::vector<std::thread> threads;
  for (int i = 0; i < 8; ++i) {
    threads.emplace_back([&, i] {
      for (long n = 0; !stop; ++n) {
        wrong += probed_sum(n, i) != n * 3 + i * 5 + 7;
        wrong += probed_branches(7) != 248;
        if (n % 1000 == 0) ::pthread_kill(::pthread_self(), SIGUSR1);
        ++calls;
      }
    });
  }
  struct Alive {
    std::atomic<bool> registered{true};
    std::atomic<long> late{0}, hits{0};
  };
  long hits = 0, late = 0;
  const char* rounds_text = ::getenv("SPILE_LIBRARY_CYCLES");
  const long rounds = rounds_text != nullptr ? std::atol(rounds_text) : 24;
  for (long i = 0; i < rounds; ++i) {
    Alive alive;
    Probe p(i % 2 == 0 ? "probed_sum" : "probed_branches");
    p.data = &alive;
    p.pre_handler = [](spile_kprobe* self, spile_regs*) {
      auto* a = static_cast<Alive*>(self->data);
      ++a->hits;
      a->late += !a->registered;
      return 0;
    };
    ASSERT_EQ(p.add(), 0) << spile_error_text();
    std::this_thread::sleep_for(std::chrono::microseconds(500));
    ASSERT_EQ(p.remove(), 0) << spile_error_text();
    alive.registered = false;
    hits += alive.hits;
    late += alive.late;
  }
  stop = true;
  for (auto& t : threads) t.join();
  EXPECT_EQ(wrong, 0);
  EXPECT_EQ(late, 0);
  EXPECT_GT(hits, 24);
  EXPECT_GT(g_signals, 0);
}

TEST(Kprobe, AForkedChildHasItsOwn) {
  Probe p("probed_sum");
  ASSERT_EQ(p.add(), 0) << spile_error_text();
  const pid_t child = ::fork();
  if (child == 0) {
    ::alarm(20);
    probed_sum(1, 1);
    bool good = p.hits == 1 && p.remove() == 0;
    probed_sum(1, 1);
    good = good && p.hits == 1;
    Probe other("probed_branches");
    good = good && other.add() == 0 && probed_branches(7) == 248 && other.hits == 1 && other.remove() == 0;
    ::_exit(good ? 0 : 1);
  }
  int status = -1;
  ::waitpid(child, &status, 0);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << status;
  EXPECT_EQ(p.hits, 0);
  EXPECT_EQ(probed_sum(10, 20), 137);
  EXPECT_EQ(p.hits, 1);
}

/// Detours lie in memory that parent and child share: what one makes must not be where the other's are.
TEST(Kprobe, ParentAndChildRegisterAfterAForkWithoutHarmToEachOther) {
  Probe before("probed_sum");  // there is code memory
  ASSERT_EQ(before.add(), 0) << spile_error_text();
  int go[2], done[2];
  ASSERT_EQ(::pipe(go), 0);
  ASSERT_EQ(::pipe(done), 0);
  const pid_t child = ::fork();
  char byte = 0;
  if (child == 0) {
    ::alarm(20);
    Probe own("probed_only_by_a_child");
    bool good = own.add() == 0 && probed_only_by_a_child(2) == 118;
    good = ::write(done[1], "c", 1) == 1 && ::read(go[0], &byte, 1) == 1 && good;
    good = good && probed_only_by_a_child(3) == 127 && own.hits == 2 && own.first_argument == 3;
    ::_exit(good ? 0 : 1);
  }
  ASSERT_EQ(::read(done[0], &byte, 1), 1);
  Probe own("probed_only_by_a_parent");
  ASSERT_EQ(own.add(), 0) << spile_error_text();
  EXPECT_EQ(probed_only_by_a_parent(1), 8640);
  ASSERT_EQ(::write(go[1], "p", 1), 1);
  int status = -1;
  ::waitpid(child, &status, 0);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << status;
  EXPECT_EQ(own.hits, 1);
  for (const int fd : {go[0], go[1], done[0], done[1]}) ::close(fd);
}

TEST(Kprobe, IsRefusedUnderSeccomp) {
  const pid_t child = ::fork();
  if (child == 0) {
    ::alarm(20);
    sock_filter allow[] = {{BPF_RET | BPF_K, 0, 0, SECCOMP_RET_ALLOW}};
    sock_fprog program = {1, allow};
    ::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    bool good = ::prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0;
    Probe p("probed_sum");
    good = good && p.add() == -EPERM && std::string(spile_error_text()).find("seccomp") != std::string::npos;
    ::_exit(good && probed_sum(10, 20) == 137 ? 0 : 1);
  }
  int status = -1;
  ::waitpid(child, &status, 0);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << status;
}

/// Without privileges, as most programs run.
TEST(Kprobe, WorksForAnOrdinaryUser) {
  if (::getuid() != 0) GTEST_SKIP() << "the other tests show it";
  const pid_t child = ::fork();
  if (child == 0) {
    ::alarm(20);
    bool good = ::setresgid(65534, 65534, 65534) == 0 && ::setresuid(65534, 65534, 65534) == 0;
    Probe dumpable("probed_sum");
    good = good && dumpable.add() != 0;  // changing the user has made it undumpable
    ::prctl(PR_SET_DUMPABLE, 1);
    Probe p("probed_sum");
    good = good && p.add() == 0 && probed_sum(10, 20) == 137 && p.hits == 1 && p.remove() == 0;
    if (!good) std::fprintf(stderr, "%s\n", spile_error_text());
    ::_exit(good ? 0 : 1);
  }
  int status = -1;
  ::waitpid(child, &status, 0);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << status;
}

TEST(Kprobe, LeavesNoChildForWaitAndNoDescriptor) {
  const auto descriptors = [] {
    int n = 0;
    for (int fd = 0; fd < 256; ++fd) n += ::access(("/proc/self/fd/" + std::to_string(fd)).c_str(), F_OK) == 0;
    return n;
  };
  Probe warm("probed_loop");
  ASSERT_EQ(warm.add(), 0) << spile_error_text();
  const int before = descriptors();
  Probe p("probed_sum");
  ASSERT_EQ(p.add(), 0);
  ASSERT_EQ(p.remove(), 0);
  EXPECT_EQ(descriptors(), before);
  EXPECT_EQ(::waitpid(-1, nullptr, WNOHANG), -1);
  EXPECT_EQ(errno, ECHILD);
}

TEST(Kprobe, IsListedAsTheKernelDoes) {
  Probe p("probed_sum");
  ASSERT_EQ(p.add(), 0) << spile_error_text();
  char text[4096];
  spile_list_probes(text, sizeof text);
  const std::string list(text);
  EXPECT_NE(list.find("  k  probed_sum+0x"), std::string::npos) << list;
  EXPECT_NE(list.find("[OPTIMIZED]"), std::string::npos) << list;
}

}  // namespace
