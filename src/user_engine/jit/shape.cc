#include "user_engine/jit/shape.h"

#include "user_engine/jit/jit.h"

namespace spile::jit {

using namespace bpf;  // the instruction set's constants

namespace {

constexpr uint8_t kModeMask = 0xe0, kSizeMask = 0x18;
constexpr int kRegisters = 11;

bool is_known_alu(const Insn& insn) {
  bool signed_division = insn.off == 1 && (operation(insn) == kDiv || operation(insn) == kMod);
  bool sign_extension = operation(insn) == kMov && has_source_register(insn) &&
                        (insn.off == 8 || insn.off == 16 || (insn.off == 32 && is_alu64(insn)));
  if (insn.off != 0 && !signed_division && !sign_extension) return false;
  if (operation(insn) == kEnd) {
    bool unconditional_swap = is_alu64(insn);
    return (insn.imm == 16 || insn.imm == 32 || insn.imm == 64) &&
           !(unconditional_swap && has_source_register(insn));
  }
  return operation(insn) < kEnd;
}

bool is_known_atomic(const Insn& insn) {
  if (access_bytes(insn) < 4) return false;
  switch (insn.imm) {
    case kXchg:
    case kCmpXchg: return true;
    default: break;
  }
  int32_t op = insn.imm & ~kFetch;
  return op == kAtomicAdd || op == kAtomicOr || op == kAtomicAnd || op == kAtomicXor;
}

bool is_known_jump(const Insn& insn) {
  if (operation(insn) > kJsle) return false;
  bool wide = insn_class(insn) == kClassJmp;
  if (operation(insn) == kCall || operation(insn) == kExit)
    return wide && !has_source_register(insn);
  if (operation(insn) == kJa) return !has_source_register(insn);
  return true;
}

bool is_known(const Insn& insn) {
  uint8_t mode = insn.code & kModeMask;
  switch (insn_class(insn)) {
    case kClassAlu:
    case kClassAlu64: return is_known_alu(insn);
    case kClassJmp:
    case kClassJmp32: return is_known_jump(insn);
    case kClassLd: return is_lddw(insn);
    case kClassLdx: return mode == kModeMem || (mode == kModeMemSx && access_bytes(insn) < 8);
    case kClassSt: return mode == kModeMem;
    default: return mode == kModeMem || (mode == kModeAtomic && is_known_atomic(insn));
  }
}

bool writes_dst(const Insn& insn) {
  return is_alu(insn) || is_load(insn) || is_lddw(insn);
}

Result<void> check_insn(const Program& program, size_t at) {
  const Insn& insn = program[at];
  if (!is_known(insn))
    return fail(ErrorCode::kInvalid, "insn {}: unknown opcode {:#04x}", at, insn.code);
  if (is_call(insn) && insn.src() == kCallLocal) {
    return fail(ErrorCode::kUnsupported, "insn {}: calls of local functions are not built yet", at);
  }
  if (is_call(insn) && insn.src() != kCallHelper) {
    return fail(ErrorCode::kUnsupported, "insn {}: calls of kind {} exist only in the kernel", at,
                insn.src());
  }
  if (insn.dst() >= kRegisters || (!is_lddw(insn) && insn.src() >= kRegisters)) {
    return fail(ErrorCode::kInvalid, "insn {}: no such register", at);
  }
  bool writes_source = is_atomic(insn) && insn.imm != kCmpXchg && (insn.imm & kFetch) != 0;
  if ((writes_dst(insn) && insn.dst() == 10) || (writes_source && insn.src() == 10)) {
    return fail(ErrorCode::kInvalid, "insn {}: r10 is read-only", at);
  }
  if (is_lddw(insn) && (at + 1 >= program.size() || program[at + 1].code != 0)) {
    return fail(ErrorCode::kInvalid, "insn {}: half of a 64-bit load", at);
  }
  return {};
}

Edges edges_of(const Insn& insn, size_t at) {
  auto here = static_cast<int64_t>(at);
  auto next = static_cast<int32_t>(here + (is_lddw(insn) ? 2 : 1));
  if (is_exit(insn)) return {};
  if (operation(insn) == kJa &&
      (insn_class(insn) == kClassJmp || insn_class(insn) == kClassJmp32)) {
    int64_t distance = insn_class(insn) == kClassJmp ? insn.off : insn.imm;
    int64_t target = here + 1 + distance;
    bool sane = target >= 0 && target < static_cast<int64_t>(kMaxProgramInsns);
    return {.next = -1,
            .target = sane ? static_cast<int32_t>(target) : static_cast<int32_t>(kMaxProgramInsns)};
  }
  if (!is_branch(insn)) return {.next = next};
  int64_t target = here + 1 + insn.off;
  return {.next = next,
          .target =
              target >= 0 ? static_cast<int32_t>(target) : static_cast<int32_t>(kMaxProgramInsns)};
}

}  // namespace

bool is_alu64(const Insn& insn) {
  return insn_class(insn) == kClassAlu64;
}
bool is_alu(const Insn& insn) {
  return is_alu64(insn) || insn_class(insn) == kClassAlu;
}
bool is_load(const Insn& insn) {
  return insn_class(insn) == kClassLdx;
}
bool is_atomic(const Insn& insn) {
  return insn_class(insn) == kClassStx && (insn.code & kModeMask) == kModeAtomic;
}
bool is_store(const Insn& insn) {
  return insn_class(insn) == kClassSt || (insn_class(insn) == kClassStx && !is_atomic(insn));
}
bool is_lddw(const Insn& insn) {
  return insn.code == (kClassLd | kSizeDw | kModeImm);
}
bool is_call(const Insn& insn) {
  return insn.code == (kClassJmp | kCall);
}
bool is_exit(const Insn& insn) {
  return insn.code == (kClassJmp | kExit);
}
bool is_branch(const Insn& insn) {
  if (insn_class(insn) != kClassJmp && insn_class(insn) != kClassJmp32) return false;
  return operation(insn) != kJa && operation(insn) != kCall && operation(insn) != kExit;
}
bool has_source_register(const Insn& insn) {
  return (insn.code & kSrcX) != 0;
}

int access_bytes(const Insn& insn) {
  switch (insn.code & kSizeMask) {
    case kSizeB: return 1;
    case kSizeH: return 2;
    case kSizeW: return 4;
    default: return 8;
  }
}

Result<Shape> find_shape(const Program& program) {
  if (program.empty()) return fail(ErrorCode::kInvalid, "an empty program");
  if (program.size() > kMaxProgramInsns)
    return fail(ErrorCode::kInvalid, "{} instructions", program.size());
  Shape shape{std::vector<Edges>(program.size()), std::vector<bool>(program.size())};
  for (size_t at = 0; at < program.size(); at += is_lddw(program[at]) ? 2 : 1) {
    SPILE_TRY_VOID(check_insn(program, at));
    shape.edges[at] = edges_of(program[at], at);
    shape.is_head[at] = true;
  }
  for (size_t at = 0; at < program.size(); ++at) {
    for (int32_t to : {shape.edges[at].next, shape.edges[at].target}) {
      if (to < 0) continue;
      if (static_cast<size_t>(to) >= program.size()) {
        return fail(ErrorCode::kInvalid, "insn {}: goes beyond the end of the program", at);
      }
      if (!shape.is_head[to])
        return fail(ErrorCode::kInvalid, "insn {}: jumps into a 64-bit load", at);
    }
  }
  return shape;
}

}  // namespace spile::jit
