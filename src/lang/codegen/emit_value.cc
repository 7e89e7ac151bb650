// Numbers.
#include <limits>

#include "lang/codegen/emitter.h"

namespace spile::lang::codegen {

using ast::BinaryOp;
using bpf::Helper;
using typed::ExprKind;
using typed::Yields;

namespace {

bool fits_imm32(uint64_t value) {
  return static_cast<uint64_t>(static_cast<int64_t>(static_cast<int32_t>(value))) == value;
}

uint8_t alu_op(BinaryOp op, bool is_signed) {
  switch (op) {
    case BinaryOp::kAdd: return bpf::kAdd;
    case BinaryOp::kSub: return bpf::kSub;
    case BinaryOp::kMul: return bpf::kMul;
    case BinaryOp::kDiv: return bpf::kDiv;
    case BinaryOp::kMod: return bpf::kMod;
    case BinaryOp::kShl: return bpf::kLsh;
    case BinaryOp::kShr: return is_signed ? bpf::kArsh : bpf::kRsh;
    case BinaryOp::kBitAnd: return bpf::kAnd;
    case BinaryOp::kBitXor: return bpf::kXor;
    default: SPILE_CHECK(op == BinaryOp::kBitOr); return bpf::kOr;
  }
}

}  // namespace

void Emitter::value(const Expr& expr) {
  if (is_leaf(expr)) return leaf(expr, Reg::r0);
  switch (expr.kind) {
    case ExprKind::kMapRead: return map_read(expr);
    case ExprKind::kAggregateRead: return aggregate_read(expr);
    case ExprKind::kBuiltin: return builtin(expr.builtin);
    case ExprKind::kLoad: return load_memory(expr);
    case ExprKind::kStack: {
      FrameScope scope(frame_);
      return stack_id(expr.type);
    }
    case ExprKind::kSymbol:
    case ExprKind::kConvert: return value(*expr.args[0]);
    case ExprKind::kByteSwap:
      value(*expr.args[0]);
      return code_.swap_bytes(Reg::r0, static_cast<int>(expr.number));
    case ExprKind::kStrlen: return text_length(*expr.args[0]);
    case ExprKind::kCompareMemory: return compare_memory(expr);
    case ExprKind::kContains:
    case ExprKind::kFind: return text_contains(expr);
    case ExprKind::kDelete: return deleted(expr);
    case ExprKind::kContext: return load_unaligned_field(expr);
    case ExprKind::kNegate: value(*expr.args[0]); return code_.neg(Reg::r0);
    case ExprKind::kBitNot: value(*expr.args[0]); return code_.alu_imm(bpf::kXor, Reg::r0, -1);
    case ExprKind::kArithmetic:
      return arithmetic(expr.op, expr.type.is_int() && expr.type.is_signed,
                        operands(*expr.args[0], *expr.args[1]));
    case ExprKind::kNot:
    case ExprKind::kCompare:
    case ExprKind::kCompareText:
    case ExprKind::kCompareBytes:
    case ExprKind::kTextDiffers:
    case ExprKind::kAnd:
    case ExprKind::kOr:
    case ExprKind::kHasKey: return truth(expr);
    case ExprKind::kConditional:
    case ExprKind::kElvis: return conditional(expr, [this](const Expr& side) { value(side); });
    case ExprKind::kTruncate: value(*expr.args[0]); return truncate(Reg::r0, expr.type);
    case ExprKind::kTupleField: {
      FrameScope scope(frame_);
      const Type& tuple = expr.args[0]->type;
      Place place = materialise(*expr.args[0], tuple).at(field_offsets(tuple)[expr.number]);
      return code_.load(8, Reg::r0, base_of(place, Reg::r1), place.offset);
    }
    case ExprKind::kPart: {
      FrameScope scope(frame_);
      const Place place = materialise(*expr.args[0], expr.args[0]->type).at(expr.offset);
      const uint32_t size = expr.type.is_int() ? expr.type.size : 8;
      code_.load(size, Reg::r0, base_of(place, Reg::r1), place.offset);
      if (expr.type.is_int() && expr.type.is_signed) truncate(Reg::r0, expr.type);
      return;
    }
    case ExprKind::kBlock: return block_value(expr, [this](const Expr& last) { value(last); });
    case ExprKind::kModifyVariable: return modify_variable(expr, expr.yields);
    case ExprKind::kModifyMap: return modify_map(expr, expr.yields);
    default: SPILE_CHECK(false);
  }
}

void Emitter::value_in(const Expr& expr, Reg dst) {
  if (is_leaf(expr)) return leaf(expr, dst);
  value(expr);
  code_.mov(dst, Reg::r0);
}

bool Emitter::is_leaf(const Expr& expr) {
  switch (expr.kind) {
    case ExprKind::kNumber: return true;
    case ExprKind::kVariable: return expr.type.is_scalar();
    // Unaligned fields are refused by the kernel, and read with probe_read.
    case ExprKind::kContext: return !expr.is_copied && expr.offset % expr.type.size == 0;
    case ExprKind::kEntryArgument:
    case ExprKind::kDuration: return true;
    case ExprKind::kTruncate: return expr.type.size == 8 && is_leaf(*expr.args[0]);
    default: return false;
  }
}

void Emitter::leaf(const Expr& expr, Reg dst) {
  switch (expr.kind) {
    case ExprKind::kNumber: return code_.load_imm64(dst, expr.number);
    case ExprKind::kVariable: {
      const Place place = variable(expr.variable);
      return code_.load(8, dst, base_of(place, dst), place.offset);
    }
    case ExprKind::kContext:
      code_.load(expr.type.size, dst, context(dst), static_cast<int>(expr.offset));
      if (expr.type.is_int() && expr.type.is_signed) truncate(dst, expr.type);
      return;
    case ExprKind::kEntryArgument:
    case ExprKind::kDuration: {
      const Place place = home_place(entry_slot(expr));
      return code_.load(8, dst, base_of(place, dst), place.offset);
    }
    default: return leaf(*expr.args[0], dst);
  }
}

void Emitter::truncate(Reg reg, const Type& type) {
  if (type.size >= 8) return;
  bool is_signed = type.is_int() && type.is_signed;
  if (type.size == 4 && !is_signed) return code_.zero_extend_32(reg);
  if (!is_signed) return code_.alu_imm(bpf::kAnd, reg, (1 << (type.size * 8)) - 1);
  auto shift = static_cast<int32_t>(64 - type.size * 8);
  code_.alu_imm(bpf::kLsh, reg, shift);
  code_.alu_imm(bpf::kArsh, reg, shift);
}

// ---- builtin variables
// ------------------------------------------------------------------------------------------------

void Emitter::builtin(typed::Builtin which) {
  using typed::Builtin;
  switch (which) {
    case Builtin::kPid:
      code_.call(Helper::kGetCurrentPidTgid);
      return code_.alu_imm(bpf::kRsh, Reg::r0, 32);
    case Builtin::kTid:
      code_.call(Helper::kGetCurrentPidTgid);
      return code_.zero_extend_32(Reg::r0);
    case Builtin::kUid: code_.call(Helper::kGetCurrentUidGid); return code_.zero_extend_32(Reg::r0);
    case Builtin::kGid:
      code_.call(Helper::kGetCurrentUidGid);
      return code_.alu_imm(bpf::kRsh, Reg::r0, 32);
    case Builtin::kNsecs: return code_.call(Helper::kKtimeGetNs);
    case Builtin::kBootNsecs: return code_.call(Helper::kKtimeGetBootNs);
    case Builtin::kCpu:
      code_.call(Helper::kGetSmpProcessorId);
      return code_.zero_extend_32(Reg::r0);
    case Builtin::kElapsed: return elapsed();
    case Builtin::kProbe:
    case Builtin::kFunc: return probe_number();
    case Builtin::kCurtask: return task_value(Helper::kGetCurrentTask, "curtask");
    case Builtin::kCgroup: return task_value(Helper::kGetCurrentCgroupId, "cgroup");
    case Builtin::kNumaNode: return task_value(Helper::kGetNumaNodeId, "numaid");
    case Builtin::kJiffies: return task_value(Helper::kJiffies64, "jiffies");
    case Builtin::kRand:
      task_value(Helper::kGetPrandomU32, "rand");
      return code_.zero_extend_32(Reg::r0);
    case Builtin::kChildPid: draft_.need_kernel("cpid"); return code_.mov_imm(Reg::r0, 0);
    case Builtin::kComm: SPILE_CHECK(false);
  }
}

/// What only the kernel can tell.
void Emitter::task_value(Helper helper, std::string_view name) {
  draft_.need_kernel(name);
  code_.call(helper);
}

void Emitter::elapsed() {
  FrameScope scope(frame_);
  Label done = code_.new_label();
  int key = frame_.allocate(8);
  code_.call(Helper::kKtimeGetNs);
  Held now = hold(Reg::r0);
  code_.store_imm(4, Reg::r10, key, 0);
  lookup(draft_.start_time(), {{}, key});
  code_.mov(Reg::r1, Reg::r0);
  get(now.location(), Reg::r0);
  code_.jump_if_imm(bpf::kJeq, Reg::r1, 0, done);
  code_.load(8, Reg::r1, Reg::r1, 0);
  code_.alu(bpf::kSub, Reg::r0, Reg::r1);
  code_.bind(done);
}

void Emitter::probe_number() {
  if (clause_.context.kind == bundle::ContextKind::kNone) {  // one program for one probe
    return code_.mov_imm(Reg::r0, draft_.cookie_of(clause_.probes.front()));
  }
  code_.mov(Reg::r1, context(Reg::r1));
  code_.call(Helper::kGetAttachCookie);
}

// ---- calculation
// ------------------------------------------------------------------------------------------------------

Emitter::Operand Emitter::operands(const Expr& left, const Expr& right) {
  if (right.kind == ExprKind::kNumber && fits_imm32(right.number)) {
    value(left);
    return {true, static_cast<int32_t>(right.number)};
  }
  if (is_leaf(right)) {
    value(left);
    leaf(right, Reg::r1);
  } else if (is_leaf(left) && !has_effects(right)) {
    value(right);
    code_.mov(Reg::r1, Reg::r0);
    leaf(left, Reg::r0);
  } else {
    FrameScope scope(frame_);
    value(left);
    Held first = hold(Reg::r0);
    value(right);
    code_.mov(Reg::r1, Reg::r0);
    get(first.location(), Reg::r0);
  }
  return {};
}

/// r0 := r0 op right. Clobbers r1 and r3 at most.
void Emitter::arithmetic(BinaryOp op, bool is_signed, Operand right) {
  uint8_t alu = alu_op(op, is_signed);
  if (is_signed && (op == BinaryOp::kDiv || op == BinaryOp::kMod))
    return signed_division(alu, right);
  if (right.is_imm) return code_.alu_imm(alu, Reg::r0, right.imm);
  code_.alu(alu, Reg::r0, Reg::r1);
}

/// eBPF before version 4 divides unsigned only: divide magnitudes, then give the quotient the sign
/// of both, the remainder the sign of the dividend.
void Emitter::signed_division(uint8_t op, Operand right) {
  Label left_positive = code_.new_label(), right_positive = code_.new_label(),
        done = code_.new_label();
  if (right.is_imm) code_.mov_imm(Reg::r1, right.imm);
  code_.mov(Reg::r3, Reg::r0);
  if (op == bpf::kDiv) code_.alu(bpf::kXor, Reg::r3, Reg::r1);
  code_.jump_if_imm(bpf::kJsge, Reg::r0, 0, left_positive);
  code_.neg(Reg::r0);
  code_.bind(left_positive);
  code_.jump_if_imm(bpf::kJsge, Reg::r1, 0, right_positive);
  code_.neg(Reg::r1);
  code_.bind(right_positive);
  code_.alu(op, Reg::r0, Reg::r1);
  code_.jump_if_imm(bpf::kJsge, Reg::r3, 0, done);
  code_.neg(Reg::r0);
  code_.bind(done);
}

void Emitter::truth(const Expr& expr) {
  Label is_false = code_.new_label(), done = code_.new_label();
  branch(expr, false, is_false);
  code_.mov_imm(Reg::r0, 1);
  code_.jump(done);
  code_.bind(is_false);
  code_.mov_imm(Reg::r0, 0);
  code_.bind(done);
}

/// `side` writes the value of one side; the same for numbers, memory and effects.
void Emitter::conditional(const Expr& expr, const std::function<void(const Expr&)>& side) {
  Label otherwise = code_.new_label(), done = code_.new_label();
  if (expr.kind == ExprKind::kElvis) {
    value(*expr.args[0]);
    code_.jump_if_imm(bpf::kJne, Reg::r0, 0, done);
    side(*expr.args[1]);
    return code_.bind(done);
  }
  branch(*expr.args[0], false, otherwise);
  side(*expr.args[1]);
  code_.jump(done);
  code_.bind(otherwise);
  side(*expr.args[2]);
  code_.bind(done);
}

void Emitter::load_memory(const Expr& expr) {
  FrameScope scope(frame_);
  if (!expr.text.empty()) draft_.need_kernel(expr.text);
  int slot = frame_.allocate(8);
  value_in(*expr.args[0], Reg::r3);
  code_.store_imm(8, Reg::r10, slot, 0);
  address_of({{}, slot}, Reg::r1);
  code_.mov_imm(Reg::r2, static_cast<int32_t>(expr.type.size));
  probe_read(Memory::kBytes, [this, slot] { code_.store_imm(8, Reg::r10, slot, 0); });
  const bool is_whole = expr.type.size == 6;  // macaddr(): the slot's other bytes are 0
  code_.load(is_whole ? 8 : expr.type.size, Reg::r0, Reg::r10, slot);
  if (expr.type.is_int() && expr.type.is_signed) truncate(Reg::r0, expr.type);
}

/// The kernel lets programs load aligned fields only, and calls typed pointers something else than
/// numbers; these are copied out of the context.
void Emitter::load_unaligned_field(const Expr& expr) {
  FrameScope scope(frame_);
  int slot = frame_.allocate(8);
  code_.store_imm(8, Reg::r10, slot, 0);
  code_.mov(Reg::r3, context(Reg::r3));
  code_.alu_imm(bpf::kAdd, Reg::r3, static_cast<int32_t>(expr.offset));
  address_of({{}, slot}, Reg::r1);
  code_.mov_imm(Reg::r2, static_cast<int32_t>(expr.type.size));
  code_.call(Helper::kProbeReadKernel);
  code_.load(expr.type.size, Reg::r0, Reg::r10, slot);
  if (expr.type.is_int() && expr.type.is_signed) truncate(Reg::r0, expr.type);
}

void Emitter::modify_variable(const Expr& expr, Yields yields) {
  FrameScope scope(frame_);
  const Expr& operand = *expr.args[0];
  const Place place = variable(expr.variable);
  SPILE_CHECK(operand.kind == ExprKind::kNumber);  // only ++ and -- become this node
  code_.load(8, Reg::r0, base_of(place, Reg::r0), place.offset);
  if (yields == Yields::kOld) code_.mov(Reg::r2, Reg::r0);
  arithmetic(expr.op, expr.type.is_signed, {true, static_cast<int32_t>(operand.number)});
  truncate(Reg::r0, expr.type);
  store(place, 8, Reg::r0);
  if (yields == Yields::kOld) code_.mov(Reg::r0, Reg::r2);
}

}  // namespace spile::lang::codegen
