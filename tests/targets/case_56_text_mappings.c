// Case 56: code whose mapping is unusual. Modes: `sealed` (mseal), `deleted` (the library's file is gone), `replaced`
// (another file has its name), `memfd` (loaded from an anonymous file), `twice` (mapped twice, by dlopen of two copies of
// the path through dlmopen), `reload` (dlclose and dlopen again while the program runs), `late` (loaded after ready), `steps` (loaded
// and unloaded four times, each when the harness says so), `forks` (loaded
// between two forks), `at_once` (loaded, called 1000 times at once and unloaded, --rounds times, sometimes to another place; its
// constructor calls too), `at_once_beside` (the same while another thread forks and sends signals, and children load it themselves).
// The harness probes probe_me of the library; `work` is the path it has. The argument of a call at once is the number of the load.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "target.h"

typedef uint64_t (*function)(uint64_t);

static char library_path[4096];

static const char *library_name = "libcase_56.so";

static void find_library(void) {
  const ssize_t n = readlink("/proc/self/exe", library_path, sizeof library_path - 64);
  TARGET_CHECK(n > 0);
  library_path[n] = 0;
  strcpy(strrchr(library_path, '/') + 1, library_name);
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

// Waits for a line, so that the harness decides what it finds before the next step.
static void step(const char *name) {
  char line[64];
  printf("%s calls=%lu\n", name, (unsigned long)target_calls());
  fflush(stdout);
  TARGET_CHECK(fgets(line, sizeof line, stdin) != NULL);
}

// Loads, works, unloads, at the harness's pace: to the same place again, to another one, and with something else in its place.
static void load_and_unload(void) {
  void *handle, *place = NULL;
  for (int round = 0; round < 4; round++) {
    if (round == 2) {
      // Its old place is taken: it comes to another one.
      place = mmap((void *)((uintptr_t)place & ~4095ul), 2 * 4096, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
      TARGET_CHECK(place != MAP_FAILED);
      memset(place, 0x5a, 2 * 4096);
    }
    const function probe_me = load(library_path, &handle);
    step("loaded");
    call(probe_me, 100);
    step("worked");
    if (round < 2) place = (void *)probe_me;
    TARGET_CHECK(dlclose(handle) == 0);
    step("unloaded");
  }
  for (int i = 0; i < 2 * 4096; i++) TARGET_CHECK(((unsigned char *)place)[i] == 0x5a);
}

// A child from before the library, and one from after that still has it when the parent has unloaded and loaded it again.
// They go on when the trace is over.
static pid_t fork_a_child(int *end, function probe_me) {
  int pipe_ends[2], ready[2];
  char c;
  TARGET_CHECK(pipe(pipe_ends) == 0 && pipe(ready) == 0);
  const pid_t pid = fork();
  TARGET_CHECK(pid >= 0);
  if (pid == 0) {
    const size_t size = 1 << 20;  // less than a huge page, which would be put elsewhere
    close(pipe_ends[1]);
    // Memory of its own where the tracer will put something into the parent.
    unsigned char *own = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (own == MAP_FAILED) _exit(2);
    memset(own, 0x5a, size);
    if (write(ready[1], "r", 1) != 1 || read(pipe_ends[0], &c, 1) != 0) _exit(1);
    for (size_t i = 0; i < size; i++)
      if (own[i] != 0x5a) _exit(3);
    for (uint64_t i = 0; probe_me != NULL && i < 100; i++)
      if (probe_me(i) != i * 11 + 5) _exit(4);
    _exit(0);
  }
  close(pipe_ends[0]);
  TARGET_CHECK(read(ready[0], &c, 1) == 1);
  close(ready[0]);
  close(ready[1]);
  *end = pipe_ends[1];
  return pid;
}

static void fork_around_loading(void) {
  void *handle;
  int ends[2], status;
  pid_t children[2];
  children[0] = fork_a_child(&ends[0], NULL);
  function probe_me = load(library_path, &handle);
  step("loaded");
  call(probe_me, 100);
  children[1] = fork_a_child(&ends[1], probe_me);
  printf("children=%d %d\n", (int)children[0], (int)children[1]);
  step("worked");
  TARGET_CHECK(dlclose(handle) == 0);
  probe_me = load(library_path, &handle);
  step("reloaded");
  call(probe_me, 100);
  step("ended");
  close(ends[0]);  // the second child holds a copy of it, too
  close(ends[1]);
  for (int i = 1; i >= 0; i--) {
    TARGET_CHECK(waitpid(children[i], &status, 0) == children[i] && status == 0);
  }
}

static volatile bool stop_disturbing;
static pthread_t loading_thread;

static void on_signal(int number) { (void)number; }

// Interrupts the waits of the thread that loads, and forks in the middle of them.
static void *disturb(void *argument) {
  (void)argument;
  while (!stop_disturbing) {
    pthread_kill(loading_thread, SIGUSR1);
    const pid_t child = fork();
    if (child == 0) _exit(0);
    int status;
    TARGET_CHECK(child > 0 && waitpid(child, &status, 0) == child && status == 0);
    usleep(500);
  }
  return NULL;
}

// Its calls are its own: the tracer does not follow what a child loads.
static void load_in_a_child(void) {
  const pid_t child = fork();
  int status;
  if (child == 0) {
    void *handle;
    const function probe_me = load(library_path, &handle);
    _exit(probe_me(3) == 38 ? 0 : 1);
  }
  TARGET_CHECK(child > 0 && waitpid(child, &status, 0) == child && status == 0);
}

static void load_and_call_at_once(void) {
  const bool is_disturbed = target_mode_is("at_once_beside");
  pthread_t beside;
  loading_thread = pthread_self();
  for (long round = 0; target_more(round); round++) {
    void *handle, *filler;
    char number[16];
    if (is_disturbed && round % 5 == 0) load_in_a_child();
    snprintf(number, sizeof number, "%ld", round);
    setenv("CASE_56_LOAD", number, 1);
    stop_disturbing = false;
    if (is_disturbed) TARGET_CHECK(pthread_create(&beside, NULL, disturb, NULL) == 0);
    const function probe_me = load(library_path, &handle);
    for (int i = 0; i < 1000; i++) TARGET_CHECK(probe_me((uint64_t)round) == (uint64_t)round * 11 + 5);
    target_count(1000 + 10);
    stop_disturbing = true;
    if (is_disturbed) pthread_join(beside, NULL);
    TARGET_CHECK(dlclose(handle) == 0);
    // Takes the place that the library had, every fifth time.
    filler = mmap(NULL, 5 * 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (round % 5 != 0) munmap(filler, 5 * 4096);
  }
}

int main(int argc, char **argv) {
  target_begin(argc, argv, 200, "late");
  const bool is_at_once = strncmp(target.mode, "at_once", 7) == 0;
  if (is_at_once) {
    signal(SIGUSR1, on_signal);
    library_name = "libcase_56_at_once.so";
  }
  find_library();
  function first = NULL, second = NULL;
  void *handle;
  if (target_mode_is("deleted") || target_mode_is("replaced")) copy_library();
  if (target_mode_is("memfd")) first = load_from_memfd(&handle);
  else if (!target_mode_is("reload") && !target_mode_is("late") && !target_mode_is("steps") &&
           !target_mode_is("forks") && !is_at_once)
    first = load(library_path, &handle);
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
  } else if (target_mode_is("steps")) {
    load_and_unload();
  } else if (is_at_once) {
    load_and_call_at_once();
  } else if (target_mode_is("forks")) {
    fork_around_loading();
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
