// Case 20: two variants of a function chosen by a resolver at load time, and a cold part split off by the compiler.
#include "target.h"

static volatile long cold_calls;
__attribute__((cold, noinline)) static uint64_t rare(uint64_t a) {
  cold_calls++;
  return a * 3;
}

PROBED uint64_t probe_me(uint64_t a, uint64_t b) {
  if (__builtin_expect((a & 0x3ff) == 0, 0)) return rare(a) ^ b;
  return a ^ b;
}
PROBED uint64_t probe_me_wide(uint64_t a, uint64_t b) { return (a & 0x3ff) == 0 ? (a * 3) ^ b : a ^ b; }

static uint64_t (*resolve(void))(uint64_t, uint64_t) {
  __builtin_cpu_init();
  return __builtin_cpu_supports("avx2") ? probe_me : probe_me_wide;
}
uint64_t chosen(uint64_t, uint64_t) __attribute__((ifunc("resolve")));

int main(int argc, char **argv) {
  uint64_t seed = 20;
  target_begin(argc, argv, 100000, 0);
  target_ready();
  for (long i = 0; target_more(i); i++) {
    const uint64_t a = target_random(&seed) << (i % 16), b = target_random(&seed);
    target_count(2);
    TARGET_CHECK(chosen(a, b) == ((a & 0x3ff) == 0 ? (a * 3) ^ b : a ^ b));
    TARGET_CHECK(probe_me(a, b) == probe_me_wide(a, b));
    target_count(1);
  }
  return target_end();
}
