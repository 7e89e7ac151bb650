// `spile list`: events that can be counted, as `perf list` shows them.
#pragma once

#include <string>

#include "session/request.h"

namespace spile::session {

/// Those whose name matches `pattern` (`*` is a wildcard; "" is all): tracepoints, and counters
/// that this machine has. kFailed where there is none.
int list_events(const std::string& pattern, const TargetRequest& target);

}  // namespace spile::session
