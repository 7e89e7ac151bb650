// The Bundle's maps as kernel maps.
#pragma once

#include <vector>

#include "base/fd.h"
#include "engine/engine.h"
#include "kernel_engine/perf_output.h"
#include "kernel_engine/record_path.h"

namespace spile::kernel_engine {

class Maps {
 public:
  /// `record_bytes`: of the longest record.
  static Result<Maps> create(const std::vector<bundle::MapSpec>& specs,
                             RecordPath records = RecordPath::kAuto,
                             uint32_t record_bytes = 0);

  int fd(int map) const { return fds_.at(map).get(); }
  const std::vector<bundle::MapSpec>& specs() const { return specs_; }
  /// The map of Bundle::ring_map is one of perf buffers, and there is one more map behind the
  /// Bundle's, in which records are made.
  bool uses_perf_buffer() const { return fds_.size() > specs_.size(); }
  int scratch_map() const { return static_cast<int>(specs_.size()); }
  Claim scratch_claim() const { return claim_; }

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
  bool is_perf_ = false;
  Claim claim_ = Claim::kExchange;

  Result<Fd> make(const bundle::MapSpec& spec) const;
  Result<Fd> make_ring(const bundle::MapSpec& spec, RecordPath records);
  Result<void> make_scratch(uint32_t record_bytes);
  bool per_cpu(int map) const;
  size_t buffer_size(int map) const;
  Result<std::vector<std::vector<uint8_t>>> keys(int map) const;
};

}  // namespace spile::kernel_engine
