// The Bundle's maps as kernel maps.
#pragma once

#include <vector>

#include "base/fd.h"
#include "engine/engine.h"

namespace spile::kernel_engine {

class Maps {
 public:
  static Result<Maps> create(const std::vector<bundle::MapSpec>& specs);

  int fd(int map) const { return fds_.at(map).get(); }
  const std::vector<bundle::MapSpec>& specs() const { return specs_; }

  /// Entries that come and go meanwhile may be in it or not; none is torn in its key.
  Result<std::vector<engine::MapEntry>> read(int map) const;
  /// The addresses that the kernel keeps under a stack id. Errors: not found.
  Result<std::vector<uint64_t>> read_stack(int map, uint64_t id) const;
  Result<void> clear(int map) const;
  Result<void> zero(int map) const;
  /// Sets one value of an array on every CPU.
  Result<void> set_array(int map, uint32_t index, uint64_t value) const;

 private:
  std::vector<bundle::MapSpec> specs_;
  std::vector<Fd> fds_;
  size_t cpus_ = 1;

  bool per_cpu(int map) const;
  size_t buffer_size(int map) const;
  Result<std::vector<std::vector<uint8_t>>> keys(int map) const;
};

}  // namespace spile::kernel_engine
