// Cases 39 and 41: probed functions that never return (pthread_exit, _exit in a child, cancellation), that return in a vfork
// child or a forked one, that start threads and programs. calls=N counts the returns that happen.
#define _GNU_SOURCE
#include <pthread.h>
#include <spawn.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include "target.h"

extern char **environ;

PROBED uint64_t finish(uint64_t n) {
  __asm__ volatile("" : "+r"(n));
  return n + 1;
}
PROBED uint64_t probe_me_small(uint64_t n) {
  __asm__ volatile("" : "+r"(n));
  return n * 3 + 1;
}
PROBED uint64_t probe_me_jumps(uint64_t n) { return finish(n * 2); }

// Leaves its thread, its jump never happens.
PROBED void *probe_me_leaves(void *argument) {
  if (argument != NULL) pthread_exit(argument);
  return (void *)finish(6);
}
// Is the thread's start: returns into libc.
PROBED void *probe_me_starts(void *argument) { return (void *)probe_me_jumps((uint64_t)argument); }
PROBED void *probe_me_sleeps(void *argument) {
  for (;;) pause();
  return argument;
}

// A function that forks returns twice.
PROBED pid_t probe_me_forks(void) {
  pid_t pid = fork();
  __asm__ volatile("" : "+r"(pid));
  return pid;
}
static pid_t fork_it(void) { return fork(); }
PROBED pid_t probe_me_jumps_to_fork(void) { return fork_it(); }

static void reap(pid_t pid, int expected) {
  int status;
  TARGET_CHECK(pid > 0 && waitpid(pid, &status, 0) == pid);
  if (status != expected) target_fail("a child ended with status %#x", status);
}

static void threads(void) {
  pthread_t thread;
  void *result;
  TARGET_CHECK(pthread_create(&thread, NULL, probe_me_leaves, (void *)5) == 0 && pthread_join(thread, &result) == 0);
  TARGET_CHECK(result == (void *)5);
  TARGET_CHECK(pthread_create(&thread, NULL, probe_me_starts, (void *)5) == 0 && pthread_join(thread, &result) == 0);
  TARGET_CHECK(result == (void *)11);
  TARGET_CHECK(pthread_create(&thread, NULL, probe_me_sleeps, NULL) == 0);
  pthread_cancel(thread);
  TARGET_CHECK(pthread_join(thread, &result) == 0 && result == PTHREAD_CANCELED);
  TARGET_CHECK(probe_me_leaves(NULL) == (void *)7);
  target_count(3);  // starts, jumps in it, leaves(NULL)
}

static void processes(void) {
  char *const words[] = {"true", NULL};
  pid_t pid = vfork();
  if (pid == 0) {
    if (probe_me_jumps(1) != 3 || probe_me_small(1) != 4) _exit(1);  // on the parent's memory and stack
    execve("/bin/true", words, environ);
    _exit(1);
  }
  target_count(2);
  reap(pid, 0);
  TARGET_CHECK(posix_spawn(&pid, "/bin/true", NULL, NULL, words, environ) == 0);
  reap(pid, 0);
  pid = probe_me_forks();
  target_count(1);
  if (pid == 0) _exit(probe_me_jumps(10) == 21 ? 0 : 1);
  target_count(1);  // the child's call of probe_me_jumps
  reap(pid, 0);
  pid = probe_me_jumps_to_fork();
  target_count(1);
  if (pid == 0) _exit(0);
  reap(pid, 0);
}

int main(int argc, char **argv) {
  target_begin(argc, argv, 40, NULL);
  target_share_calls();
  target_ready();
  for (long round = 0; target_more(round); round++) {
    threads();
    processes();
    for (uint64_t i = 0; i < 50; i++) TARGET_CHECK(probe_me_jumps(i) == 2 * i + 1 && probe_me_small(i) == 3 * i + 1);
    target_count(100);
  }
  return target_end();
}
