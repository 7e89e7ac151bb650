// Case 52: a program with its own use of SIGTRAP. Modes: `blocked`, `ignored`, `handler` (raises int3 itself and expects its
// own handler and nothing else), `sigwait`, `signalfd`, `reset` (SA_RESETHAND and SA_NODEFER for SIGSEGV and SIGILL).
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/signalfd.h>
#include <ucontext.h>
#include <unistd.h>

#include "target.h"

static volatile uint64_t traps, resets;
static int fd = -1;

PROBED uint64_t probe_me(uint64_t n) { return n * 13 + 6; }

static void on_trap(int number, siginfo_t *info, void *context) {
  (void)number, (void)info, (void)context;
  traps++;
}
static void on_illegal(int number, siginfo_t *info, void *context) {
  (void)number, (void)info;
  resets++;
  ((ucontext_t *)context)->uc_mcontext.gregs[REG_RIP] += 2;  // over ud2
}

static void set_handler(int signal_number, void (*handler)(int, siginfo_t *, void *), int flags) {
  struct sigaction action = {.sa_sigaction = handler, .sa_flags = SA_SIGINFO | flags};
  TARGET_CHECK(sigaction(signal_number, &action, NULL) == 0);
}

static void prepare(const sigset_t *trap) {
  if (target_mode_is("ignored")) {
    signal(SIGTRAP, SIG_IGN);
  } else if (target_mode_is("handler")) {
    set_handler(SIGTRAP, on_trap, 0);
  } else if (!target_mode_is("reset")) {
    TARGET_CHECK(pthread_sigmask(SIG_BLOCK, trap, NULL) == 0);
    if (target_mode_is("signalfd")) fd = signalfd(-1, trap, SFD_CLOEXEC);
  }
}

static void use_own_traps(const sigset_t *trap, uint64_t round) {
  struct signalfd_siginfo got;
  if (target_mode_is("handler")) {
    __asm__ volatile("int3");
    TARGET_CHECK(traps == round + 1);
    struct sigaction old;
    TARGET_CHECK(sigaction(SIGTRAP, NULL, &old) == 0 && old.sa_sigaction == on_trap);
  } else if (target_mode_is("sigwait")) {
    TARGET_CHECK(raise(SIGTRAP) == 0 && sigwaitinfo(trap, NULL) == SIGTRAP);
  } else if (target_mode_is("signalfd")) {
    TARGET_CHECK(raise(SIGTRAP) == 0 && read(fd, &got, sizeof got) == sizeof got && got.ssi_signo == SIGTRAP);
  } else if (target_mode_is("reset")) {
    set_handler(SIGILL, on_illegal, SA_RESETHAND | SA_NODEFER);
    __asm__ volatile("ud2");
    struct sigaction old;
    TARGET_CHECK(resets == round + 1 && sigaction(SIGILL, NULL, &old) == 0 && old.sa_handler == SIG_DFL);
  } else if (target_mode_is("ignored")) {
    TARGET_CHECK(raise(SIGTRAP) == 0);
  }
}

int main(int argc, char **argv) {
  target_begin(argc, argv, 5000, "blocked");
  sigset_t trap, pending;
  sigemptyset(&trap);
  sigaddset(&trap, SIGTRAP);
  prepare(&trap);
  target_ready();
  for (long i = 0; target_more(i); i++) {
    target_count(1);
    TARGET_CHECK(probe_me((uint64_t)i) == (uint64_t)i * 13 + 6);
    use_own_traps(&trap, (uint64_t)i);
    TARGET_CHECK(sigpending(&pending) == 0 && sigismember(&pending, SIGTRAP) == 0);
  }
  return target_end();
}
