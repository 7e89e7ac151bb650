// The switches of tracepoints in all loaded modules, by name (include/spile/detail/site.h).
#pragma once

#include <spile/detail/site.h>

#include <string>

#include "base/error.h"

namespace spile::api {

/// A module came: those of its switches whose tracepoint is on are thrown at once.
void add_switches(const spile_site* begin, const spile_site* end);
void remove_switches(const spile_site* begin);

/// Throws all switches of "group:name". On failure none is left thrown.
/// Errors:  busy    the bytes at one are not ours: a debugger or another tracer has patched them
///          denied  /proc/self/mem cannot be written
Result<void> throw_switches(const std::string& name, bool on);

size_t count_switches(const std::string& name);

}  // namespace spile::api
