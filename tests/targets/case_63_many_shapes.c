// Case 63: 24,000 probed functions, each called in each round in an order of the round's own.
#include "target.h"

enum { kFunctions = 24000 };
typedef uint64_t (*function)(uint64_t);
extern const function many[kFunctions];

int main(int argc, char **argv) {
  target_begin(argc, argv, 30, 0);
  target_ready();
  for (long round = 0; target_more(round); round++) {
    const uint64_t step = 7919 + 30 * (uint64_t)(round % 500);  // prime to 24000: every function once
    uint64_t at = 0;
    for (int i = 0; i < kFunctions; i++, at = (at + step) % kFunctions) {
      const uint64_t got = many[at]((uint64_t)round);
      if (got != (uint64_t)round + at) target_fail("function %llu gave %llu", (unsigned long long)at, (unsigned long long)got);
    }
    target_count(kFunctions);
  }
  return target_end();
}
