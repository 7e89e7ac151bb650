// What the crowd, a program of threads that never rest, and the test that probes it tell each other in shared memory.
// Every word is read and written with __atomic builtins, in sequence.
#pragma once

#include <stdint.h>

enum { kThreads = 8, kHotFunctions = 3 };

struct CrowdThread {
  uint64_t begun, done;  // rounds of one call of each hot function: counted before and behind each round
  uint64_t limit;        // the test's: the thread makes so many rounds in all, then parks
  uint64_t asked;        // the test's: one more each time, behind `limit`
  uint64_t obeyed;       // the `asked` that the thread had seen before it found that it has reached its limit
  uint64_t wrong;        // results that were not what they should be
  uint64_t own_line[2];
};

struct Crowd {
  struct CrowdThread threads[kThreads];
  uint64_t ends;  // the test's
};
