// Case 58: a probed program starts others. Modes: `spawn` (vfork+exec, posix_spawn, system), `clone_stack` (clone with
// CLONE_VM|CLONE_VFORK on its own stack), `exec_self` (execs itself and works on), `exec_thread` (exec by a thread that is not
// the leader). The programs started must see nothing of the probe: no mapping of a memfd, no descriptor more than they were given.
#define _GNU_SOURCE
#include <dirent.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "target.h"

extern char **environ;
static char **arguments;

PROBED uint64_t probe_me(uint64_t n) { return n * 17 + 3; }

static void work(void) {
  for (uint64_t i = 0; i < 100; i++) {
    target_count(1);
    TARGET_CHECK(probe_me(i) == i * 17 + 3);
  }
}

static void reap(pid_t pid) {
  int status;
  TARGET_CHECK(pid > 0 && waitpid(pid, &status, 0) == pid);
  if (status != 0) target_fail("a program ended with status %#x", status);
}

// Fails if a memfd is mapped in the new program, or if it has descriptors of one.
static char kCheck[] = "! grep -q memfd: /proc/self/maps && ! ls -l /proc/self/fd | grep -q memfd:";

static void spawn(void) {
  char *const shell[] = {"sh", "-c", kCheck, NULL};
  pid_t pid;
  TARGET_CHECK(posix_spawn(&pid, "/bin/sh", NULL, NULL, shell, environ) == 0);
  reap(pid);
  work();
  TARGET_CHECK(system(kCheck) == 0);
  work();
  pid = vfork();
  if (pid == 0) {
    if (probe_me(1) != 20) _exit(1);  // a probed call on the parent's memory and stack
    execv("/bin/sh", shell);
    _exit(1);
  }
  target_count(1);
  reap(pid);
  work();
}

static int on_own_stack(void *argument) {
  (void)argument;
  for (uint64_t i = 0; i < 100; i++)
    if (probe_me(i) != i * 17 + 3) return 1;
  target_count(100);
  return 0;
}

static void clone_stack(void) {
  enum { kStack = 65536 };
  char *stack = mmap(NULL, kStack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  TARGET_CHECK(stack != MAP_FAILED);
  reap(clone(on_own_stack, stack + kStack, CLONE_VM | CLONE_VFORK | SIGCHLD, NULL));
  munmap(stack, kStack);
  work();
}

// The program after exec is a new one: the probe is gone from it, or follows it; either way it must work.
static void *exec_again(void *argument) {
  (void)argument;
  char calls[32];
  snprintf(calls, sizeof calls, "%d", 100);
  setenv("SPILE_TARGET_EXECED", calls, 1);
  execv("/proc/self/exe", arguments);
  target_fail("exec: %m");
}

static void check_new_program(void) {
  char line[512];
  FILE *maps = fopen("/proc/self/maps", "r");
  TARGET_CHECK(maps != NULL);
  while (fgets(line, sizeof line, maps) != NULL)
    if (getenv("SPILE_TARGET_FOLLOWED") == NULL && strstr(line, "memfd:") != NULL) target_fail("after exec: %s", line);
  fclose(maps);
}

int main(int argc, char **argv) {
  arguments = argv;
  if (getenv("SPILE_TARGET_EXECED") != NULL) {
    target_begin(argc, argv, 3, "spawn");
    check_new_program();
    target_count(100);  // those of the program before
    return target_end();
  }
  target_begin(argc, argv, 3, "spawn");
  target_ready();
  if (target_mode_is("exec_self") || target_mode_is("exec_thread")) {
    work();
    if (target_mode_is("exec_self")) exec_again(NULL);
    pthread_t thread;
    TARGET_CHECK(pthread_create(&thread, NULL, exec_again, NULL) == 0);
    pthread_join(thread, NULL);
  }
  for (long round = 0; target_more(round); round++) {
    if (target_mode_is("clone_stack")) clone_stack();
    else spawn();
  }
  return target_end();
}
