// The ways by which records come from the kernel.
#pragma once

#include <string_view>

#include "base/error.h"

namespace spile::kernel_engine {

enum class RecordPath : uint8_t {
  kAuto,        ///< the ring buffer, where the kernel has one
  kRingBuffer,  ///< one for all CPUs, in time order (5.8)
  kPerfBuffer,  ///< one a CPU, put in order by time
};

/// "auto", "ring", "perf".
inline Result<RecordPath> record_path_of(std::string_view name) {
  if (name == "auto") return RecordPath::kAuto;
  if (name == "ring") return RecordPath::kRingBuffer;
  if (name == "perf") return RecordPath::kPerfBuffer;
  return fail(ErrorCode::kInvalid, "'{}' is no way for records: auto, ring or perf", name);
}

}  // namespace spile::kernel_engine
