// Case 53: the thread group's leader has exited and is a zombie; its threads work on.
#define _GNU_SOURCE
#include <pthread.h>
#include <stdlib.h>
#include <unistd.h>

#include "target.h"

PROBED uint64_t probe_me(uint64_t n) { return n * 13 + 6; }

static void *work(void *argument) {
  (void)argument;
  usleep(100000);  // until the leader is gone
  target_ready();
  for (long i = 0; target_more(i); i++) {
    target_count(1);
    TARGET_CHECK(probe_me((uint64_t)i) == (uint64_t)i * 13 + 6);
    if (i % 64 == 0) usleep(100);
  }
  exit(target_end());
}

int main(int argc, char **argv) {
  pthread_t thread;
  target_begin(argc, argv, 2000, NULL);
  TARGET_CHECK(pthread_create(&thread, NULL, work, NULL) == 0);
  pthread_exit(NULL);
}
