#include "user_engine/merged_view.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <optional>

#include "user_engine/shm/maps.h"

namespace spile::user_engine {

Result<MergedMap> read_merged_map(const bundle::Bundle& bundle, Regions regions, int map) {
  std::map<std::vector<uint8_t>, engine::MapEntry> merged;
  MergedMap result;
  bool adds_up = bundle.maps.at(static_cast<size_t>(map)).role != bundle::MapRole::kValue;
  for (const shm::Region* region : regions) {
    SPILE_TRY(auto entries, shm::snapshot(*region, static_cast<size_t>(map)));
    for (shm::MapEntry& entry : entries) {
      engine::MapEntry& out = merged[entry.key];
      if (!out.values.empty() && !adds_up) {
        result.key_set_twice = true;
        continue;
      }
      out.key = entry.key;
      std::ranges::move(entry.values, std::back_inserter(out.values));
    }
  }
  for (auto& [key, entry] : merged) result.entries.push_back(std::move(entry));
  return result;
}

Result<std::vector<uint64_t>> read_merged_stack(Regions regions, int map, uint64_t id) {
  std::optional<Error> worst;
  for (const shm::Region* region : regions) {
    auto frames = shm::read_stack(*region, static_cast<size_t>(map), id);
    if (frames) return frames;
    if (!worst || frames.error().code == ErrorCode::kCorrupt) worst = std::move(frames.error());
  }
  return std::unexpected(std::move(*worst));
}

namespace {

/// What programs count in a map of their own, by bundle::Counter.
Result<void> add_counters(const bundle::Bundle& bundle, Regions regions, engine::Stats& stats) {
  uint64_t* const sums[] = {&stats.ring_lost, &stats.map_full, &stats.read_failed,
                            &stats.stacks_lost, &stats.loops_cut};
  SPILE_TRY(auto map, read_merged_map(bundle, regions, bundle.counters_map));
  for (const engine::MapEntry& entry : map.entries) {
    uint32_t index = 0;
    if (entry.key.size() == sizeof index) std::memcpy(&index, entry.key.data(), sizeof index);
    if (index >= std::size(sums)) continue;
    for (const auto& value : entry.values) {
      uint64_t one = 0;
      std::memcpy(&one, value.data(), std::min(value.size(), sizeof one));
      *sums[index] += one;
    }
  }
  return {};
}

}  // namespace

Result<MergedStats> read_merged_stats(const bundle::Bundle& bundle, Regions regions) {
  MergedStats merged;
  for (const shm::Region* region : regions) {
    abi::CpuStats counted = region->stats_untrusted();
    merged.stats.hits += counted.hits;
    merged.stats.missed += counted.missed + counted.map_contended;
    merged.stats.ring_lost += counted.ring_contended;
    merged.stats.unseen_returns += counted.unseen_returns;
    merged.overwritten |= counted.corrupt > 0;
  }
  if (bundle.counters_map >= 0) SPILE_TRY_VOID(add_counters(bundle, regions, merged.stats));
  return merged;
}

}  // namespace spile::user_engine
