// Map operations of the tracer on shared memory that the target changes meanwhile, and may have
// corrupted.
//
// The same algorithms as in the target (rt/map_ops.h) on the tracer's private descriptors, so
// BEGIN, END and interval programs see and change the same maps. `map` is an index into
// Bundle::maps and must be one; rings are refused.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "base/error.h"
#include "user_engine/shm/region.h"

namespace spile::shm {

struct MapEntry {
  std::vector<uint8_t> key;                  ///< key_size bytes; arrays: the u32 index
  std::vector<std::vector<uint8_t>> values;  ///< one, or one for each CPU slot
};

/// Every entry, in no order. An entry that lives through the whole call is there exactly once; one
/// that comes or goes meanwhile may be there. Errors: corrupt when the chains make no sense (or
/// never hold still).
Result<std::vector<MapEntry>> snapshot(const Region& region, size_t map);

/// The value(s) of one key, or nothing.
Result<std::optional<MapEntry>> lookup(const Region& region,
                                       size_t map,
                                       std::span<const uint8_t> key);

/// Sets the value of CPU slot 0 (the others of a new key are zero). Errors: invalid sizes, busy
/// when full or contended.
Result<void> update(const Region& region,
                    size_t map,
                    std::span<const uint8_t> key,
                    std::span<const uint8_t> value);

/// False: there was no such key. Arrays cannot lose keys: invalid.
Result<bool> erase(const Region& region, size_t map, std::span<const uint8_t> key);

/// Removes every key that is there when it begins; arrays: zero().
Result<void> clear(const Region& region, size_t map);

/// The addresses of a stack by the id that get_stackid gave, the innermost first.
/// Errors:  not found  there is none of that id here
///          corrupt    what is there is not what was hashed
Result<std::vector<uint64_t>> read_stack(const Region& region, size_t map, uint64_t id);

/// Sets every value to zero, keeps the keys.
Result<void> zero(const Region& region, size_t map);

}  // namespace spile::shm
