#define _GNU_SOURCE
#include "target.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

struct target_options target;

static uint64_t private_calls;
static uint64_t *calls = &private_calls;
static double deadline;

double target_now(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

static const char *value_of(int argc, char **argv, int *i) {
  if (*i + 1 >= argc) target_fail("%s needs a value", argv[*i]);
  return argv[++*i];
}

void target_begin(int argc, char **argv, long default_rounds, const char *default_mode) {
  target.rounds = default_rounds;
  target.mode = default_mode;
  for (int i = 1; i < argc; i++) {
    if (strcmp(argv[i], "--wait") == 0) target.wait = true;
    else if (strcmp(argv[i], "--hold") == 0) target.hold = true;
    else if (strcmp(argv[i], "--rounds") == 0) target.rounds = atol(value_of(argc, argv, &i));
    else if (strcmp(argv[i], "--loop") == 0) target.loop_seconds = atof(value_of(argc, argv, &i));
    else if (strcmp(argv[i], "--mode") == 0) target.mode = value_of(argc, argv, &i);
    else target_fail("unknown argument %s", argv[i]);
  }
}

// A plain read, so that no lock of stdio is held while the program waits.
static void wait_for_line(void) {
  char c = 0;
  while (c != '\n') {
    ssize_t got = read(STDIN_FILENO, &c, 1);
    if (got == 0) break;
    if (got < 0) target_fail("read of stdin was disturbed: %m");
  }
}

void target_ready(void) {
  if (target.wait) {
    printf("ready\n");
    fflush(stdout);
    wait_for_line();
  }
  deadline = target_now() + target.loop_seconds;
}

bool target_more(long done) {
  return target.loop_seconds > 0 ? target_now() < deadline : done < target.rounds;
}

void target_count(uint64_t n) { __atomic_fetch_add(calls, n, __ATOMIC_RELAXED); }

uint64_t target_calls(void) { return __atomic_load_n(calls, __ATOMIC_RELAXED); }

void target_share_calls(void) {
  void *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (page == MAP_FAILED) target_fail("mmap: %m");
  calls = page;
  *calls = private_calls;
}

bool target_mode_is(const char *name) { return target.mode != NULL && strcmp(target.mode, name) == 0; }

void target_fail(const char *format, ...) {
  va_list args;
  va_start(args, format);
  printf("EXIT-FAILURE: ");
  vprintf(format, args);
  printf("\n");
  fflush(stdout);
  va_end(args);
  _exit(1);
}

void target_skip(const char *format, ...) {
  va_list args;
  va_start(args, format);
  printf("SKIP: ");
  vprintf(format, args);
  printf("\n");
  fflush(stdout);
  va_end(args);
  _exit(77);
}

int target_end(void) {
  if (target.hold) {
    printf("done\n");
    fflush(stdout);
    wait_for_line();
  }
  printf("calls=%llu\nEXIT-SUCCESS\n", (unsigned long long)__atomic_load_n(calls, __ATOMIC_RELAXED));
  fflush(stdout);
  return 0;
}

uint64_t target_random(uint64_t *state) {
  uint64_t x = *state;
  x ^= x >> 12;
  x ^= x << 25;
  x ^= x >> 27;
  *state = x;
  return x * 0x2545f4914f6cdd1dULL;
}
