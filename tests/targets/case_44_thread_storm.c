// Case 44: threads that come and go all the time (mode `storm`), 500 sleeping ones (mode `sleepers`), and a second process
// that runs in the same memory without being a thread (mode `clone_vm`).
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "target.h"

enum { kSleepers = 500, kStack = 64 * 1024 };
static int sleep_pipe[2];

PROBED uint64_t probe_me(uint64_t n) { return (n << 3) ^ (n >> 5) ^ 0x5a; }

static void call(uint64_t n) {
  target_count(1);
  TARGET_CHECK(probe_me(n) == ((n << 3) ^ (n >> 5) ^ 0x5a));
}

static void *short_life(void *argument) {
  for (uint64_t i = 0; i < 20; i++) call(i + (uintptr_t)argument);
  return NULL;
}

static void *sleeper(void *argument) {
  char c;
  TARGET_CHECK(read(sleep_pipe[0], &c, 1) == 1);
  call((uintptr_t)argument);
  return NULL;
}

static void start(pthread_t *thread, void *(*run)(void *), intptr_t argument) {
  pthread_attr_t attributes;
  pthread_attr_init(&attributes);
  pthread_attr_setstacksize(&attributes, kStack);
  TARGET_CHECK(pthread_create(thread, &attributes, run, (void *)argument) == 0);
  pthread_attr_destroy(&attributes);
}

static void storm(void) {
  for (long round = 0; target_more(round); round++) {
    pthread_t threads[8];
    for (int i = 0; i < 8; i++) start(&threads[i], short_life, i);
    for (int i = 0; i < 8; i++) pthread_join(threads[i], NULL);
  }
}

static void sleepers(void) {
  static pthread_t threads[kSleepers];
  for (int i = 0; i < kSleepers; i++) start(&threads[i], sleeper, i);
  target_ready();
  for (long round = 0; target_more(round); round++)
    for (uint64_t i = 0; i < 200; i++) call(i);
  for (int i = 0; i < kSleepers; i++) TARGET_CHECK(write(sleep_pipe[1], "x", 1) == 1);
  for (int i = 0; i < kSleepers; i++) pthread_join(threads[i], NULL);
}

static volatile bool sibling_goes_on;
static int sibling(void *argument) {
  (void)argument;
  for (uint64_t i = 0; sibling_goes_on; i++) {
    for (int k = 0; k < 100; k++) call(i);
    sched_yield();
  }
  return 0;
}

// The sibling shares the memory and so runs the patched text, but is a process of its own in /proc.
static void clone_vm(void) {
  char *stack = mmap(NULL, 1 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  TARGET_CHECK(stack != MAP_FAILED);
  sibling_goes_on = true;
  const pid_t pid = clone(sibling, stack + (1 << 20), CLONE_VM | SIGCHLD, NULL);
  TARGET_CHECK(pid > 0);
  for (long round = 0; target_more(round); round++)
    for (uint64_t i = 0; i < 200; i++) call(i);
  sibling_goes_on = false;
  int status;
  TARGET_CHECK(waitpid(pid, &status, 0) == pid && status == 0);
}

int main(int argc, char **argv) {
  target_begin(argc, argv, 500, "storm");
  TARGET_CHECK(pipe(sleep_pipe) == 0);
  if (target_mode_is("storm")) {
    target_ready();
    storm();
  } else if (target_mode_is("sleepers")) {
    sleepers();
  } else if (target_mode_is("clone_vm")) {
    target_ready();
    clone_vm();
  }
  return target_end();
}
