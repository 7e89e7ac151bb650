// Cases 31, 37 and 38: what looks at the stack, or returns in an unusual way, sees nothing of a return probe: backtrace(),
// __builtin_return_address, alloca, struct, long double, 128-bit and vector results, a stack protector, a signal handler.
#include <complex.h>
#include <execinfo.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>

#include "target.h"

struct large {
  uint64_t words[6];
};
typedef double vector __attribute__((vector_size(32)));

static void *expected;
static volatile uint64_t ticks;

PROBED int probe_me_walks(void **frames, int size) { return backtrace(frames, size) + 0 * size; }
PROBED bool probe_me_asks_who(void) {
  __asm__ volatile("" ::: "memory");
  return __builtin_return_address(0) == expected;
}
PROBED uint64_t probe_me_alloca(size_t n) {
  char *bytes = __builtin_alloca(n);
  memset(bytes, 1, n);
  uint64_t sum = 0;
  for (size_t i = 0; i < n; i++) sum += (uint64_t)((volatile char *)bytes)[i];
  return sum;
}
PROBED struct large probe_me_struct(uint64_t n) {
  return (struct large){{n, n + 1, n + 2, n + 3, n + 4, n + 5}};
}
PROBED long double probe_me_long_double(long double x) { return x * 3 + 1; }
PROBED __int128 probe_me_int128(__int128 x) { return x * x; }
PROBED double _Complex probe_me_complex(double re) { return re + 2.0 * re * I; }
__attribute__((target("avx"))) PROBED vector probe_me_vector(vector v) { return v + v; }
PROBED float probe_me_float(float f) { return f / 2; }
__attribute__((optimize("stack-protector-all"))) PROBED uint64_t probe_me_protected(uint64_t n) {
  volatile char room[40];
  for (size_t i = 0; i < sizeof room; i++) room[i] = (char)n;
  return n + (uint64_t)room[7];
}
PROBED uint64_t probe_me_in_handler(uint64_t n) {
  __asm__ volatile("" : "+r"(n));
  return n + 1;
}

static volatile sig_atomic_t handled;
static void handler(int number) {
  (void)number;
  ticks = probe_me_in_handler(ticks);
  handled++;
}

__attribute__((noinline)) static bool ask(void) {
  expected = &&here;
  bool same = probe_me_asks_who();
  (void)same;
here:
  return true;
}

__attribute__((target("avx"))) static void check_vector(void) {
  vector v = probe_me_vector((vector){1, 2, 3, 4});
  TARGET_CHECK(v[0] == 2 && v[1] == 4 && v[2] == 6 && v[3] == 8);
}

static void one_round(uint64_t i, bool has_avx) {
  void *frames[64], *again[64];
  int n = probe_me_walks(frames, 64), m = probe_me_walks(again, 64);
  TARGET_CHECK(n == m && n >= 3 && memcmp(frames + 1, again + 1, 0) == 0);
  TARGET_CHECK(memcmp(frames + 2, again + 2, sizeof(void *) * (size_t)(n - 2)) == 0);
  TARGET_CHECK(ask());
  TARGET_CHECK(probe_me_alloca(100 + i % 50) == 100 + i % 50);
  struct large l = probe_me_struct(i);
  TARGET_CHECK(l.words[0] == i && l.words[5] == i + 5);
  TARGET_CHECK(probe_me_long_double(2.5L) == 8.5L);
  TARGET_CHECK(probe_me_int128((__int128)1 << 40) == (__int128)1 << 80);
  TARGET_CHECK(probe_me_complex(1.5) == 1.5 + 3.0 * I);
  TARGET_CHECK(probe_me_float(5.0f) == 2.5f);
  TARGET_CHECK(probe_me_protected(i % 100) == 2 * (i % 100));
  target_count(10);
  if (has_avx) {
    check_vector();
    target_count(1);
  }
}

int main(int argc, char **argv) {
  target_begin(argc, argv, 3000, NULL);
  struct sigaction action = {.sa_handler = handler, .sa_flags = SA_RESTART};
  sigaction(SIGALRM, &action, NULL);
  void *warm_up[4];
  backtrace(warm_up, 4);
  target_ready();
  struct itimerval often = {{0, 500}, {0, 500}}, never = {{0, 0}, {0, 0}};
  setitimer(ITIMER_REAL, &often, NULL);
  bool has_avx = __builtin_cpu_supports("avx");
  for (long round = 0; target_more(round); round++) one_round((uint64_t)round, has_avx);
  setitimer(ITIMER_REAL, &never, NULL);
  TARGET_CHECK(ticks == (uint64_t)handled);
  target_count(ticks);
  return target_end();
}
