// Maps, stacks and counters of several processes, read as if they were those of one.
#pragma once

#include <span>
#include <vector>

#include "bundle/bundle.h"
#include "engine/engine.h"
#include "user_engine/shm/region.h"

namespace spile::user_engine {

/// One a process. Their contents are the targets' to write: what is read is checked.
using Regions = std::span<const shm::Region* const>;

struct MergedMap {
  std::vector<engine::MapEntry> entries;
  bool key_set_twice = false;  ///< by several processes, and one value cannot say both
};

/// Values of several processes are those of more CPUs, to whoever adds them up.
Result<MergedMap> read_merged_map(const bundle::Bundle& bundle, Regions regions, int map);

/// Ids are hashes: the same stack has the same one in every process.
Result<std::vector<uint64_t>> read_merged_stack(Regions regions, int map, uint64_t id);

struct MergedStats {
  engine::Stats stats;
  bool overwritten = false;  ///< a target has scribbled over its own figures
};
Result<MergedStats> read_merged_stats(const bundle::Bundle& bundle, Regions regions);

}  // namespace spile::user_engine
