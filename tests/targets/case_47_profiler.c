// Case 47: a profiler's timer interrupts two threads at 10 kHz each, and its handler calls probed functions: the one that may be
// interrupted in its own probe, and one of its own. The handler reads the interrupted registers, as profilers do. Mode `backtrace`:
// it unwinds the stack too, wherever the signal came.
#define _GNU_SOURCE
#include <execinfo.h>
#include <pthread.h>
#include <signal.h>
#include <sys/syscall.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>

#include "target.h"

enum { kThreads = 2 };
static __thread uint64_t samples;
static uint64_t total_samples;
static bool unwinds;

PROBED uint64_t probe_me(uint64_t a, uint64_t b) { return (a ^ b) * 0x9e3779b97f4a7c15 + b; }
PROBED uint64_t probe_me_sample(const greg_t *registers) { return (uint64_t)registers[REG_RIP] ^ (uint64_t)registers[REG_RSP]; }

static void on_tick(int number, siginfo_t *info, void *context) {
  (void)number, (void)info;
  const greg_t *registers = ((const ucontext_t *)context)->uc_mcontext.gregs;
  samples++;
  if (unwinds) {
    void *frames[64];
    TARGET_CHECK(backtrace(frames, 64) >= 1);
  }
  target_count(2);
  TARGET_CHECK(probe_me_sample(registers) == ((uint64_t)registers[REG_RIP] ^ (uint64_t)registers[REG_RSP]));
  TARGET_CHECK(probe_me(samples, 3) == (samples ^ 3) * 0x9e3779b97f4a7c15 + 3);
}

static void *work(void *argument) {
  struct sigevent event = {.sigev_notify = SIGEV_THREAD_ID, .sigev_signo = SIGPROF};
  event._sigev_un._tid = (pid_t)syscall(SYS_gettid);
  const struct itimerspec every = {{0, 100000}, {0, 100000}};
  timer_t timer;
  TARGET_CHECK(timer_create(CLOCK_MONOTONIC, &event, &timer) == 0 && timer_settime(timer, 0, &every, NULL) == 0);
  uint64_t n = (uintptr_t)argument, calls = 0;
  for (long round = 0; target_more(round); round++)
    for (int i = 0; i < 1000; i++, calls++) {
      const uint64_t want = (n ^ calls) * 0x9e3779b97f4a7c15 + calls;
      n = probe_me(n, calls);
      TARGET_CHECK(n == want);
    }
  timer_delete(timer);
  target_count(calls);
  __atomic_fetch_add(&total_samples, samples, __ATOMIC_RELAXED);
  return NULL;
}

int main(int argc, char **argv) {
  pthread_t threads[kThreads];
  target_begin(argc, argv, 4000, NULL);
  unwinds = target_mode_is("backtrace");
  void *frames[4];
  TARGET_CHECK(backtrace(frames, 4) > 0);  // loads what it needs outside of a handler
  const struct sigaction action = {.sa_sigaction = on_tick, .sa_flags = SA_SIGINFO | SA_RESTART};
  TARGET_CHECK(sigaction(SIGPROF, &action, NULL) == 0);
  target_ready();
  for (long i = 0; i < kThreads; i++) TARGET_CHECK(pthread_create(&threads[i], NULL, work, (void *)(intptr_t)(i + 1)) == 0);
  for (int i = 0; i < kThreads; i++) pthread_join(threads[i], NULL);
  TARGET_CHECK(total_samples > 10);
  return target_end();
}
