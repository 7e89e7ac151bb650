#include "user_engine/shm/maps.h"

#include <algorithm>
#include <cstring>
#include <functional>

#include "user_engine/rt/map_ops.h"
#include "user_engine/rt/stack_ops.h"

namespace spile::shm {
namespace {

Result<const abi::RtMap*> data_map(const Region& region, size_t map) {
  if (map >= region.map_count()) return fail(ErrorCode::kInvalid, "no map {}", map);
  const abi::RtMap& found = region.map(map);
  if (found.kind == abi::RtMapKind::kRing || found.kind == abi::RtMapKind::kStacks ||
      found.kind == abi::RtMapKind::kCalls)
    return fail(ErrorCode::kInvalid, "map {} is a ring, or holds stacks or calls", map);
  return &found;
}

Result<void> check_size(std::string_view what, size_t got, uint32_t wanted) {
  if (got == wanted) return {};
  return fail(ErrorCode::kInvalid, "{} of {} bytes for a map with {}", what, got, wanted);
}

std::vector<uint8_t> copy_words(const uint64_t* from, uint32_t bytes) {
  std::vector<uint8_t> to(bytes);
  for (uint32_t done = 0; done < bytes; done += 8, ++from) {
    const uint64_t word = rt::load_acquire(from);
    std::memcpy(to.data() + done, &word, std::min(8u, bytes - done));
  }
  return to;
}

std::vector<std::vector<uint8_t>> copy_values(const abi::RtMap& map, uint32_t index) {
  std::vector<std::vector<uint8_t>> values;
  for (uint32_t cpu = 0; cpu <= map.cpu_mask; ++cpu) {
    values.push_back(copy_words(rt::value_of(map, index, cpu), map.value_size));
  }
  return values;
}

MapEntry array_entry(const abi::RtMap& map, uint32_t index) {
  std::vector<uint8_t> key(4);
  std::memcpy(key.data(), &index, 4);
  return {std::move(key), copy_values(map, index)};
}

/// Copies every chain; one that was disturbed is copied anew.
class ChainWalker {
 public:
  explicit ChainWalker(const abi::RtMap& map)
      : map_(map), budget_(uint64_t{8} * map.capacity + 65536) {}

  Result<std::vector<MapEntry>> run() {
    for (uint64_t bucket = 0; bucket <= map_.bucket_mask; ++bucket) {
      SPILE_TRY_VOID(walk_bucket(bucket));
    }
    return std::move(entries_);
  }

 private:
  Result<void> walk_bucket(uint64_t bucket) {
    const size_t before = entries_.size();
    for (uint32_t i = 0; i < rt::kMaxTries; ++i) {
      const rt::Walk walk = walk_once(bucket);
      if (walk == rt::Walk::kAbsent) return {};
      entries_.resize(before);
      if (walk == rt::Walk::kCorrupt || budget_ == 0) break;
    }
    return fail(ErrorCode::kCorrupt, "a map in shared memory does not hold together (bucket {})",
                bucket);
  }

  rt::Walk walk_once(uint64_t bucket) {
    uint32_t steps = static_cast<uint32_t>(std::min<uint64_t>(budget_, rt::kMaxSteps));
    const uint32_t given = steps;
    MapEntry seen;
    const rt::Position at = rt::walk_chain(
        map_, rt::bucket_of(map_, bucket), &steps,
        [&](abi::HashEntry* entry, uint32_t index) {
          seen = {copy_words(rt::key_of(entry), map_.key_size), copy_values(map_, index)};
          return false;
        },
        [&](uint32_t) { entries_.push_back(std::move(seen)); });
    budget_ -= given - steps;
    return at.walk;
  }

