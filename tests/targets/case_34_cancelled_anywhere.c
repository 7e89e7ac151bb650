// Case 34: threads that can be cancelled at any instruction are cancelled while they run through probed functions, so that the
// forced unwinding begins wherever they are. Each must run its clean-up once and end as cancelled.
#define _GNU_SOURCE
#include <pthread.h>
#include <unistd.h>

#include "target.h"

static uint64_t cleaned;

PROBED uint64_t probe_me(uint64_t a, uint64_t b) { return (a ^ b) * 0x9e3779b97f4a7c15 + b; }
PROBED uint64_t probe_me_deeper(uint64_t a, uint64_t depth) {
  volatile uint64_t kept = depth;
  const uint64_t below = depth == 0 ? a : probe_me_deeper(a + 1, depth - 1);
  return below + kept * 0;
}

static void clean(void *argument) { __atomic_fetch_add((uint64_t *)argument, 1, __ATOMIC_RELAXED); }

__attribute__((noreturn)) static void spin_for_ever(uint64_t n) {
  for (uint64_t i = 0;; i++) {
    target_count(1 + 4);
    const uint64_t want = (n ^ i) * 0x9e3779b97f4a7c15 + i;
    n = probe_me(n, i);
    if (n != want || probe_me_deeper(n, 3) != n + 3) _exit(9);
  }
}

static void *spin(void *argument) {
  int before;
  pthread_cleanup_push(clean, &cleaned);
  pthread_setcanceltype(PTHREAD_CANCEL_ASYNCHRONOUS, &before);
  spin_for_ever((uintptr_t)argument);
  pthread_cleanup_pop(1);
  return NULL;
}

int main(int argc, char **argv) {
  target_begin(argc, argv, 300, NULL);
  uint64_t seed = 34, ended = 0;
  target_ready();
  for (long round = 0; target_more(round); round++) {
    pthread_t threads[2];
    for (long i = 0; i < 2; i++) TARGET_CHECK(pthread_create(&threads[i], NULL, spin, (void *)(intptr_t)(i + 1)) == 0);
    usleep((useconds_t)(target_random(&seed) % 600));
    for (int i = 0; i < 2; i++) TARGET_CHECK(pthread_cancel(threads[i]) == 0);
    for (int i = 0; i < 2; i++) {
      void *result;
      TARGET_CHECK(pthread_join(threads[i], &result) == 0 && result == PTHREAD_CANCELED);
      ended++;
    }
  }
  // A thread that is cancelled before its clean-up is in place has none to run.
  TARGET_CHECK(cleaned <= ended && cleaned * 10 >= ended);
  return target_end();
}
