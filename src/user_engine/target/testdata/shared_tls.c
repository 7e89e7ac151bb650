// Two threads with one thread pointer: the second was made by clone() without memory of its own for its thread's data.
// Usage: shared_tls [alone]: without the second. Says "ready"; a byte on stdin ends it. Prints "exit-success".
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <sys/mman.h>
#include <unistd.h>

enum { kStack = 1 << 16 };

static int sleep_for_ever(void* unused) {
  (void)unused;
  for (;;) pause();
}

static void* share_and_wait(void* with_another) {
  const int flags = CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD | CLONE_SYSVSEM;
  char byte;
  if (with_another) {
    char* stack = mmap(NULL, kStack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (stack == MAP_FAILED || clone(sleep_for_ever, stack + kStack, flags, NULL) < 0) _exit(1);
  }
  puts("ready");
  fflush(stdout);
  (void)!read(0, &byte, 1);
  puts("exit-success");
  fflush(stdout);
  _exit(0);
}

int main(int argc, char** argv) {
  pthread_t thread;
  (void)argv;
  if (pthread_create(&thread, NULL, share_and_wait, argc > 1 ? NULL : &thread) != 0) return 1;
  pthread_join(thread, NULL);
  return 1;
}
