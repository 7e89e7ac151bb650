// Paths of control groups by their id.
#pragma once

#include <cstdint>
#include <string>

namespace spile::output {

/// "unified:/system.slice/cron.service": where the mounted hierarchies have the group now, one
/// after the other with commas between; "" where none has it. cgroup2 is called "unified", others
/// by the last part of where they are mounted; `filter`, not empty, is a pattern that the name must
/// match. Cost: the folders of the hierarchies are walked through.
std::string cgroup_path_text(uint64_t id,
                             const std::string& filter,
                             const std::string& mounts = "/proc/self/mounts");

}  // namespace spile::output
