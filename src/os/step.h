// A counter in front of every operation that another process feels, so that tests can break off
// between any two.
#pragma once

#include <cstdint>

namespace spile::os {

/// Called before each ptrace request and each write to /proc/PID/mem, with the number of the
/// operation (from 1).
using StepHook = void (*)(uint64_t number, const char* what);

/// Marks one operation on a target. `what` names it: "ptrace SETREGS".
///
/// The environment variable SPILE_KILL_AT_STEP=N makes this process kill itself (SIGKILL) before
/// operation N. It is always honoured: it harms nobody but the tracer itself, which runs with the
/// rights of whoever set the variable, and the promise under test is that a target survives exactly
/// this.
void step(const char* what);

/// Operations so far, in all threads.
uint64_t steps_taken();

/// Starts counting at zero again and kills this process before operation `number`; 0: never.
void kill_at_step(uint64_t number);

/// Called with every operation, before it is counted against kill_at_step; null: no hook. For
/// tests.
void set_step_hook(StepHook hook);

}  // namespace spile::os
