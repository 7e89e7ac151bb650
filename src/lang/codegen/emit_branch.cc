// Conditions: jumps instead of values.
#include <cstring>

#include "lang/codegen/emitter.h"

namespace spile::lang::codegen {

using ast::BinaryOp;
using typed::ExprKind;

namespace {

uint8_t jump_op(BinaryOp op, bool is_unsigned) {
  switch (op) {
    case BinaryOp::kEq: return bpf::kJeq;
    case BinaryOp::kNe: return bpf::kJne;
    case BinaryOp::kLt: return is_unsigned ? bpf::kJlt : bpf::kJslt;
    case BinaryOp::kLe: return is_unsigned ? bpf::kJle : bpf::kJsle;
    case BinaryOp::kGt: return is_unsigned ? bpf::kJgt : bpf::kJsgt;
    default: SPILE_CHECK(op == BinaryOp::kGe); return is_unsigned ? bpf::kJge : bpf::kJsge;
  }
}

BinaryOp negated(BinaryOp op) {
  switch (op) {
    case BinaryOp::kEq: return BinaryOp::kNe;
    case BinaryOp::kNe: return BinaryOp::kEq;
    case BinaryOp::kLt: return BinaryOp::kGe;
    case BinaryOp::kLe: return BinaryOp::kGt;
    case BinaryOp::kGt: return BinaryOp::kLe;
    default: return BinaryOp::kLt;
  }
}

}  // namespace

void Emitter::branch(const Expr& expr, bool when, Label to) {
  switch (expr.kind) {
    case ExprKind::kNumber:
      if ((expr.number != 0) == when) code_.jump(to);
      return;
    case ExprKind::kNot: return branch(*expr.args[0], !when, to);
    case ExprKind::kCompare: return branch_compare(expr, when, to);
    case ExprKind::kCompareText: return branch_text(expr, when, to);
    case ExprKind::kTextDiffers: return branch_differs(expr, when, to);
    case ExprKind::kCompareBytes: return branch_bytes(expr, when, to);
    case ExprKind::kAnd:
    case ExprKind::kOr: {
      // `a && b` is decided by a false a, `a || b` by a true one.
      bool deciding = expr.kind == ExprKind::kOr;
      Label decided = code_.new_label();
      branch(*expr.args[0], deciding, deciding == when ? to : decided);
      branch(*expr.args[1], when, to);
      return code_.bind(decided);
    }
    case ExprKind::kHasKey: {
      FrameScope scope(frame_);
      lookup(expr.map, build_key(expr.map, pointers(expr.args)));
      break;
    }
    default: value(expr);
  }
  code_.jump_if_imm(when ? bpf::kJne : bpf::kJeq, Reg::r0, 0, to);
}

void Emitter::branch_compare(const Expr& expr, bool when, Label to) {
  uint8_t op = jump_op(when ? expr.op : negated(expr.op), expr.is_unsigned);
  Operand right = operands(*expr.args[0], *expr.args[1]);
  if (right.is_imm) return code_.jump_if_imm(op, Reg::r0, right.imm, to);
  code_.jump_if(op, Reg::r0, Reg::r1, to);
}

void Emitter::branch_text(const Expr& expr, bool when, Label to) {
  FrameScope scope(frame_);
  bool is_equal = (expr.op == BinaryOp::kEq) == when;
  const Expr &left = *expr.args[0], &right = *expr.args[1];
  if (right.kind == ExprKind::kText) return branch_text_literal(left, right.text, is_equal, to);
  if (left.kind == ExprKind::kText) return branch_text_literal(right, left.text, is_equal, to);
  // Both are padded with zeros and hold a NUL: the shorter one's bytes decide.
  Place a = materialise(left, left.type), b = materialise(right, right.type);
  uint32_t bytes = std::min(storage_bytes(left.type), storage_bytes(right.type));
  branch_words(a, b, bytes, is_equal, to);
}

/// Jumps if the truth of "these bytes are equal" is `when_equal`. `bytes` is a multiple of 8.
void Emitter::branch_words(
    const Place& a, const Place& b, uint32_t bytes, bool when_equal, Label to) {
  Label different = when_equal ? code_.new_label() : to;
  for (uint32_t at = 0; at < bytes; at += 8) {
    code_.load(8, Reg::r1, base_of(a, Reg::r3), a.offset + static_cast<int>(at));
    code_.load(8, Reg::r2, base_of(b, Reg::r3), b.offset + static_cast<int>(at));
    code_.jump_if(bpf::kJne, Reg::r1, Reg::r2, different);
  }
  if (!when_equal) return;
  code_.jump(to);
  code_.bind(different);
}

/// Tuples, copies of structs, addresses: as one place would hold both, with zeros between.
void Emitter::branch_bytes(const Expr& expr, bool when, Label to) {
  FrameScope scope(frame_);
  const Expr &left = *expr.args[0], &right = *expr.args[1];
  Type common = widened(left.type);
  lang::join(common, widened(right.type));
  const Place a = materialise(left, common), b = materialise(right, common);
  branch_words(a, b, storage_bytes(common), (expr.op == BinaryOp::kEq) == when, to);
}

void Emitter::branch_text_literal(const Expr& expr,
                                  const std::string& text,
                                  bool is_equal,
                                  Label to) {
  uint64_t wanted = text.size() + 1;  // with the NUL
  Label different = is_equal ? code_.new_label() : to;
  bool can_match =
      wanted <= storage_bytes(expr.type) && (expr.kind != ExprKind::kStr || wanted <= expr.number);
  if (!can_match) {  // a string this long does not fit
    code_.jump(different);
  } else if (expr.kind == ExprKind::kStr) {
    // One byte more than the text tells a longer string; the rest need not be read.
    uint64_t limit = std::min(expr.number, wanted + 1);
    Place place{{}, frame_.allocate(static_cast<uint32_t>(limit))};
    string_into(expr, place, Type::string(static_cast<uint32_t>(limit)), Fill::kLoose, limit);
    branch_text_bytes(place, text, different);
  } else {
    branch_text_bytes(materialise(expr, expr.type), text, different);
  }
  if (!is_equal) return;
  code_.jump(to);
  code_.bind(different);
}

/// Compares the text and its NUL, and nothing behind it.
void Emitter::branch_text_bytes(const Place& place, const std::string& text, Label if_different) {
  auto size = static_cast<uint32_t>(text.size() + 1);
  for (uint32_t at = 0; at < size;) {
    uint32_t width = size - at >= 8 ? 8 : size - at >= 4 ? 4 : size - at >= 2 ? 2 : 1;
    uint64_t expected = 0;
    std::memcpy(&expected, text.c_str() + at, width);
    code_.load(width, Reg::r1, base_of(place, Reg::r3), place.offset + static_cast<int>(at));
    if (width == 8) {
      code_.load_imm64(Reg::r2, expected);
      code_.jump_if(bpf::kJne, Reg::r1, Reg::r2, if_different);
    } else {
      code_.jump32_if_imm(bpf::kJne, Reg::r1, static_cast<int32_t>(expected), if_different);
    }
    at += width;
  }
}

}  // namespace spile::lang::codegen
