// Instructions that do at another address what they did at their own.
//
// Displaced code is copied byte by byte; only displacements are patched and branches rewritten.
// Decoding and encoding again would be shorter to write, but changes the meaning of some
// instructions (87 c0, xchg %eax,%eax, clears the upper half of rax; an encoder makes a nop of it).
//
//   rip-relative operand       displacement rebased
//   jmp, jcc rel8/rel32        e9 rel32, 0f 8x rel32
//   loop*, jrcxz, jecxz        loop taken; jmp short next; taken: jmp rel32; next:
//   xbegin                     abort target rebased
//   call rel32                 push of the *original* return address; jmp rel32
//   call reg/mem               push of the original return address; jmp reg/mem
//   syscall                    syscall; lea the *original* address behind it, rcx
//   nop, endbr64               left out
//   everything else            copied
//
// Calls push the original return address so that the callee and unwinders see what they always saw.
// They must be the last instruction: the return comes back into the original code.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "base/address.h"
#include "base/error.h"
#include "x86/decode.h"
#include "x86/encode.h"

namespace spile::x86 {

/// The same moment of the program in the original code: a thread at `RelocatedCode::address +
/// offset` may be moved to `original` after adding `pop_bytes` to its rsp. Every instruction
/// boundary in relocated code has one.
struct ResumePoint {
  uint16_t offset = 0;
  TargetAddr original;
  uint8_t pop_bytes = 0;

  bool operator==(const ResumePoint&) const = default;
};

/// Where an original instruction went.
struct MovedInsn {
  uint8_t old_offset = 0;
  uint8_t old_bytes = 0;
  uint16_t new_offset = 0;
  Kind kind = Kind::kPlain;
};

struct RelocatedCode {
  TargetAddr address;   ///< where `bytes` must be placed
  TargetAddr original;  ///< where the instructions came from
  uint8_t original_bytes = 0;
  bool falls_through = true;  ///< control can leave at the end of `bytes` (into the jump back)
  Code bytes;
  std::vector<MovedInsn> insns;     ///< in order
  std::vector<ResumePoint> points;  ///< in order of offset

  /// Where a thread that was about to run the instruction at `rip` continues here. The end of the
  /// original window maps to the end of `bytes`. nullopt: not the head of a relocated instruction.
  std::optional<TargetAddr> to_relocated(TargetAddr rip) const;
  /// The way back. nullopt: `rip` is not at an instruction boundary of `bytes`.
  std::optional<ResumePoint> to_original(TargetAddr rip) const;
};

/// Whether one instruction can be relocated at all, wherever to. `text` of the error says why not.
/// Errors: unsafe        int3 of a debugger, traps whose address a handler looks at, shadow-stack
/// and far transfers
///         unsupported   a form that has no equivalent here
Result<void> check_relocatable(const Insn& insn);

/// Rewrites the instructions in `bytes`, which run at `from`, so that they do the same at `to`.
///
/// Units:   target addresses; `bytes` is 1..64 bytes and holds whole instructions.
/// Errors:  unsafe       an instruction jumps into `bytes` (to its start is allowed), a call is not
/// the last,
///                       check_relocatable refuses
///          unsupported  an operand or target is more than 2 GiB away from `to`
///          invalid      `bytes` does not decode or ends inside an instruction
/// Source:  Intel SDM vol. 2A, 2.2.1.6 (rip-relative addressing).
Result<RelocatedCode> relocate(std::span<const uint8_t> bytes, TargetAddr from, TargetAddr to);

/// Appends a jump to where control continues in the original code, if it falls through.
Result<void> append_jump_back(RelocatedCode& code);

}  // namespace spile::x86
