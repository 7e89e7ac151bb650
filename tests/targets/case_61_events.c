// Case 61: many hits in a short time, each an event with a string: more than any ring holds while its reader sleeps. The
// program prints how long its work took: it must never wait for the reader.
#include <stdio.h>
#include <string.h>

#include "target.h"

PROBED uint64_t probe_me(const char *name, uint64_t n) { return strlen(name) + n; }

int main(int argc, char **argv) {
  target_begin(argc, argv, 200000, NULL);
  static const char *const kNames[] = {"a", "somewhat longer", "a name of an ordinary file: /etc/passwd"};
  target_ready();
  const double begin = target_now();
  for (long i = 0; target_more(i); i++) {
    const char *name = kNames[i % 3];
    target_count(1);
    TARGET_CHECK(probe_me(name, (uint64_t)i) == strlen(name) + (uint64_t)i);
  }
  printf("seconds=%.3f\n", target_now() - begin);
  return target_end();
}
