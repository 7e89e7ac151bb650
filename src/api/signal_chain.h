// Signals that the library takes for itself (breakpoints, faults in handlers), and whoever handled
// them before.
//
// Our handler stands in front of the program's. What is not ours goes on to it as the kernel would
// have called it: with its mask, once only where it wants that. A program that puts a handler of
// its own there later has taken the signal from us: that is found out at the next registration,
// and refused, since neither can know whether the other is called.
#pragma once

#include <signal.h>

#include "base/error.h"

namespace spile::api {

using SignalHandler = void (*)(int, siginfo_t*, void*);

/// `ours` handles `signal` from now on; nothing to do where it does. Under the engine's lock.
/// `flags`: SA_ONSTACK and the like; it is open for further signals (SA_NODEFER).
/// Errors:  busy  the program has handled the signal by something else since
Result<void> stand_in_front(int signal, SignalHandler ours, int flags);

/// In `ours`: does what would have happened without us. An exception is a signal of the thread's
/// own doing; for all but SIGTRAP its instruction runs once more.
void pass_on(int signal, siginfo_t* info, void* context);

}  // namespace spile::api
