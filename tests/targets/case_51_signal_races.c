// Case 51: signals for the whole thread group arrive all the time while threads block in system calls: when a stop of the
// tracer and a signal taken by another thread meet, the kernel's restart codes (512, 513, 514, 516) must not reach us.
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "target.h"

enum { kThreads = 4 };
static volatile bool stop;
static int data[2];
static uint64_t handled;

PROBED uint64_t probe_me(uint64_t n) { return n * 9 + 4; }

static void on_signal(int number) {
  (void)number;
  __atomic_fetch_add(&handled, 1, __ATOMIC_RELAXED);
}

static void check(const char *call, long got) {
  if (got < 0 && errno != EINTR && errno != EAGAIN) target_fail("%s gave errno %d", call, errno);
}

static void *block(void *argument) {
  struct pollfd one = {.fd = data[0], .events = POLLIN};
  const struct timespec moment = {.tv_nsec = 1000000};
  int word = 0;
  char c;
  while (!stop) {
    switch ((intptr_t)argument) {
      case 0: check("poll", poll(&one, 1, 2)); break;
      case 1: check("nanosleep", nanosleep(&moment, NULL)); break;
      case 2: {
        const long got = syscall(SYS_futex, &word, 0, 0, &moment, NULL, 0);
        if (got < 0 && errno != ETIMEDOUT) check("futex", got);
        break;
      }
      default: {
        const long got = read(data[0], &c, 1);  // SA_RESTART: only the writer ends it
        if (got != 1) target_fail("read returned %ld, errno %d", got, errno);
      }
    }
  }
  return NULL;
}

int main(int argc, char **argv) {
  pthread_t threads[kThreads];
  target_begin(argc, argv, 3000, NULL);
  const struct sigaction action = {.sa_handler = on_signal, .sa_flags = SA_RESTART};
  TARGET_CHECK(pipe(data) == 0 && sigaction(SIGUSR1, &action, NULL) == 0);
  for (long i = 0; i < kThreads; i++)
    TARGET_CHECK(pthread_create(&threads[i], NULL, block, (void *)(intptr_t)i) == 0);
  target_ready();
  for (long i = 0; target_more(i); i++) {
    kill(getpid(), SIGUSR1);
    target_count(1);
    TARGET_CHECK(probe_me((uint64_t)i) == (uint64_t)i * 9 + 4);
    if (i % 16 == 0) TARGET_CHECK(write(data[1], "x", 1) == 1);
    if (i % 64 == 0) usleep(100);
  }
  stop = true;
  TARGET_CHECK(write(data[1], "x", 1) == 1);
  for (int i = 0; i < kThreads; i++) pthread_join(threads[i], NULL);
  TARGET_CHECK(handled > 0);
  return target_end();
}
