// Which CPU the calling thread runs on.
#pragma once

#include <sched.h>

#include "base/error.h"

namespace spile::os {

/// Pins the calling thread to one CPU until the object goes away. A ptrace stop costs 5 us on the
/// tracee's own CPU, 150 us across CPUs. Where the CPU is not allowed to us nothing is changed:
/// pinning is a matter of speed alone.
class CpuPin {
 public:
  CpuPin() = default;
  CpuPin(CpuPin&& other) noexcept;
  CpuPin& operator=(CpuPin&& other) noexcept;
  CpuPin(const CpuPin&) = delete;
  CpuPin& operator=(const CpuPin&) = delete;
  ~CpuPin();

  static CpuPin to(int cpu);
  bool active() const { return active_; }

 private:
  void restore();
  cpu_set_t before_{};
  bool active_ = false;
};

}  // namespace spile::os
