// The process of a trace: which program it is, and how it is started.
//
// The program's wait() and its SIGCHLD handler must not meet it. A child that is started without a
// signal gets SIGCHLD back by exec(2). So a child in between starts it and is gone at once, without
// an exec: it is init's then (or the program's, if that takes orphans).
#pragma once

#include <sys/types.h>

#include <string>

#include "base/error.h"
#include "base/fd.h"

namespace spile::api {

/// `given` or $SPILE_PROGRAM, or what lies beside the library or in $PATH.
/// Errors:  not found
Result<std::string> find_spile(const char* given);

/// The same descriptor where the start of a process does not write onto it; `what` for the error.
Result<Fd> high(Fd low, const char* what);

struct StartedSpile {
  pid_t pid = 0;
  Fd process;  ///< a pidfd, where the kernel has them (5.2)
};

/// `socket` and `words` (its standard error) are high() ones. It gets no other descriptor.
Result<StartedSpile> start_spile(const std::string& program, const Fd& socket, const Fd& words);

/// Where the program is the one that takes orphans; else it is nobody's child.
void wait_for_end(const Fd& process, pid_t pid);

}  // namespace spile::api
