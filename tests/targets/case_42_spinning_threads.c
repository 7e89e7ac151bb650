// Case 42: N threads (--mode N) call the probed function without pause while probes come and go.
#include <pthread.h>
#include <stdlib.h>

#include "target.h"

PROBED uint64_t probe_me(uint64_t a, uint64_t b) { return (a ^ b) * 0x9e3779b97f4a7c15 + b; }

static void *spin(void *argument) {
  uint64_t a = (uintptr_t)argument, calls = 0;
  for (long round = 0; target_more(round); round++) {
    for (int i = 0; i < 1000; i++, calls++) {
      const uint64_t want = (a ^ calls) * 0x9e3779b97f4a7c15 + calls;
      a = probe_me(a, calls);
      TARGET_CHECK(a == want);
    }
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
