// `spile -l`: which probes there are.
#pragma once

#include <string>

#include "session/request.h"

namespace spile::session {

/// Prints the probes that match a pattern (`uprobe:libc:*alloc*`), one a line; with verbose their
/// arguments. `struct X`, `union X` and `enum X` are types of the kernel.
int list_pattern(const std::string& pattern, const TraceRequest& request);
/// Prints the probes of a script, wildcards expanded; with verbose their arguments.
int list_script(const TraceRequest& request);

}  // namespace spile::session
