// Case 24: calls that are bound at their first use, while everything that binds them is probed. The binder keeps the arguments of
// the call that it was entered with, wide vectors too. Each function of the library is called for the first time in the work.
#include <immintrin.h>
#include <string.h>

#include "target.h"

#define NAMES(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11) X(12) X(13) X(14) X(15) X(16) X(17) X(18) X(19)
#define DECLARE(n) __m256i probe_me_late_##n(__m256i a, __m256i b, uint64_t c, double d, __m256i e);
NAMES(DECLARE)

#ifdef LIBRARY
#define DEFINE(n)                                                                       \
  PROBED __m256i probe_me_late_##n(__m256i a, __m256i b, uint64_t c, double d, __m256i e) { \
    a = _mm256_add_epi64(a, _mm256_xor_si256(b, e));                                    \
    return _mm256_add_epi64(a, _mm256_set1_epi64x((long long)(c + (uint64_t)d + n)));   \
  }
NAMES(DEFINE)
static uint64_t one(uint64_t n) { return n + 1; }
static uint64_t two(uint64_t n) { return n + 2; }
// Runs once, when the first call of chosen() is bound.
typedef uint64_t (*choice)(uint64_t);
PROBED choice probe_me_resolver(void) {
  __builtin_cpu_init();
  return __builtin_cpu_supports("avx2") ? two : one;
}
uint64_t chosen(uint64_t n) __attribute__((ifunc("probe_me_resolver")));
#else
uint64_t chosen(uint64_t n);

static void check_vector(__m256i got, const long long *want, int which) {
  long long words[4];
  _mm256_storeu_si256((__m256i *)words, got);
  for (int i = 0; i < 4; i++)
    if (words[i] != want[i]) target_fail("function %d: word %d is %#llx, must be %#llx", which, i, words[i], want[i]);
}

#define CALL(n)                                                                                          \
  {                                                                                                      \
    for (int i = 0; i < 4; i++) want[i] = v[0][i] + (v[1][i] ^ v[2][i]) + (long long)(c + 9 + n);        \
    target_count(1);                                                                                     \
    check_vector(probe_me_late_##n(_mm256_loadu_si256((__m256i *)v[0]), _mm256_loadu_si256((__m256i *)v[1]), c, 9.5, \
                                   _mm256_loadu_si256((__m256i *)v[2])), want, n);                       \
  }

int main(int argc, char **argv) {
  target_begin(argc, argv, 2000, NULL);
  uint64_t seed = 24;
  target_ready();
  target_count(1);  // the resolver
  TARGET_CHECK(chosen(5) == 7);
  for (long round = 0; target_more(round); round++) {
    long long v[3][4], want[4];
    for (int i = 0; i < 12; i++) v[i / 4][i % 4] = (long long)target_random(&seed);
    const uint64_t c = (uint64_t)round;
    NAMES(CALL)
    TARGET_CHECK(chosen(c) == c + 2);
  }
  return target_end();
}
#endif
