// Children that a traced process has forked: they have its probes, and nobody told the tracer.
#pragma once

#include <cstdint>
#include <set>
#include <vector>

#include "os/process.h"

namespace spile::user_engine {

/// Whether `maps` has a mapping of the same file at the same place. Anything else that happens to
/// map the file is none of our business: what a hostile process says of itself must not reach
/// another.
bool has_same(const std::vector<os::MapEntry>& maps, const os::MapEntry& wanted);
/// False where nothing is wanted.
bool has_all(const std::vector<os::MapEntry>& maps, const std::vector<os::MapEntry>& wanted);

/// Other processes that have all of these mappings: children forked while the target was traced, so
/// none that is older than the tracer. Cost: some 7 us for each process of the machine.
std::vector<pid_t> forked_children(const std::vector<os::MapEntry>& mappings,
                                   uint64_t tracer_start_time,
                                   const std::set<pid_t>& known);

}  // namespace spile::user_engine
