// Signals that the library handles stand in front of the program's own handlers, which are called as the kernel would call
// them. Each in a process of its own: what is installed stays.
#include <gtest/gtest.h>
#include <spile/detail/kprobe_5_4.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <string>

#include "probed.h"

namespace {

struct Trap : spile_kprobe {
  long hits = 0;
  Trap() : spile_kprobe{} {
    addr = reinterpret_cast<unsigned char*>(&probed_tight) + 15;
    options = SPILE_ALLOW_TRAP;
    pre_handler = [](spile_kprobe* p, spile_regs*) { return ++static_cast<Trap*>(p)->hits, 0; };
  }
  int add() { return spile_register_kprobe(this); }
  bool is_hit() {
    hits = 0;
    return probed_tight(3) == 3 && hits == 1 && (flags & SPILE_FLAG_OPTIMIZED) == 0;
  }
};

/// The exit status of a child that runs `work`, or minus the signal that has ended it.
template <class F>
int in_child(F work) {
  const pid_t child = ::fork();
  if (child == 0) ::_exit(work());
  int status = 0;
  ::waitpid(child, &status, 0);
  return WIFSIGNALED(status) ? -WTERMSIG(status) : WEXITSTATUS(status);
}

void handle(int signal, void (*handler)(int), int flags, int blocks = 0) {
  struct sigaction action = {};
  action.sa_handler = handler;
  action.sa_flags = flags;
  if (blocks != 0) sigaddset(&action.sa_mask, blocks);
  ::sigaction(signal, &action, nullptr);
}

bool is_blocked(int signal) {
  sigset_t now;
  ::pthread_sigmask(SIG_SETMASK, nullptr, &now);
  return sigismember(&now, signal) == 1;
}

int g_calls = 0;
bool g_own_blocked = false, g_other_blocked = false;
void look(int signal) {
  ++g_calls;
  g_own_blocked = is_blocked(signal);
  g_other_blocked = is_blocked(SIGUSR1);
}
void own_trap() { __asm__ volatile("int3"); }

TEST(Signals, TheProgramsHandlerHasItsMask) {
  EXPECT_EQ(in_child([] {
    handle(SIGTRAP, look, 0, SIGUSR1);
    Trap p;
    if (p.add() != 0 || !p.is_hit()) return 1;
    own_trap();
    if (g_calls != 1 || !g_own_blocked || !g_other_blocked) return 2;
    return is_blocked(SIGTRAP) || is_blocked(SIGUSR1) || !p.is_hit() ? 3 : 0;
  }), 0);
}

TEST(Signals, AHandlerThatWantsToBeOpenIs) {
  EXPECT_EQ(in_child([] {
    handle(SIGTRAP, look, SA_NODEFER);
    Trap p;
    if (p.add() != 0 || !p.is_hit()) return 1;
    own_trap();
    return g_calls != 1 || g_own_blocked || g_other_blocked ? 2 : 0;
  }), 0);
}

TEST(Signals, AHandlerForOneTimeIsCalledOnce) {
  EXPECT_EQ(in_child([] {
    handle(SIGTRAP, look, static_cast<int>(SA_RESETHAND));
    Trap p;
    if (p.add() != 0 || !p.is_hit()) return 1;
    own_trap();
    if (g_calls != 1 || !p.is_hit()) return 2;
    own_trap();
    return 3;
  }), -SIGTRAP);
}

TEST(Signals, AnExceptionIsNotIgnored) {
  EXPECT_EQ(in_child([] {
    handle(SIGTRAP, SIG_IGN, 0);
    Trap p;
    if (p.add() != 0 || !p.is_hit()) return 1;
    ::raise(SIGTRAP);  // is
    own_trap();
    return 2;
  }), -SIGTRAP);
}

// ---- handlers that come later ----

unsigned long g_resume = 0;
long g_faults = 0;

/// Its handler reads at 0, and goes on behind that.
spile_kprobe_5_4 faulty() {
  spile_kprobe_5_4 p = {};
  p.symbol_name = "probed_sum";
  p.pre_handler = [](spile_kprobe_5_4*, spile_regs*) {
    __asm__ volatile("lea 1f(%%rip), %%rcx\n\tmov %%rcx, %0\n\txor %%ecx, %%ecx\n\tmov (%%rcx), %%rcx\n1:"
                     : "=m"(g_resume) : : "rcx", "memory");
    return 0;
  };
  p.fault_handler = [](spile_kprobe_5_4*, spile_regs* regs, int) {
    ++g_faults;
    regs->ip = g_resume;
    return 1;
  };
  return p;
}

TEST(Signals, AProbeIsRefusedWhereItsFaultHandlerWouldNotBeCalled) {
  EXPECT_EQ(in_child([] {
    auto first = faulty(), second = faulty();
    if (spile_register_kprobe_5_4(&first) != 0 || probed_sum(10, 20) != 137 || g_faults != 1) return 1;
    handle(SIGSEGV, look, 0);
    if (spile_register_kprobe_5_4(&second) != -EBUSY) return 2;
    if (std::string(spile_error_text()).find("SEGV") == std::string::npos) return 3;
    handle(SIGSEGV, SIG_DFL, 0);  // nobody is in the way any more
    if (spile_register_kprobe_5_4(&second) != 0 || probed_sum(10, 20) != 137 || g_faults != 3) return 4;
    return 0;
  }), 0);
}

}  // namespace
