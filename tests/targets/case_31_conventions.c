// Case 31: functions with other calling conventions and rare kinds of arguments and results. What one convention lets a callee
// change, another keeps: the probe must change nothing. Built by gcc (ms_abi) and by clang (vectorcall, regcall, preserve_most,
// preserve_all and swiftcall too).
#include <complex.h>
#include <stdarg.h>
#include <string.h>

#include "target.h"

struct pair { uint64_t a; double b; };
struct odd { char text[13]; };
struct large { uint64_t words[9]; };
union either { double d; uint64_t n; };
typedef float vector4 __attribute__((vector_size(16)));

__attribute__((ms_abi)) PROBED uint64_t probe_me_ms(uint64_t a, double b, uint64_t c, float d, uint64_t e, double f) {
  return a + (uint64_t)b * 3 + c * 5 + (uint64_t)d * 7 + e * 11 + (uint64_t)f * 13;
}
__attribute__((ms_abi)) PROBED struct large probe_me_ms_large(struct large in, uint64_t n) {
  in.words[n % 9] += n;
  return in;
}
__attribute__((ms_abi)) PROBED uint64_t probe_me_ms_variadic(int n, ...) {
  __builtin_ms_va_list list;
  uint64_t sum = 0;
  __builtin_ms_va_start(list, n);
  for (int i = 0; i < n; i++) sum = sum * 3 + __builtin_va_arg(list, uint64_t);
  __builtin_ms_va_end(list);
  return sum;
}
PROBED struct pair probe_me_pair(struct pair in) { return (struct pair){in.a + 1, in.b * 2}; }
PROBED struct odd probe_me_odd(struct odd in, int n) {
  in.text[n % 13]++;
  return in;
}
PROBED union either probe_me_union(union either in) { return (union either){.n = in.n ^ 1}; }
PROBED double complex probe_me_complex(double complex a, float complex b) { return a * (double complex)b; }
PROBED long double complex probe_me_long_complex(long double complex a) { return a * 2.0L; }
PROBED vector4 probe_me_vector(vector4 a, vector4 b) { return a * b; }
PROBED __int128 probe_me_wide(int64_t a, __int128 b, unsigned __int128 c) { return a * b + (__int128)c; }
PROBED double probe_me_variadic(const char *kinds, ...) {
  va_list list;
  double sum = 0;
  va_start(list, kinds);
  for (; *kinds; kinds++) {
    if (*kinds == 'i') sum += va_arg(list, int);
    else if (*kinds == 'd') sum += va_arg(list, double);
    else if (*kinds == 'L') sum += (double)va_arg(list, long double);
    else sum += va_arg(list, struct pair).b;
  }
  va_end(list);
  return sum;
}
PROBED _Bool probe_me_small(_Bool a, signed char b, short c, unsigned char d) { return a ^ (b < c) ^ (d & 1); }

#ifdef __clang__
__attribute__((vectorcall)) PROBED double probe_me_vectorcall(double a, vector4 b, int c, double d) { return a + b[1] + c + d; }
__attribute__((regcall)) PROBED uint64_t probe_me_regcall(uint64_t a, uint64_t b, uint64_t c, uint64_t d, uint64_t e, uint64_t f, uint64_t g,
                                                          uint64_t h, uint64_t i, uint64_t j, uint64_t k) {
  return a + 2 * b + 3 * c + 4 * d + 5 * e + 6 * f + 7 * g + 8 * h + 9 * i + 10 * j + 11 * k;
}
__attribute__((preserve_most)) PROBED void probe_me_preserve_most(uint64_t *sum, uint64_t n) { *sum += n * 3; }
__attribute__((preserve_all)) PROBED void probe_me_preserve_all(uint64_t *sum, uint64_t n) { *sum ^= n << 3; }
__attribute__((swiftcall)) PROBED uint64_t probe_me_swift(uint64_t a, __attribute__((swift_context)) uint64_t *self) { return a + *self; }

static void round_of_clang(uint64_t n) {
  TARGET_CHECK(probe_me_vectorcall(0.5, (vector4){1, 2, 3, 4}, (int)n, 0.25) == 2.75 + (double)(int)n);
  TARGET_CHECK(probe_me_regcall(n, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10) == n + 2 + 6 + 12 + 20 + 30 + 42 + 56 + 72 + 90 + 110);
  uint64_t sum = n, want = n;
  double kept[6] = {0.5, 1.5, 2.5, 3.5, 4.5, 5.5};  // in registers that other conventions lose
  for (uint64_t i = 0; i < 6; i++) {
    probe_me_preserve_most(&sum, i);
    probe_me_preserve_all(&sum, i + n);
    kept[i] *= 2;
    want = (want + i * 3) ^ ((i + n) << 3);
  }
  TARGET_CHECK(sum == want && kept[0] + kept[5] == 12);
  TARGET_CHECK(probe_me_swift(n, &want) == n + want);
  target_count(2 + 12 + 1);
}
#else
static void round_of_clang(uint64_t n) { (void)n; }
#endif

static void round_of_ms(uint64_t n) {
  TARGET_CHECK(probe_me_ms(n, 2.0, 3, 4.0f, 5, 6.0) == n + 6 + 15 + 28 + 55 + 78);
  struct large in, out;
  for (int i = 0; i < 9; i++) in.words[i] = n * 3 + (uint64_t)i;
  out = probe_me_ms_large(in, n);
  in.words[n % 9] += n;
  TARGET_CHECK(memcmp(&in, &out, sizeof in) == 0);
  TARGET_CHECK(probe_me_ms_variadic(3, n, (uint64_t)5, (uint64_t)7) == n * 9 + 15 + 7);
  target_count(3);
}

static void round_of_calls(uint64_t n) {
  const struct pair pair = probe_me_pair((struct pair){n, (double)n});
  TARGET_CHECK(pair.a == n + 1 && pair.b == (double)n * 2);
  struct odd odd = {"spile traces"};
  odd = probe_me_odd(odd, (int)(n % 12));
  TARGET_CHECK(odd.text[n % 12] == "spile traces"[n % 12] + 1);
  TARGET_CHECK(probe_me_union((union either){.n = n}).n == (n ^ 1));
  TARGET_CHECK(probe_me_complex((double)n + 2.0 * I, 3.0f) == 3.0 * (double)n + 6.0 * I);
  TARGET_CHECK(probe_me_long_complex((long double)n + 1.0L * I) == 2.0L * (long double)n + 2.0L * I);
  const vector4 v = probe_me_vector((vector4){1, 2, 3, (float)(n % 100)}, (vector4){5, 6, 7, 2});
  TARGET_CHECK(v[0] == 5 && v[2] == 21 && v[3] == (float)(n % 100) * 2);
  TARGET_CHECK(probe_me_wide(-3, (__int128)n << 50, 9) == -3 * ((__int128)n << 50) + 9);
  TARGET_CHECK(probe_me_variadic("idLpdddddddddi", 1, 2.0, 3.0L, (struct pair){4, 5.0}, 1., 1., 1., 1., 1., 1., 1., 1., 1., 7) == 27);
  TARGET_CHECK(probe_me_small(1, -5, 3, (unsigned char)n) == (n & 1));
  target_count(9);
  round_of_ms(n);
  round_of_clang(n);
}

int main(int argc, char **argv) {
  target_begin(argc, argv, 5000, NULL);
  target_ready();
  for (long round = 0; target_more(round); round++) round_of_calls((uint64_t)round);
  return target_end();
}
