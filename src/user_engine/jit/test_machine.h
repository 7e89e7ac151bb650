// Test support: runs generated code in this process with every register set, and looks at every
// register after.
#pragma once

#include <sys/mman.h>

#include <array>
#include <cstdint>
#include <cstring>
#include <span>
#include <vector>

#include "abi/hit_frame.h"
#include "base/address.h"
#include "base/error.h"
#include "base/fd.h"

namespace spile::jit::testing {

/// All that a detour must give back. Order of registers: x86's own, rsp apart.
struct CpuState {
  std::array<uint64_t, 16>
      gpr{};  ///< rax rcx rdx rbx (rsp: ignored on the way in) rbp rsi rdi r8 ... r15
  uint64_t flags = 0;
  std::array<std::array<uint64_t, 2>, 16> xmm{};
  bool operator==(const CpuState&) const = default;
};

enum GprNumber {
  kRax,
  kRcx,
  kRdx,
  kRbx,
  kRsp,
  kRbp,
  kRsi,
  kRdi,
  kR8,
  kR9,
  kR10,
  kR11,
  kR12,
  kR13,
  kR14,
  kR15
};

/// Calls `code` on this stack, lowered by `misalign_bytes`, with the state and with `frame` just
/// above the return address. Returns the state after; gpr[kRsp] is 0 in the result if the code gave
/// the stack pointer back.
CpuState run_with_state(uint64_t code,
                        const CpuState& state,
                        const abi::HitFrame& frame = {},
                        uint64_t misalign_bytes = 0);

/// A state where every register and flag has its own value. `flags` are the arithmetic ones plus DF
/// where asked.
CpuState distinct_state(uint64_t seed, uint64_t flags);

inline constexpr uint64_t kArithmeticFlags = 0x8d5;  ///< CF PF AF ZF SF OF
inline constexpr uint64_t kDirectionFlag = 0x400, kAlignmentFlag = 0x40000, kIdFlag = 0x200000;

/// Memory that can be written and run, near a given address or 8 GiB and more away from it.
class CodePage {
 public:
  enum class Where { kNear, kFar };
  explicit CodePage(Where where = Where::kNear, size_t size_bytes = 1 << 20);

  TargetAddr address() const { return TargetAddr(reinterpret_cast<uint64_t>(memory_.data())); }
  /// The next free place, aligned to 16.
  TargetAddr next() const { return address() + used_; }
  /// Copies to next(), returns where that is.
  TargetAddr put(std::span<const uint8_t> bytes);

 private:
  Mapping memory_;
  size_t used_ = 0;
};

}  // namespace spile::jit::testing
