// What a detour leaves on the target's stack for the programs of one hit.
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace spile::abi {

/// The context that programs see in r1: the kernel's struct pt_regs, then what only we know.
///
/// The detour stores only those registers that its programs read or clobber; the other slots hold
/// garbage, which no checked program can see, because the detour's mask covers every context load
/// of its programs.
struct HitFrame {
  uint64_t r15, r14, r13, r12, bp, bx, r11, r10, r9, r8, ax, cx, dx, si, di;
  uint64_t orig_ax, ip, cs, flags, sp, ss;
  uint64_t cookie;      ///< index of the probe in the Bundle: helper get_attach_cookie
  uint64_t at_entry;    ///< not 0: ip is a function's first instruction, [sp] its return address
  uint64_t overridden;  ///< helper override_return: not 0 ends the function with override_value
  uint64_t override_value;
};
static_assert(offsetof(HitFrame, di) == 112 && offsetof(HitFrame, ss) == 160 &&
              sizeof(HitFrame) == 200);

/// Bytes below the stack pointer that belong to the interrupted function (System V psABI, 3.2.2).
inline constexpr uint64_t kRedZoneBytes = 128;

/// Upper bound of target stack that one hit may use, red zone included; the JIT refuses programs
/// that need more.
inline constexpr uint64_t kMaxHitStackBytes = 1536;

}  // namespace spile::abi
