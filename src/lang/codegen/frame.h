// The 512 bytes of stack of a program: slots are handed out downwards and taken back at the end of
// a scope.
#pragma once

#include <algorithm>
#include <cstdint>

namespace spile::lang::codegen {

class Frame {
 public:
  static constexpr uint32_t kLimitBytes = 512;

  /// Offset from r10 of `size_bytes` (rounded up to 8), 8-aligned. Goes on beyond the limit, so
  /// that the need can be reported; the code is then thrown away.
  int allocate(uint32_t size_bytes) {
    used_ += (size_bytes + 7) / 8 * 8;
    peak_ = std::max(peak_, used_);
    return -static_cast<int>(used_);
  }
  uint32_t used() const { return used_; }
  uint32_t peak_bytes() const { return peak_; }
  /// As the kernel counts it where functions call each other.
  uint32_t rounded_peak_bytes() const { return (std::max(peak_, 1u) + 31) / 32 * 32; }
  void release_to(uint32_t used) { used_ = used; }

 private:
  uint32_t used_ = 0, peak_ = 0;
};

/// Slots allocated while it lives are free afterwards.
class FrameScope {
 public:
  explicit FrameScope(Frame& frame) : frame_(frame), used_(frame.used()) {}
  ~FrameScope() { frame_.release_to(used_); }
  FrameScope(const FrameScope&) = delete;
  FrameScope& operator=(const FrameScope&) = delete;

 private:
  Frame& frame_;
  uint32_t used_;
};

}  // namespace spile::lang::codegen
