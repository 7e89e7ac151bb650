// The shape of single instructions: what they are, where they jump, whether they are well formed.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>

#include "base/error.h"
#include "bpf/insn.h"

namespace spile::bpf {

// off of ALU: signed division and modulo (cpu v4).
inline constexpr int16_t kSignedOff = 1;

constexpr uint8_t insn_class(const Insn& insn) {
  return insn.code & 0x07;
}
constexpr uint8_t insn_op(const Insn& insn) {
  return insn.code & 0xf0;
}  ///< ALU and jumps
constexpr uint8_t insn_mode(const Insn& insn) {
  return insn.code & 0xe0;
}  ///< loads and stores
constexpr bool uses_src_reg(const Insn& insn) {
  return (insn.code & kSrcX) != 0;
}
constexpr bool is_alu(const Insn& insn) {
  return insn_class(insn) == kClassAlu || insn_class(insn) == kClassAlu64;
}
constexpr bool is_jump_class(const Insn& insn) {
  return insn_class(insn) == kClassJmp || insn_class(insn) == kClassJmp32;
}
constexpr bool is_lddw(const Insn& insn) {
  return insn.code == (kClassLd | kSizeDw | kModeImm);
}
constexpr bool is_call(const Insn& insn) {
  return insn.code == (kClassJmp | kCall);
}
constexpr bool is_exit(const Insn& insn) {
  return insn.code == (kClassJmp | kExit);
}
constexpr bool is_goto(const Insn& insn) {
  return insn.code == (kClassJmp | kJa) || insn.code == (kClassJmp32 | kJa);
}
constexpr bool is_conditional_jump(const Insn& insn) {
  return is_jump_class(insn) && !is_goto(insn) && insn_op(insn) != kCall && insn_op(insn) != kExit;
}
constexpr bool is_atomic(const Insn& insn) {
  return insn_class(insn) == kClassStx && insn_mode(insn) == kModeAtomic;
}

/// Bytes that a load, store or atomic touches.
constexpr int access_size(const Insn& insn) {
  switch (insn.code & 0x18) {
    case kSizeB: return 1;
    case kSizeH: return 2;
    case kSizeW: return 4;
    default: return 8;
  }
}

/// The index a goto or conditional jump goes to when taken, which may lie outside the program;
/// nothing for others.
std::optional<int64_t> jump_target(const Program& program, size_t at);

/// Is the instruction at `at` one that spile knows, with every unused field zero and constants in
/// their range? Errors: unsupported  unknown or not built
///         unsafe       malformed
/// Source: the kernel's Documentation/bpf/standardization/instruction-set.rst;
/// kernel/bpf/verifier.c for fields.
Result<void> check_encoding(const Program& program, size_t at);

}  // namespace spile::bpf
