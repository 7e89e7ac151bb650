// Case 54: a thread that cannot be stopped: the parent of a vfork waits, uninterruptible, for its child. Attaching must give
// up in bounded time and change nothing, or succeed once the child is gone.
#define _GNU_SOURCE
#include <pthread.h>
#include <sys/wait.h>
#include <unistd.h>

#include "target.h"

static volatile bool finished;

PROBED uint64_t probe_me(uint64_t n) { return n * 13 + 6; }

static void *wait_in_vfork(void *argument) {
  (void)argument;
  const pid_t pid = vfork();
  if (pid == 0) {
    // Only system calls here: the child runs on the parent's stack.
    execl("/bin/sleep", "sleep", "0", (char *)NULL);
    _exit(1);
  }
  int status;
  TARGET_CHECK(pid > 0 && waitpid(pid, &status, 0) == pid);
  return NULL;
}

static void *hold_vfork(void *argument) {
  const pid_t pid = vfork();
  if (pid == 0) {
    usleep((useconds_t)(intptr_t)argument);
    _exit(0);
  }
  int status;
  TARGET_CHECK(pid > 0 && waitpid(pid, &status, 0) == pid && status == 0);
  finished = true;
  return NULL;
}

int main(int argc, char **argv) {
  pthread_t thread;
  target_begin(argc, argv, 1, NULL);
  TARGET_CHECK(pthread_create(&thread, NULL, wait_in_vfork, NULL) == 0 && pthread_join(thread, NULL) == 0);
  // `long`: longer than any tracer may try.
  const long held_us = target_mode_is("long") ? 60000000 : target.wait ? 4000000 : 500000;
  TARGET_CHECK(pthread_create(&thread, NULL, hold_vfork, (void *)(intptr_t)held_us) == 0);
  usleep(50000);
  target_ready();
  for (long i = 0; !finished; i++) {
    target_count(1);
    TARGET_CHECK(probe_me((uint64_t)i) == (uint64_t)i * 13 + 6);
    usleep(1000);
  }
  pthread_join(thread, NULL);
  return target_end();
}
