// Case 43: threads sit inside the window of the probed function when the probe is set and when it is removed.
// Mode `syscall`: blocked in the kernel, the instruction pointer inside the window. Mode `frame`: inside a signal handler,
// the address inside the window is in the signal frame on the stack. They are let go only after the work.
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <string.h>
#include <ucontext.h>
#include <unistd.h>

#include "target.h"

enum { kTrapFlag = 0x100, kSteps = 4, kReads = 4, kReadThenNext = 3 };
typedef long (*reader)(int, void *, long);
long probe_me_read_2(int, void *, long), probe_me_read_3(int, void *, long), probe_me_read_4(int, void *, long);
long probe_me_read_then_next(int, void *, long);
int probe_me_steps(int);
long call_read(reader fn, int fd, void *buffer);
long call_with_trap_flag(int (*fn)(int), int value);

static const reader kReaders[kReads] = {probe_me_read_2, probe_me_read_3, probe_me_read_4, probe_me_read_then_next};
static const int kStepOffsets[kSteps] = {1, 2, 4, 6};
static int release_pipe[2];
static sem_t parked;
static __thread int park_at = -1;

static void on_trap(int number, siginfo_t *info, void *context) {
  (void)number, (void)info;
  greg_t *registers = ((ucontext_t *)context)->uc_mcontext.gregs;
  if (park_at < 0 || registers[REG_RIP] != (greg_t)(intptr_t)probe_me_steps + park_at) return;
  registers[REG_EFL] &= ~(greg_t)kTrapFlag;
  park_at = -1;
  sem_post(&parked);
  char c;
  while (read(release_pipe[0], &c, 1) < 0 && errno == EINTR) {
  }
}

static void *park_in_syscall(void *argument) {
  char c = 0;
  sem_post(&parked);
  const long got = call_read(kReaders[(intptr_t)argument], release_pipe[0], &c);
  if (got != 1 || c != 'x') target_fail("a parked read returned %ld", got);
  return NULL;
}

static void *park_in_frame(void *argument) {
  park_at = kStepOffsets[(intptr_t)argument];
  const long got = call_with_trap_flag(probe_me_steps, 41);
  if (got != 42) target_fail("a function parked at +%d returned %ld", kStepOffsets[(intptr_t)argument], got);
  return NULL;
}

static void work_once(void) {
  int data[2];
  char c = 'y';
  TARGET_CHECK(pipe(data) == 0);
  for (int i = 0; i < kReads; i++) {
    TARGET_CHECK(write(data[1], &c, 1) == 1);
    char got = 0;
    target_count(i == kReadThenNext ? 2 : 1);
    TARGET_CHECK(call_read(kReaders[i], data[0], &got) == 1 && got == 'y');
  }
  close(data[0]);
  close(data[1]);
  for (int i = 0; i < 100; i++) TARGET_CHECK(probe_me_steps(i) == i + 1);
  target_count(100);
}

int main(int argc, char **argv) {
  pthread_t threads[kSteps];
  target_begin(argc, argv, 200, "syscall");
  const bool frame = target_mode_is("frame");
  const int n = frame ? kSteps : kReads;
  const struct sigaction action = {.sa_sigaction = on_trap, .sa_flags = SA_SIGINFO};
  TARGET_CHECK(pipe(release_pipe) == 0 && sem_init(&parked, 0, 0) == 0 && sigaction(SIGTRAP, &action, NULL) == 0);
  for (long i = 0; i < n; i++)
    TARGET_CHECK(pthread_create(&threads[i], NULL, frame ? park_in_frame : park_in_syscall, (void *)(intptr_t)i) == 0);
  for (int i = 0; i < n; i++) sem_wait(&parked);
  usleep(50000);
  target_ready();
  // Under a tracer that starts the program itself the parked calls were probed; here they came before it.
  if (!target.wait) target_count((uint64_t)n);
  for (long round = 0; target_more(round); round++) work_once();
  if (!frame) target_count(1);  // probe_me_next, when its thread is let go
  for (int i = 0; i < n; i++) TARGET_CHECK(write(release_pipe[1], "x", 1) == 1);
  for (int i = 0; i < n; i++) pthread_join(threads[i], NULL);
  return target_end();
}
