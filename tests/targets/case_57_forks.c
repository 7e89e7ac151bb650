// Case 57: a probed program forks: children inherit the patched text and the shared counters. Modes: `chain` (a child of a
// child ...), `many` (300 children at once), `threads` (a child of a process with busy threads), `adrift`
// (children forked under the probe wait, go on when a second line comes on stdin, and may find the tracer gone by then).
#define _GNU_SOURCE
#include <pthread.h>
#include <stdio.h>
#include <sys/wait.h>
#include <unistd.h>

#include "target.h"

enum { kChildren = 300, kPerProcess = 1000 };
static volatile bool stop;

PROBED uint64_t probe_me(uint64_t n) { return n * 17 + 3; }

static void work(void) {
  for (uint64_t i = 0; i < kPerProcess; i++)
    if (probe_me(i) != i * 17 + 3) _exit(9);
  target_count(kPerProcess);
}

static void reap(pid_t pid) {
  int status;
  TARGET_CHECK(waitpid(pid, &status, 0) == pid);
  if (status != 0) target_fail("a child ended with status %#x", status);
}

static void chain(int depth) {
  work();
  if (depth == 0) return;
  const pid_t pid = fork();
  TARGET_CHECK(pid >= 0);
  if (pid == 0) {
    chain(depth - 1);
    _exit(0);
  }
  reap(pid);
  work();
}

static void many(void) {
  static pid_t pids[kChildren];
  for (int i = 0; i < kChildren; i++) {
    pids[i] = fork();
    TARGET_CHECK(pids[i] >= 0);
    if (pids[i] == 0) {
      work();
      _exit(0);
    }
  }
  for (int i = 0; i < kChildren; i++) reap(pids[i]);
}

static void *spin(void *argument) {
  (void)argument;
  while (!stop) work();
  return NULL;
}

static void from_threads(void) {
  pthread_t threads[2];
  for (int i = 0; i < 2; i++) TARGET_CHECK(pthread_create(&threads[i], NULL, spin, NULL) == 0);
  for (int i = 0; i < 20; i++) {
    const pid_t pid = fork();
    TARGET_CHECK(pid >= 0);
    if (pid == 0) {
      work();
      _exit(0);
    }
    reap(pid);
  }
  stop = true;
  for (int i = 0; i < 2; i++) pthread_join(threads[i], NULL);
}

// Prints `forked PID...`, then waits, so that the tracer can leave while the children are alive.
static void adrift(void) {
  int gate[2];
  pid_t pids[3];
  char c;
  work();
  TARGET_CHECK(pipe(gate) == 0);
  for (int i = 0; i < 3; i++) {
    pids[i] = fork();
    TARGET_CHECK(pids[i] >= 0);
    if (pids[i] == 0) {
      work();
      if (read(gate[0], &c, 1) != 1) _exit(8);
      work();
      _exit(0);
    }
  }
  printf("forked %d %d %d\n", pids[0], pids[1], pids[2]);
  fflush(stdout);
  if (target.wait) TARGET_CHECK(read(STDIN_FILENO, &c, 1) == 1);
  for (int i = 0; i < 3; i++) TARGET_CHECK(write(gate[1], "x", 1) == 1);
  for (int i = 0; i < 3; i++) reap(pids[i]);
  work();
}

int main(int argc, char **argv) {
  target_begin(argc, argv, 1, "chain");
  target_share_calls();
  target_ready();
  for (long round = 0; target_more(round); round++) {
    stop = false;
    if (target_mode_is("many")) many();
    else if (target_mode_is("threads")) from_threads();
    else if (target_mode_is("adrift")) adrift();
    else chain(8);
  }
  return target_end();
}
