// A running trace, from the request to the exit status.
#pragma once

#include "session/request.h"

namespace spile::session {

/// Compiles, attaches, prints until the script, the target or the user ends it, detaches, prints
/// the maps. Returns spile's exit status: that of exit(n), of the command of -c, or an ExitStatus.
int trace(const TraceRequest& request);

/// The same for a program that uses the library: its request comes over the socket, and frames go
/// back.
int trace_for_program(int socket);

}  // namespace spile::session
