// Case 5: a library with no free address space within 2 GiB of it: a jump from its code cannot reach anything new.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <inttypes.h>
#include <link.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "target.h"

static const uint64_t kReach = 0x80000000ull + 0x1000000ull;

// Reserves every hole of the address space within reach of `address`.
static void reserve_around(uint64_t address) {
  static char maps[1 << 18];
  FILE *file = fopen("/proc/self/maps", "r");
  TARGET_CHECK(file != NULL);
  const size_t got = fread(maps, 1, sizeof maps - 1, file);
  fclose(file);
  maps[got] = 0;
  uint64_t hole = address - kReach;
  for (char *line = strtok(maps, "\n"); line != NULL; line = strtok(NULL, "\n")) {
    uint64_t begin, end;
    TARGET_CHECK(sscanf(line, "%" SCNx64 "-%" SCNx64, &begin, &end) == 2);
    const uint64_t stop = begin < address + kReach ? begin : address + kReach;
    if (stop > hole)
      mmap((void *)hole, stop - hole, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE, -1, 0);
    if (end > hole) hole = end;
  }
  if (hole < address + kReach)
    mmap((void *)hole, address + kReach - hole, PROT_NONE,
         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE, -1, 0);
}

int main(int argc, char **argv) {
  target_begin(argc, argv, 100000, NULL);
  char path[4096];
  const ssize_t n = readlink("/proc/self/exe", path, sizeof path - 64);
  TARGET_CHECK(n > 0);
  path[n] = 0;
  strcpy(strrchr(path, '/') + 1, "libcase_56.so");
  void *library = dlopen(path, RTLD_NOW);
  if (library == NULL) target_fail("dlopen: %s", dlerror());
  uint64_t (*probe_me)(uint64_t) = (uint64_t(*)(uint64_t))dlsym(library, "probe_me");
  TARGET_CHECK(probe_me != NULL);
  reserve_around((uint64_t)(uintptr_t)probe_me);
  target_ready();
  for (long i = 0; target_more(i); i++) {
    target_count(1);
    TARGET_CHECK(probe_me((uint64_t)i) == (uint64_t)i * 11 + 5);
  }
  return target_end();
}
