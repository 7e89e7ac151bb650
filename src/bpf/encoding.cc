#include "bpf/encoding.h"

#include <bit>

#include "bpf/helpers.h"

namespace spile::bpf {

namespace {

std::unexpected<Error> unknown_opcode(size_t at, const Insn& insn) {
  return fail(ErrorCode::kUnsupported, "insn {}: unknown opcode {:#04x}", at, insn.code);
}

Result<void> require_zero(size_t at, int64_t value, const char* field) {
  if (value == 0) return {};
  return fail(ErrorCode::kUnsafe, "insn {}: unused field {} is {}, expected 0", at, field, value);
}

Result<void> check_registers(size_t at, const Insn& insn) {
  if (insn.dst() > 10)
    return fail(ErrorCode::kUnsafe, "insn {}: there is no register r{}", at, insn.dst());
  if (insn.src() > 10)
    return fail(ErrorCode::kUnsafe, "insn {}: there is no register r{}", at, insn.src());
  return {};
}

Result<void> check_swap(size_t at, const Insn& insn) {
  if (insn_class(insn) == kClassAlu64 && uses_src_reg(insn)) return unknown_opcode(at, insn);
  if (insn.imm != 16 && insn.imm != 32 && insn.imm != 64) {
    return fail(ErrorCode::kUnsafe, "insn {}: byte swap of {} bits, expected 16, 32 or 64", at,
                insn.imm);
  }
  SPILE_TRY_VOID(require_zero(at, insn.src(), "src"));
  return require_zero(at, insn.off, "off");
}

/// off means something only for signed division (1) and sign-extending moves (8, 16, 32).
Result<void> check_alu_off(size_t at, const Insn& insn) {
  uint8_t op = insn_op(insn);
  if ((op == kDiv || op == kMod) && insn.off == kSignedOff) return {};
  if (op == kMov && uses_src_reg(insn)) {
    if (insn.off == 8 || insn.off == 16) return {};
    if (insn.off == 32 && insn_class(insn) == kClassAlu64) return {};
  }
  return require_zero(at, insn.off, "off");
}

Result<void> check_alu_constant(size_t at, const Insn& insn) {
  uint8_t op = insn_op(insn);
  int bits = insn_class(insn) == kClassAlu64 ? 64 : 32;
  if ((op == kDiv || op == kMod) && insn.imm == 0)
    return fail(ErrorCode::kUnsafe, "insn {}: division by 0", at);
  if ((op == kLsh || op == kRsh || op == kArsh) && (insn.imm < 0 || insn.imm >= bits)) {
    return fail(ErrorCode::kUnsafe, "insn {}: shift by {}, expected 0 to {}", at, insn.imm,
                bits - 1);
  }
  return require_zero(at, insn.src(), "src");
}

Result<void> check_alu(size_t at, const Insn& insn) {
  uint8_t op = insn_op(insn);
  if (op > kEnd) return unknown_opcode(at, insn);
  if (op == kEnd) return check_swap(at, insn);
  if (op == kNeg) {
    if (uses_src_reg(insn)) return unknown_opcode(at, insn);
    SPILE_TRY_VOID(require_zero(at, insn.src(), "src"));
    SPILE_TRY_VOID(require_zero(at, insn.off, "off"));
    return require_zero(at, insn.imm, "imm");
  }
  SPILE_TRY_VOID(check_alu_off(at, insn));
  return uses_src_reg(insn) ? require_zero(at, insn.imm, "imm") : check_alu_constant(at, insn);
}

Result<void> check_call(size_t at, const Insn& insn) {
  if (insn.src() == kCallLocal) {
    return fail(ErrorCode::kUnsupported,
                "insn {}: calls of functions in the program are not built yet", at);
  }
  if (insn.src() != kCallHelper) {
    return fail(ErrorCode::kUnsupported,
                "insn {}: calls of kernel functions by BTF id are not built yet", at);
  }
  if (find_helper(insn.imm) == nullptr) {
    return fail(ErrorCode::kUnsupported, "insn {}: helper {} is unknown or not built yet", at,
                insn.imm);
  }
  SPILE_TRY_VOID(require_zero(at, insn.dst(), "dst"));
  return require_zero(at, insn.off, "off");
}

/// exit, goto and gotol: everything but the distance is zero.
Result<void> check_plain_jump(size_t at, const Insn& insn) {
  SPILE_TRY_VOID(require_zero(at, insn.dst(), "dst"));
  SPILE_TRY_VOID(require_zero(at, insn.src(), "src"));
  bool has_off = insn.code == (kClassJmp | kJa), has_imm = insn.code == (kClassJmp32 | kJa);
  if (!has_off) SPILE_TRY_VOID(require_zero(at, insn.off, "off"));
  if (!has_imm) SPILE_TRY_VOID(require_zero(at, insn.imm, "imm"));
  return {};
}

Result<void> check_jump(size_t at, const Insn& insn) {
  uint8_t op = insn_op(insn);
  if (op > kJsle) return unknown_opcode(at, insn);
  if (op == kJa || op == kCall || op == kExit) {
    bool is_wide = insn_class(insn) == kClassJmp;
    if (uses_src_reg(insn) || (!is_wide && op != kJa)) return unknown_opcode(at, insn);
    return op == kCall ? check_call(at, insn) : check_plain_jump(at, insn);
  }
  return uses_src_reg(insn) ? require_zero(at, insn.imm, "imm")
                            : require_zero(at, insn.src(), "src");
}

Result<void> check_load(size_t at, const Insn& insn) {
  bool is_plain = insn_mode(insn) == kModeMem;
  bool is_signed = insn_mode(insn) == kModeMemSx && access_size(insn) < 8;
  if (!is_plain && !is_signed) return unknown_opcode(at, insn);
  return require_zero(at, insn.imm, "imm");
}

bool is_known_atomic(int32_t operation) {
  if (operation == kXchg || operation == kCmpXchg) return true;
  int32_t base = operation & ~kFetch;
  return base == kAtomicAdd || base == kAtomicOr || base == kAtomicAnd || base == kAtomicXor;
}

Result<void> check_store(size_t at, const Insn& insn) {
  if (is_atomic(insn)) {
    if (access_size(insn) < 4) return unknown_opcode(at, insn);
    if (is_known_atomic(insn.imm)) return {};
    return fail(ErrorCode::kUnsupported, "insn {}: unknown atomic operation {:#x}", at, insn.imm);
  }
  if (insn_mode(insn) != kModeMem) return unknown_opcode(at, insn);
  return insn_class(insn) == kClassSt ? require_zero(at, insn.src(), "src")
                                      : require_zero(at, insn.imm, "imm");
}

/// lddw: the second half holds the upper 32 bits and nothing else.
Result<void> check_load_immediate(const Program& program, size_t at) {
  const Insn& insn = program[at];
  if (!is_lddw(insn)) return unknown_opcode(at, insn);
  if (at + 1 >= program.size())
    return fail(ErrorCode::kUnsafe, "insn {}: second half of lddw is missing", at);
  const Insn& high = program[at + 1];
  if (high.code != 0 || high.regs != 0 || high.off != 0) {
    return fail(ErrorCode::kUnsafe, "insn {}: malformed second half of lddw", at);
  }
  SPILE_TRY_VOID(require_zero(at, insn.off, "off"));
  if (insn.src() == kPseudoNone) return {};
  if (insn.src() == kPseudoMapIdx) return require_zero(at + 1, high.imm, "imm");
  return fail(ErrorCode::kUnsupported,
              "insn {}: lddw of kind {} is not built, expected a number or a map index", at,
              insn.src());
}

}  // namespace

std::optional<int64_t> jump_target(const Program& program, size_t at) {
  const Insn& insn = program[at];
  if (insn.code == (kClassJmp32 | kJa)) return static_cast<int64_t>(at) + 1 + insn.imm;
  if (is_goto(insn) || is_conditional_jump(insn)) return static_cast<int64_t>(at) + 1 + insn.off;
  return std::nullopt;
}

Result<void> check_encoding(const Program& program, size_t at) {
  const Insn& insn = program[at];
  if (is_lddw(insn)) {
    if (insn.dst() > 10) return check_registers(at, insn);
    return check_load_immediate(program, at);
  }
  if (is_alu(insn)) {
    SPILE_TRY_VOID(check_registers(at, insn));
    return check_alu(at, insn);
  }
  if (is_jump_class(insn)) {
    SPILE_TRY_VOID(check_registers(at, insn));
    return check_jump(at, insn);
  }
  if (insn_class(insn) == kClassLd) return unknown_opcode(at, insn);
  SPILE_TRY_VOID(check_registers(at, insn));
  return insn_class(insn) == kClassLdx ? check_load(at, insn) : check_store(at, insn);
}

}  // namespace spile::bpf
