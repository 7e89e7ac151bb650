// The library that cases 5 and 56 load.
#include <stdint.h>

__attribute__((visibility("default"), noinline)) uint64_t probe_me(uint64_t n) { return n * 11 + 5; }
