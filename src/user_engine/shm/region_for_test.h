// A data region inside the test itself: the test is both target and tracer.
#pragma once

#include <gtest/gtest.h>
#include <sys/mman.h>

#include <cstring>
#include <string>
#include <vector>

#include "base/fd.h"
#include "user_engine/rt/map_ops.h"
#include "user_engine/shm/region.h"

namespace spile::shm {

inline bundle::MapSpec map_spec(bundle::MapKind kind,
                                uint32_t key,
                                uint32_t value,
                                uint32_t entries) {
  bundle::MapSpec spec;
  spec.name = "@test";
  spec.kind = kind;
  spec.key_size = key;
  spec.value_size = value;
  spec.max_entries = entries;
  return spec;
}

inline bundle::MapSpec ring_spec(uint32_t bytes) {
  return map_spec(bundle::MapKind::kRing, 0, 0, bytes);
}

class TestRegion {
 public:
  explicit TestRegion(std::vector<bundle::MapSpec> maps, uint32_t cpus = 4) {
    bundle::Bundle bundle;
    bundle.maps = std::move(maps);
    auto layout = plan_region(bundle, {.cpus = cpus, .site_capacity = 4, .seed = 12345});
    if (!layout) throw std::runtime_error(layout.error().message);
    void* data = mmap(nullptr, layout->size_bytes, PROT_READ | PROT_WRITE,
                      MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    memory_ = Mapping(data, layout->size_bytes);
    auto region = Region::format(memory_.bytes(), *layout);
    if (!region) throw std::runtime_error(region.error().message);
    region_ = std::move(*region);
  }

  const Region& region() const { return region_; }
  const abi::RtConsts& consts() const { return region_.consts(); }
  const abi::RtMap& map(size_t i = 0) const { return region_.map(i); }
  Mapping& memory() { return memory_; }

 private:
  Mapping memory_;
  Region region_;
};

/// Entries in chains plus entries on the free list: everything that was ever taken must be in one
/// of the two.
inline uint64_t entries_accounted_for(const abi::RtMap& map) {
  uint64_t count = 0;
  for (uint64_t b = 0; b <= map.bucket_mask; ++b) {
    for (uint64_t link = *rt::bucket_of(map, b); rt::link_index(link) != 0;) {
      ++count;
      link = rt::entry_of(map, rt::link_index(link) - 1)->link;
    }
  }
  for (uint64_t link = rt::head_of(map)->free_head; rt::link_index(link) != 0;) {
    ++count;
    link = rt::entry_of(map, rt::link_index(link) - 1)->link;
  }
  return count;
}

template <typename T>
const uint8_t* raw(const T& value) {
  return reinterpret_cast<const uint8_t*>(&value);
}

/// What a program does with a count() map: the current CPU's counter of `key`, plus one. False: the
/// map is full.
inline bool add_one(const TestRegion& r, const abi::RtMap& map, const uint8_t* key) {
  const uint32_t cpu = rt::current_cpu(r.consts());
  uint64_t* value = rt::map_lookup(r.consts(), map, key, cpu);
  if (value == nullptr) {
    const uint8_t zeroes[64] = {};
    const int64_t result = rt::map_update(r.consts(), map, key, zeroes, rt::kFlagNoExist, cpu);
    if (result != 0 && result != rt::kErrExists) return false;
    value = rt::map_lookup(r.consts(), map, key, cpu);
    if (value == nullptr) return false;
  }
  __atomic_fetch_add(value, 1, __ATOMIC_RELAXED);
  return true;
}

}  // namespace spile::shm
