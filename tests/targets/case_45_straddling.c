// Case 45: threads (--mode N) run through functions whose entries lie over cache lines and words while probes come and go.
#include <pthread.h>
#include <stdlib.h>

#include "target.h"

typedef uint64_t (*function)(uint64_t, uint64_t);
extern const function straddling[8];
extern const uint64_t straddling_offsets[8];

static void *spin(void *argument) {
  uint64_t n = (uintptr_t)argument, calls = 0;
  for (long round = 0; target_more(round); round++)
    for (int i = 0; i < 800; i++, calls++) {
      const uint64_t want = n + calls + straddling_offsets[i & 7];
      n = straddling[i & 7](n, calls);
      TARGET_CHECK(n == want);
    }
  target_count(calls);
  return NULL;
}

int main(int argc, char **argv) {
  pthread_t threads[64];
  target_begin(argc, argv, 500, "2");
  const long n = atol(target.mode);
  TARGET_CHECK(n >= 1 && n <= 64);
  target_ready();
  for (long i = 0; i < n; i++) TARGET_CHECK(pthread_create(&threads[i], NULL, spin, (void *)(intptr_t)(i + 1)) == 0);
  for (long i = 0; i < n; i++) pthread_join(threads[i], NULL);
  return target_end();
}
