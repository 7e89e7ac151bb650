// Case 18: a switch that compilers turn into a jump table.
#include "target.h"

PROBED uint64_t probe_me(uint64_t op, uint64_t a, uint64_t b) {
  switch (op) {
    case 0: return a + b;
    case 1: return a - b;
    case 2: return a * b;
    case 3: return a ^ b;
    case 4: return a | b;
    case 5: return a & b;
    case 6: return a << (b & 63);
    case 7: return a >> (b & 63);
    case 8: return ~a;
    case 9: return a / (b | 1);
    default: return b;
  }
}

static uint64_t expected(uint64_t op, uint64_t a, uint64_t b) {
  const uint64_t results[] = {a + b, a - b, a * b, a ^ b, a | b, a & b, a << (b & 63), a >> (b & 63), ~a, a / (b | 1), b};
  return results[op < 10 ? op : 10];
}

int main(int argc, char **argv) {
  uint64_t seed = 18;
  target_begin(argc, argv, 200000, 0);
  target_ready();
  for (long i = 0; target_more(i); i++) {
    const uint64_t op = target_random(&seed) % 12, a = target_random(&seed), b = target_random(&seed);
    target_count(1);
    TARGET_CHECK(probe_me(op, a, b) == expected(op, a, b));
  }
  return target_end();
}
