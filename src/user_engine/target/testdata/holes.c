// A thread that has unmapped pages of its own stack, between its callers' frames and itself, and waits there.
// Says "ready"; a byte on stdin ends it. Prints "exit-success".
#define _GNU_SOURCE
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/mman.h>
#include <unistd.h>

enum { kHole = 1 << 18 };

__attribute__((noinline)) static void wait_below(char* hole) {
  char byte;
  (void)hole;
  puts("ready");
  fflush(stdout);
  (void)!read(0, &byte, 1);
  puts("exit-success");
  fflush(stdout);
  _exit(0);  // nobody can return through the hole
}

static void* cut(void* unused) {
  char room[3 * kHole];
  char* hole = (char*)(((uintptr_t)room + kHole) & ~(uintptr_t)4095);
  if (munmap(hole, kHole) != 0) _exit(1);
  wait_below(hole);
  return unused;
}

int main(void) {
  pthread_t thread;
  if (pthread_create(&thread, NULL, cut, NULL) != 0) return 1;
  pthread_join(thread, NULL);
  return 1;
}
