// Bytes to instructions: only what tracing needs to know about them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string_view>

#include "base/address.h"

namespace spile::x86 {

/// The longest instruction that a processor takes (Intel SDM vol. 2A, 2.3.11).
inline constexpr size_t kMaxInsnBytes = 15;

/// What an instruction means to code that moves instructions.
enum class Kind : uint8_t {
  kPlain,         ///< falls through, means the same anywhere (apart from a rip-relative operand)
  kNop,           ///< does nothing: 90, 66 90, 0f 1f /0, ...
  kEndbr,         ///< endbr64: a landing place of indirect branches
  kCall,          ///< call rel32
  kCallIndirect,  ///< call reg, call [mem]
  kJmp,           ///< jmp rel8, rel32
  kJmpIndirect,   ///< jmp reg, jmp [mem]
  kJcc,           ///< jcc rel8, rel32
  kSwitch,        ///< 0f 1f 84 e9 rel32: a nop that its program turns into a jump (see decode.cc)
  kLoop,          ///< loop, loope, loopne, jrcxz, jecxz: have only a rel8 form
  kXbegin,        ///< xbegin rel32: falls through, aborts to its target
  kRet,           ///< ret, ret imm16
  kSyscall,       ///< syscall
  kInterrupt,     ///< int n, n != 3
  kBreakpoint,    ///< int3 (cc, cd 03)
  kTrap,          ///< ud0..2, int1, hlt and what else only faults in user mode
  kFar,           ///< far call, jmp and ret, iret, sysret, sysenter, uiret: we never move these
  kShadowStack,   ///< reads or writes the CET shadow stack
};
std::string_view to_string(Kind kind);

/// Enters the kernel, which may restart it: then a thread behind it is moved back by two bytes.
constexpr bool is_system_call(Kind kind) {
  return kind == Kind::kSyscall || kind == Kind::kInterrupt;
}

/// General registers as bits in encoding order: rax 0, rcx 1, rdx 2, rbx 3, rsp 4, ... r15 15.
using RegMask = uint16_t;
inline constexpr int kRax = 0, kRcx = 1, kRdx = 2, kRbx = 3, kRsp = 4, kRbp = 5, kRsi = 6, kRdi = 7;
inline constexpr int kNoReg = 255;

/// The status flags by their bit in rflags.
using FlagMask = uint16_t;
inline constexpr FlagMask kStatusFlags = 0x8d5;  ///< CF PF AF ZF SF OF

/// The cheap part: enough to walk code and to follow its branches. About 80 ns to make.
struct Shape {
  uint8_t length = 0;
  Kind kind = Kind::kPlain;
  bool rip_relative = false;  ///< has a memory operand (or lea) based on rip
  bool operand16 = false;     ///< 66 without REX.W: a branch with it differs between Intel and AMD
  bool address32 = false;     ///< 67
  uint8_t map = 0;     ///< opcode map: 0 one byte, 1 0f, 2 0f38, 3 0f3a, 255 VEX, EVEX, XOP, ...
  uint8_t opcode = 0;  ///< last opcode byte
  uint8_t opcode_offset =
      0;            ///< where the opcode byte is; prefixes lie before it (maps 0 and 1 only)
  uint8_t rex = 0;  ///< the REX byte, 0: none
  uint8_t modrm_offset = 0;  ///< 0: no ModRM byte
  uint8_t modrm = 0;
  uint8_t sib = 0;          ///< valid if modrm says so
  uint8_t disp_offset = 0;  ///< 0: no displacement
  uint8_t disp_bytes = 0;
  uint8_t imm_offset = 0;  ///< the first immediate; of a direct branch its relative target; 0: none
  uint8_t imm_bytes = 0;
  int64_t disp = 0;
  int64_t imm = 0;  ///< sign-extended where it is signed

  bool is_direct_branch() const {
    return kind == Kind::kCall || kind == Kind::kJmp || kind == Kind::kJcc || kind == Kind::kLoop ||
           kind == Kind::kXbegin || kind == Kind::kSwitch;
  }
  /// The next instruction is never reached from this one (a call comes back, so it is not one of
  /// these).
  bool ends_flow() const {
    return kind == Kind::kJmp || kind == Kind::kJmpIndirect || kind == Kind::kRet ||
           kind == Kind::kTrap || kind == Kind::kFar;
  }
  /// Where a direct branch at `at` goes.
  TargetAddr branch_target(TargetAddr at) const { return at + length + static_cast<uint64_t>(imm); }
  /// What a rip-relative operand of the instruction at `at` names.
  TargetAddr rip_target(TargetAddr at) const { return at + length + static_cast<uint64_t>(disp); }
};

/// The shape and what the instruction does to registers and flags. About 150 ns to make.
struct Insn : Shape {
  RegMask reads = 0;       ///< general registers, implicit ones and parts of addresses too
  RegMask writes = 0;      ///< written at all, also in part or under a condition
  RegMask overwrites = 0;  ///< written wholly and always
  FlagMask flags_read = 0;
  FlagMask flags_written = 0;  ///< may change or become undefined
  FlagMask flags_overwritten =
      0;  ///< always get a new value (not: shifts by a count that may be 0, imul's PF)
  bool has_memory =
      false;  ///< reads or writes memory through its ModRM operand (lea and nop do not)
  bool implicit_memory =
      false;  ///< touches memory that no ModRM operand names: push, pop, movs, xlat
  bool privileged = false;
  uint8_t memory_bytes = 0;  ///< size of the ModRM memory access, 255: larger
  uint8_t base = kNoReg;     ///< of the memory operand; kNoReg if none or rip
  uint8_t index = kNoReg;
  uint8_t scale = 0;  ///< 1, 2, 4, 8; 0: no index
};

/// Decodes the first instruction of `bytes` (as many as there are, at most 15 are looked at).
/// nullopt: not an instruction, or cut off.
std::optional<Shape> decode_shape(std::span<const uint8_t> bytes);
std::optional<Insn> decode(std::span<const uint8_t> bytes);

}  // namespace spile::x86
