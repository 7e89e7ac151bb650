// One program built many ways (see CMakeLists.txt): static, static-pie, musl, stripped, PIE or not, with and without
// optimisation, control-flow protection, patchable entries, mcount. Every probed function has another shape of entry.
#include <stdarg.h>
#include <string.h>

#include "target.h"

struct large {
  uint64_t words[6];
};

PROBED uint64_t probe_me(uint64_t a, uint64_t b, const char *name) { return a * 31 + b + (uint64_t)name[a & 1]; }
PROBED double probe_me_double(double a, float b) { return a * 2.5 + (double)b; }
PROBED long double probe_me_long_double(long double a) { return a / 3.0L; }
PROBED struct large probe_me_large(struct large in, uint64_t n) {
  in.words[n % 6] ^= n;
  return in;
}
PROBED __int128 probe_me_int128(__int128 a, int64_t b) { return a * b; }
PROBED uint64_t probe_me_variadic(int n, ...) {
  va_list args;
  uint64_t sum = 0;
  va_start(args, n);
  for (int i = 0; i < n; i++) sum += i % 2 == 0 ? va_arg(args, uint64_t) : (uint64_t)va_arg(args, double);
  va_end(args);
  return sum;
}
PROBED uint64_t probe_me_many(uint64_t a, uint64_t b, uint64_t c, uint64_t d, uint64_t e, uint64_t f, uint64_t g, uint64_t h) {
  return a + 2 * b + 3 * c + 4 * d + 5 * e + 6 * f + 7 * g + 8 * h;
}
PROBED uint64_t probe_me_recursive(uint64_t n) {
  if (n < 2) return n;
  uint64_t rest = probe_me_recursive(n - 1);
  __asm__ volatile("" : "+r"(rest));  // keeps the compiler from making a loop of it
  return rest + n * 2;
}
PROBED void probe_me_nothing(void) { __asm__ volatile(""); }
PROBED uint64_t probe_me_array(uint64_t n) {
  volatile unsigned char bytes[n % 200 + 1];
  memset((void *)bytes, (int)n & 0xff, sizeof bytes);
  return bytes[n % sizeof bytes];
}

static uint64_t recursive_calls(uint64_t n) { return n < 2 ? 1 : n; }
static uint64_t recursive_value(uint64_t n) { return n < 2 ? n : n * (n + 1) - 1; }

static void round_of_calls(uint64_t i) {
  TARGET_CHECK(probe_me(i, 7, "xy") == i * 31 + 7 + (i & 1 ? 'y' : 'x'));
  TARGET_CHECK(probe_me_double((double)i, 0.5f) == (double)i * 2.5 + 0.5);
  TARGET_CHECK(probe_me_long_double((long double)i) == (long double)i / 3.0L);
  struct large in = {{i, i + 1, i + 2, i + 3, i + 4, i + 5}};
  struct large out = probe_me_large(in, i);
  in.words[i % 6] ^= i;
  TARGET_CHECK(memcmp(&in, &out, sizeof in) == 0);
  TARGET_CHECK(probe_me_int128((__int128)i << 40, -3) == ((__int128)i << 40) * -3);
  TARGET_CHECK(probe_me_variadic(4, i, 2.0, i + 1, 4.0) == 2 * i + 7);
  TARGET_CHECK(probe_me_many(i, 1, 2, 3, 4, 5, 6, 7) == i + 2 + 6 + 12 + 20 + 30 + 42 + 56);
  TARGET_CHECK(probe_me_recursive(i % 30) == recursive_value(i % 30));
  probe_me_nothing();
  TARGET_CHECK(probe_me_array(i) == (i & 0xff));
  target_count(9 + recursive_calls(i % 30));
}

int main(int argc, char **argv) {
  target_begin(argc, argv, 5000, 0);
  target_ready();
  for (long i = 0; target_more(i); i++) round_of_calls((uint64_t)i);
  return target_end();
}
