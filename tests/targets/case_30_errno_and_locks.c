// Case 30: errno, thread-local data, the allocator and mutexes are as the program left them. The harness probes malloc,
// free, pthread_mutex_lock, __errno_location and memcpy of libc as well as probe_me.
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "target.h"

static __thread uint64_t local[4];
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static uint64_t shared;

PROBED uint64_t probe_me(uint64_t n) {
  local[n & 3] += n;
  return n * 7 + (uint64_t)errno;
}

static void *work(void *argument) {
  uint64_t sum[4] = {0, 0, 0, 0};
  const long id = (long)(intptr_t)argument;
  for (long i = 0; target_more(i); i++) {
    const size_t size = 1 + (size_t)(i * 37 + id) % 5000;
    char *block = malloc(size);
    TARGET_CHECK(block != NULL);
    memset(block, (int)i & 0xff, size);
    errno = (int)(i % 130);
    target_count(1);
    TARGET_CHECK(probe_me((uint64_t)i) == (uint64_t)i * 7 + (uint64_t)(i % 130));
    TARGET_CHECK(errno == (int)(i % 130));
    sum[i & 3] += (uint64_t)i;
    char *copy = malloc(size);
    TARGET_CHECK(copy != NULL);
    memcpy(copy, block, size);
    TARGET_CHECK(copy[size - 1] == (char)i && copy[0] == (char)i);
    free(block);
    free(copy);
    pthread_mutex_lock(&mutex);
    shared++;
    pthread_mutex_unlock(&mutex);
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
  }
  TARGET_CHECK(memcmp(sum, local, sizeof sum) == 0);
  return NULL;
}

int main(int argc, char **argv) {
  pthread_t threads[4];
  target_begin(argc, argv, 10000, NULL);
  target_ready();
  for (long i = 0; i < 4; i++) TARGET_CHECK(pthread_create(&threads[i], NULL, work, (void *)(intptr_t)i) == 0);
  for (int i = 0; i < 4; i++) pthread_join(threads[i], NULL);
  if (target.loop_seconds == 0) TARGET_CHECK(shared == 4 * (uint64_t)target.rounds);
  return target_end();
}
