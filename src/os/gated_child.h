// A child that waits before its exec until it is told to go on: probes can be placed for its pid
// first.
#pragma once

#include <sys/types.h>

#include <string>
#include <utility>
#include <vector>

#include "base/error.h"
#include "base/fd.h"

namespace spile::os {

class GatedChild {
 public:
  /// `program` is a path. Signal dispositions and mask of the child are the defaults.
  static Result<GatedChild> spawn(const std::string& program,
                                  const std::vector<std::string>& arguments);

  GatedChild(GatedChild&& other) noexcept
      : pid_(std::exchange(other.pid_, 0)),
        gate_(std::move(other.gate_)),
        failure_(std::move(other.failure_)) {}
  GatedChild& operator=(GatedChild&&) = delete;
  /// A child that was never let go is killed.
  ~GatedChild();

  pid_t pid() const { return pid_; }
  /// Lets it call exec. Errors: that of the exec.
  Result<void> open_gate();

 private:
  GatedChild() = default;
  pid_t pid_ = 0;
  Fd gate_, failure_;
};

}  // namespace spile::os
