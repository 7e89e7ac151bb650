// Case 9: functions that begin with a system call, interrupted by signals while they block. Modes: `restart` (the kernel runs
// the same system call again), `eintr` (it fails), `jump` (the handler leaves by siglongjmp, the call never ends).
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <string.h>
#include <unistd.h>

#include "target.h"

typedef long (*reader)(int, void *, long);
long probe_me_read_2(int, void *, long), probe_me_read_3(int, void *, long), probe_me_read_4(int, void *, long);
long call_read(reader fn, int fd, void *buffer);

static const reader kReaders[] = {probe_me_read_2, probe_me_read_3, probe_me_read_4};
static int pipe_ends[2];
static sigjmp_buf back;
static pthread_t worker;
static volatile int handled, stop;
static volatile long begun, ended;
static volatile sig_atomic_t jump;

static void on_signal(int number) {
  (void)number;
  __atomic_fetch_add(&handled, 1, __ATOMIC_RELAXED);
  if (jump) {
    jump = 0;
    siglongjmp(back, 1);
  }
}

// A few signals for each read, and then the byte that ends it.
static void *disturb(void *unused) {
  (void)unused;
  for (long turn = 1; !stop; turn++) {
    while (begun < turn && !stop) usleep(20);
    for (int i = 0; ended < turn && !stop && (i < 3 || target_mode_is("jump")); i++) {
      usleep(60);
      pthread_kill(worker, SIGUSR1);
    }
    if (!target_mode_is("jump") && !stop) TARGET_CHECK(write(pipe_ends[1], "z", 1) == 1);
  }
  return NULL;
}

static void read_once(reader fn) {
  char c = 0;
  begun++;
  if (sigsetjmp(back, 1) == 0) {
    jump = target_mode_is("jump");
    long got;
    do {
      target_count(1);
      got = call_read(fn, pipe_ends[0], &c);
      TARGET_CHECK(got == 1 || (got == -EINTR && target_mode_is("eintr")));
    } while (got != 1);
    TARGET_CHECK(c == 'z');
  }
  ended++;
}

int main(int argc, char **argv) {
  pthread_t other;
  target_begin(argc, argv, 150, "restart");
  worker = pthread_self();
  struct sigaction action = {.sa_handler = on_signal, .sa_flags = target_mode_is("restart") ? SA_RESTART : 0};
  TARGET_CHECK(pipe(pipe_ends) == 0 && sigaction(SIGUSR1, &action, NULL) == 0);
  target_ready();
  TARGET_CHECK(pthread_create(&other, NULL, disturb, NULL) == 0);
  for (long round = 0; target_more(round); round++)
    for (int i = 0; i < 3; i++) read_once(kReaders[i]);
  stop = 1;
  pthread_join(other, NULL);
  TARGET_CHECK(handled > 0);
  return target_end();
}