  const abi::RtMap& map_;
  uint64_t budget_;  ///< entries that may still be looked at, so that a hostile chain ends
  std::vector<MapEntry> entries_;
};

/// Calls `visit` with every entry number that is in some chain; corrupt chains end early.
void for_each_value(const abi::RtMap& map, const std::function<void(uint32_t index)>& visit) {
  if (rt::is_array(map)) {
    for (uint32_t i = 0; i < map.max_entries; ++i) visit(i);
    return;
  }
  uint64_t budget = uint64_t{8} * map.capacity + 65536;
  for (uint64_t bucket = 0; bucket <= map.bucket_mask; ++bucket) {
    for (uint32_t i = 0; i < rt::kMaxTries && budget != 0; ++i) {
      uint32_t steps = static_cast<uint32_t>(std::min<uint64_t>(budget, rt::kMaxSteps));
      const uint32_t given = steps;
      const rt::Position at = rt::walk_chain(
          map, rt::bucket_of(map, bucket), &steps, [](abi::HashEntry*, uint32_t) { return false; },
          visit);
      budget -= given - steps;
      if (at.walk != rt::Walk::kDisturbed) break;
    }
  }
}

}  // namespace

Result<std::vector<MapEntry>> snapshot(const Region& region, size_t map_index) {
  SPILE_TRY(const abi::RtMap* map, data_map(region, map_index));
  if (rt::is_hash(*map)) return ChainWalker(*map).run();
  std::vector<MapEntry> entries;
  for (uint32_t i = 0; i < map->max_entries; ++i) entries.push_back(array_entry(*map, i));
  return entries;
}

Result<std::optional<MapEntry>> lookup(const Region& region,
                                       size_t map_index,
                                       std::span<const uint8_t> key) {
  SPILE_TRY(const abi::RtMap* map, data_map(region, map_index));
  SPILE_TRY_VOID(check_size("key", key.size(), map->key_size));
  if (rt::is_array(*map)) {
    const uint32_t index = rt::array_index(key.data());
    if (index >= map->max_entries) return std::optional<MapEntry>();
    return array_entry(*map, index);
  }
  const rt::Position at =
      rt::find(region.consts(), *map, rt::hash_key(*map, key.data()), key.data());
  if (at.walk == rt::Walk::kCorrupt)
    return fail(ErrorCode::kCorrupt, "map {} does not hold together", map_index);
  if (at.walk == rt::Walk::kDisturbed)
    return fail(ErrorCode::kBusy, "map {} never holds still", map_index);
  if (at.walk == rt::Walk::kAbsent) return std::optional<MapEntry>();
  return MapEntry{{key.begin(), key.end()}, copy_values(*map, static_cast<uint32_t>(at.index))};
}

Result<void> update(const Region& region,
                    size_t map_index,
                    std::span<const uint8_t> key,
                    std::span<const uint8_t> value) {
  SPILE_TRY(const abi::RtMap* map, data_map(region, map_index));
  SPILE_TRY_VOID(check_size("key", key.size(), map->key_size));
  SPILE_TRY_VOID(check_size("value", value.size(), map->value_size));
  const int64_t result =
      rt::map_update(region.consts(), *map, key.data(), value.data(), rt::kFlagAny, 0);
  if (result == 0) return {};
  return fail(ErrorCode::kBusy, "map {}: {}", map_index,
              result == rt::kErrTooBig ? "full" : "never holds still");
}

Result<bool> erase(const Region& region, size_t map_index, std::span<const uint8_t> key) {
  SPILE_TRY(const abi::RtMap* map, data_map(region, map_index));
  SPILE_TRY_VOID(check_size("key", key.size(), map->key_size));
  const int64_t result = rt::map_delete(region.consts(), *map, key.data());
  if (result == 0 || result == rt::kErrNoEntry) return result == 0;
  if (result == rt::kErrInvalid)
    return fail(ErrorCode::kInvalid, "map {} is an array: keys stay", map_index);
  return fail(ErrorCode::kBusy, "map {} never holds still", map_index);
}

Result<void> clear(const Region& region, size_t map_index) {
  SPILE_TRY(const abi::RtMap* map, data_map(region, map_index));
  if (rt::is_array(*map)) return zero(region, map_index);
  SPILE_TRY(const std::vector<MapEntry> entries, snapshot(region, map_index));
  for (const MapEntry& entry : entries) {
    const Result<bool> erased = erase(region, map_index, entry.key);
    if (!erased) return std::unexpected(erased.error());
  }
  return {};
}

Result<void> zero(const Region& region, size_t map_index) {
  SPILE_TRY(const abi::RtMap* map, data_map(region, map_index));
  for_each_value(*map, [&](uint32_t index) {
    for (uint32_t cpu = 0; cpu <= map->cpu_mask; ++cpu)
      rt::zero_value(*map, rt::value_of(*map, index, cpu));
  });
  return {};
}

Result<std::vector<uint64_t>> read_stack(const Region& region, size_t map_index, uint64_t id) {
  if (map_index >= region.map_count() || region.map(map_index).kind != abi::RtMapKind::kStacks)
    return fail(ErrorCode::kInvalid, "map {} holds no stacks", map_index);
  const abi::RtMap& map = region.map(map_index);
  for (uint32_t i = 0; id != 0 && i < rt::kMaxStackProbes; ++i) {
    abi::StackHead* head = rt::stack_slot(map, id + i);
    const uint64_t holds = rt::load_acquire(&head->id);
    if (holds == 0) break;
    if (holds != id) continue;
    const uint64_t count = std::min<uint64_t>(rt::load_acquire(&head->count), map.value_size / 8);
    std::vector<uint64_t> frames(count);
    uint64_t hash = rt::stack_hash_start(map);
    for (uint64_t n = 0; n < count; ++n) {
      frames[n] = rt::load_relaxed(rt::frames_of(head) + n);
      hash = rt::hash_word(hash, frames[n]);
    }
    if (rt::stack_id_of(hash) != id)
      return fail(ErrorCode::kCorrupt, "stack {:#x} does not hold together", id);
    return frames;
  }
  return fail(ErrorCode::kNotFound, "no stack {:#x}", id);
}

}  // namespace spile::shm
