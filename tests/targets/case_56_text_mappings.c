// Case 56: code whose mapping is unusual. Modes: `sealed` (mseal), `deleted` (the library's file is gone), `replaced`
// (another file has its name), `memfd` (loaded from an anonymous file), `twice` (mapped twice, by dlopen of two copies of
// the path through dlmopen), `reload` (dlclose and dlopen again while the program runs), `late` (loaded after ready).
// The harness probes probe_me of the library; `work` is the path it has.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "target.h"

typedef uint64_t (*function)(uint64_t);

static char library_path[4096];

static void find_library(void) {
  const ssize_t n = readlink("/proc/self/exe", library_path, sizeof library_path - 64);
  TARGET_CHECK(n > 0);
  library_path[n] = 0;
  strcpy(strrchr(library_path, '/') + 1, "libcase_56.so");
}

static void copy_to(int out) {
  const int in = open(library_path, O_RDONLY | O_CLOEXEC);
  struct stat info;
  TARGET_CHECK(in >= 0 && fstat(in, &info) == 0 && sendfile(out, in, NULL, (size_t)info.st_size) == info.st_size);
  close(in);
}

// Makes library_path a private copy, so that deleting or replacing it harms nobody else.
static void copy_library(void) {
  char path[] = "/tmp/spile-case-56-XXXXXX.so";
  const int out = mkostemps(path, 3, O_CLOEXEC);
  TARGET_CHECK(out >= 0);
  copy_to(out);
  fchmod(out, 0755);
  close(out);
  strcpy(library_path, path);
}

static function load(const char *path, void **handle) {
  *handle = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  if (*handle == NULL) target_fail("dlopen %s: %s", path, dlerror());
  const function found = (function)dlsym(*handle, "probe_me");
  TARGET_CHECK(found != NULL);
  return found;
}

static function load_from_memfd(void **handle) {
  char path[64];
  const int fd = memfd_create("library", 0);
  TARGET_CHECK(fd >= 0);
  copy_to(fd);
  snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
  return load(path, handle);
}

static void seal(function code) {
  const uintptr_t page = (uintptr_t)code & ~4095ul;
  if (syscall(462 /* mseal, Linux 6.10 */, page, 4096, 0) != 0) target_skip("this kernel has no mseal");
}

static void call(function probe_me, long rounds) {
  for (long i = 0; i < rounds; i++)
    if (probe_me((uint64_t)i) != (uint64_t)i * 11 + 5) target_fail("wrong result");
  target_count((uint64_t)rounds);
}

static void reload(void) {
  for (long round = 0; target_more(round); round++) {
    void *handle, *filler;
    call(load(library_path, &handle), 10);
    TARGET_CHECK(dlclose(handle) == 0);
    // Takes the place that the library had, every other time.
    filler = mmap(NULL, 5 * 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (round % 2 == 0) munmap(filler, 5 * 4096);
  }
}

int main(int argc, char **argv) {
  target_begin(argc, argv, 200, "late");
  find_library();
  function first = NULL, second = NULL;
  void *handle;
  if (target_mode_is("deleted") || target_mode_is("replaced")) copy_library();
  if (target_mode_is("memfd")) first = load_from_memfd(&handle);
  else if (!target_mode_is("reload") && !target_mode_is("late")) first = load(library_path, &handle);
  if (target_mode_is("sealed")) seal(first);
  if (target_mode_is("twice")) {
    void *again = dlmopen(LM_ID_NEWLM, library_path, RTLD_NOW);
    TARGET_CHECK(again != NULL);
    second = (function)dlsym(again, "probe_me");
    TARGET_CHECK(second != NULL && second != first);
  }
  if (target_mode_is("deleted") || target_mode_is("replaced")) TARGET_CHECK(unlink(library_path) == 0);
  if (target_mode_is("replaced")) {
    const int other = open(library_path, O_CREAT | O_EXCL | O_WRONLY | O_CLOEXEC, 0755);
    TARGET_CHECK(other >= 0 && write(other, "not a library any more\n", 23) == 23 && close(other) == 0);
  }
  if (target.wait && first != NULL && !target_mode_is("twice")) printf("work=%s\n", library_path);
  target_ready();
  if (target_mode_is("reload")) {
    reload();
  } else {
    if (first == NULL) first = load(library_path, &handle);
    for (long round = 0; target_more(round); round++) {
      call(first, 100);
      if (second != NULL) call(second, 100);
    }
  }
  if (target_mode_is("replaced")) unlink(library_path);
  return target_end();
}
