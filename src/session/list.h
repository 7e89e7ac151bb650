// `spile -l`: which probes there are.
#pragma once

#include <string>

#include "session/request.h"

namespace spile::session {

/// Prints the probes that match a pattern (`uprobe:libc:*alloc*`), one a line; with verbose the
/// fields of tracepoints.
int list_pattern(const std::string& pattern, const TraceRequest& request);
/// Prints the probes of a script, wildcards expanded.
int list_script(const TraceRequest& request);

}  // namespace spile::session
