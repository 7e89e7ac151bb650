// Case 46 and many others: a plain counting loop, for two tracers at once, for gdb, strace and kernel uprobes on the same
// function, and for whatever else only needs a target. A second function lies right behind the probed one.
#include <unistd.h>

#include "target.h"

PROBED uint64_t probe_me(uint64_t n, const char *name) { return n * 3 + (uint64_t)name[n & 3]; }
PROBED uint64_t probe_me_too(uint64_t n) { return n ^ (n << 7); }

int main(int argc, char **argv) {
  target_begin(argc, argv, 1000, "busy");
  target_ready();
  uint64_t sum = 0;
  static const char kName[] = "name";
  for (long round = 0; target_more(round); round++) {
    for (uint64_t i = 0; i < 100; i++) {
      target_count(1);
      const uint64_t got = probe_me(i, kName);
      TARGET_CHECK(got == i * 3 + (uint64_t)kName[i & 3]);
      sum += got + probe_me_too(i);
    }
    if (target_mode_is("slow")) usleep(1000);
  }
  TARGET_CHECK(sum != 0 || target.loop_seconds > 0);
  return target_end();
}
