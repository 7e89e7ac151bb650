// What every target program shares: its arguments, its call counter and its verdict.
//
// A target does work that a probe could break, checks its own results and counts its own calls.
//   --rounds N      how much work (each program has its default, well under 2 s)
//   --loop SECONDS  repeat rounds until the time is over instead (for attach and detach in a loop)
//   --wait          print `ready`, then wait for a line on stdin before the work starts
//   --hold          print `done` after the work, then wait for a line on stdin before leaving
//   --mode NAME     which of the program's variants to run
// The last lines are `calls=N` and `EXIT-SUCCESS` (status 0), or `EXIT-FAILURE: why` (status 1).
#pragma once

#include <stdbool.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/// A probed function must stay a function of its own with an honest ABI.
#define PROBED __attribute__((noinline, noclone, used))

struct target_options {
  bool wait;
  bool hold;
  long rounds;
  double loop_seconds;
  const char *mode;
};
extern struct target_options target;

/// Reads the arguments; `mode` is what --mode is when not given.
void target_begin(int argc, char **argv, long default_rounds, const char *default_mode);
/// Prints `ready` and waits, if --wait was given. Starts the clock of --loop.
void target_ready(void);
/// Whether another round is due after `done` rounds. Safe to call from every thread.
bool target_more(long done);
/// Adds to the number of calls printed at the end. Safe from threads, signal handlers and forked children of
/// a program that called target_share_calls().
void target_count(uint64_t calls);
/// What has been added so far.
uint64_t target_calls(void);
/// Keeps the counter in shared memory, so that children count into the same total.
void target_share_calls(void);
bool target_mode_is(const char *name);
/// Prints `EXIT-FAILURE: why` and ends the process with status 1. Async-signal-unsafe.
__attribute__((noreturn, format(printf, 1, 2))) void target_fail(const char *format, ...);
/// Prints the reason and ends with status 77: this machine lacks what the case needs.
__attribute__((noreturn, format(printf, 1, 2))) void target_skip(const char *format, ...);
/// Waits if --hold was given, prints the counter and the verdict; the value is main's.
int target_end(void);

/// xorshift64*: the same sequence in every run.
uint64_t target_random(uint64_t *state);
double target_now(void);

#ifdef __cplusplus
}
#endif

#define TARGET_CHECK(condition)                                              \
  do {                                                                       \
    if (!(condition)) target_fail("%s:%d: %s", __FILE__, __LINE__, #condition); \
  } while (0)
