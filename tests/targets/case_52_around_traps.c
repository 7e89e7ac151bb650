// Case 52, with int3s of spile's own in probe_me (--allow-trap): what programs do with signals around them. Modes:
//   plain         two threads call it, a timer's handler too, on an alternate stack
//   full_mask     a handler with every signal in its mask calls it; set before `ready`
//   full_mask_later, own_handler_later, block_later, default_later   what would kill, asked of the C library while probed
//   raw_block, raw_default   the same by system call, 400 ms before the next call of probe_me
//   forked        a child changes SIGTRAP's action, then calls it
//   own_int3      runs into an int3 of its own: must die of SIGTRAP, there
//   waits         does nothing for 2 s
#define _GNU_SOURCE
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#include "target.h"

enum { kAltStackBytes = 64 << 10 };
static volatile uint64_t handled;

PROBED uint64_t probe_me(uint64_t n) { return n * 13 + 6; }

static void call_it(uint64_t n) {
  target_count(1);
  TARGET_CHECK(probe_me(n) == n * 13 + 6);
}

static void on_signal(int number) {
  call_it((uint64_t)number);
  handled++;
}

static void own_trap(int number) {
  (void)number;
  handled++;
}

static void handle(int number, void (*handler)(int), bool full_mask) {
  struct sigaction action = {.sa_handler = handler, .sa_flags = SA_ONSTACK | SA_RESTART};
  if (full_mask) sigfillset(&action.sa_mask);
  TARGET_CHECK(sigaction(number, &action, NULL) == 0);
}

static void *spin(void *argument) {
  const stack_t stack = {.ss_sp = malloc(kAltStackBytes), .ss_size = kAltStackBytes};
  TARGET_CHECK(sigaltstack(&stack, NULL) == 0);
  for (long i = 0; target_more(i); i++) call_it((uint64_t)i);
  return argument;
}

static void plain(void) {
  const struct itimerval every = {{0, 300}, {0, 300}}, never = {{0, 0}, {0, 0}};
  pthread_t thread;
  TARGET_CHECK(setitimer(ITIMER_REAL, &every, NULL) == 0);
  TARGET_CHECK(pthread_create(&thread, NULL, spin, NULL) == 0);
  spin(NULL);
  pthread_join(thread, NULL);
  TARGET_CHECK(setitimer(ITIMER_REAL, &never, NULL) == 0);
}

// Who looks from outside needs a while: with the int3 in place the next call would be the end.
static void wait_without_int3(void) {
  const volatile uint8_t *code = (const volatile uint8_t *)(uintptr_t)probe_me;
  for (int i = 0; i < 2000 && *code == 0xcc; i++) usleep(10000);
}

static void change(void) {
  sigset_t trap;
  sigemptyset(&trap);
  sigaddset(&trap, SIGTRAP);
  const uint64_t raw_mask = 1u << (SIGTRAP - 1);
  const uint64_t raw_action[4] = {0};
  if (target_mode_is("full_mask_later")) {
    handle(SIGUSR1, on_signal, true);
  } else if (target_mode_is("own_handler_later")) {
    handle(SIGTRAP, own_trap, false);
  } else if (target_mode_is("block_later")) {
    TARGET_CHECK(pthread_sigmask(SIG_BLOCK, &trap, NULL) == 0);
  } else if (target_mode_is("default_later")) {
    signal(SIGTRAP, SIG_DFL);
  } else if (target_mode_is("raw_block")) {
    TARGET_CHECK(syscall(SYS_rt_sigprocmask, SIG_BLOCK, &raw_mask, NULL, 8) == 0);
    wait_without_int3();
  } else if (target_mode_is("raw_default")) {
    TARGET_CHECK(syscall(SYS_rt_sigaction, SIGTRAP, raw_action, NULL, 8) == 0);
    wait_without_int3();
  }
}

static void forked(void) {
  const pid_t child = fork();
  TARGET_CHECK(child >= 0);
  if (child == 0) {
    for (uint64_t i = 0; i < 100; i++) call_it(i);
    signal(SIGTRAP, SIG_DFL);
    for (uint64_t i = 0; i < 100; i++) call_it(i);
    _exit(0);
  }
  int status = -1;
  TARGET_CHECK(waitpid(child, &status, 0) == child && status == 0);
}

int main(int argc, char **argv) {
  target_begin(argc, argv, 3000, "plain");
  target_share_calls();
  if (target_mode_is("full_mask")) handle(SIGUSR1, on_signal, true);
  if (target_mode_is("plain")) handle(SIGALRM, on_signal, false);
  target_ready();
  if (target_mode_is("plain")) {
    plain();
    return target_end();
  }
  for (uint64_t i = 0; i < 100; i++) call_it(i);
  change();
  if (target_mode_is("forked")) forked();
  if (target_mode_is("own_int3")) __asm__ volatile("int3");
  if (target_mode_is("waits")) pause();
  for (uint64_t i = 0; i < 100; i++) call_it(i);
  if (target_mode_is("own_handler_later")) {
    __asm__ volatile("int3");
    TARGET_CHECK(handled == 1);
  }
  if (target_mode_is("full_mask") || target_mode_is("full_mask_later")) {
    raise(SIGUSR1);
    TARGET_CHECK(handled == 1);
  }
  return target_end();
}
