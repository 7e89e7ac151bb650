// Records that come in several streams -> one stream in time order. Pure.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "engine/engine.h"

namespace spile::kernel_engine {

class RecordOrder {
 public:
  void add(uint64_t time_ns, std::span<const uint8_t> record);
  /// Passes on, oldest first, what is not younger than `until_ns`; of one moment in the order in
  /// which they came. Returns how many. The rest is kept.
  size_t give(uint64_t until_ns, const engine::RecordSink& sink);
  bool empty() const { return held_.empty(); }

 private:
  struct Held {
    uint64_t time_ns;
    size_t begin, size;  ///< in bytes_
  };
  void keep_from(size_t first);

  std::vector<Held> held_;
  std::vector<uint8_t> bytes_;
};

}  // namespace spile::kernel_engine
