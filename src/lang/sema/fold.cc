#include "lang/sema/fold.h"

namespace spile::lang {

using ast::BinaryOp;

Type arithmetic_type(BinaryOp op, const Type& left, const Type& right) {
  if (op == BinaryOp::kSub) return Type::int64();
  if (op == BinaryOp::kShl || op == BinaryOp::kShr)
    return left.is_signed ? Type::int64() : Type::uint64();
  return compares_unsigned(left, right) ? Type::uint64() : Type::int64();
}

bool compares_unsigned(const Type& left, const Type& right) {
  bool left_can = left.is_unsigned_number() || left.is_flexible;
  bool right_can = right.is_unsigned_number() || right.is_flexible;
  return left_can && right_can && !(left.is_flexible && right.is_flexible);
}

namespace {

uint64_t magnitude(uint64_t value) {
  return static_cast<int64_t>(value) < 0 ? 0 - value : value;
}

uint64_t fold_division(BinaryOp op, uint64_t left, uint64_t right, bool is_signed) {
  if (right == 0) return op == BinaryOp::kDiv ? 0 : left;
  if (!is_signed) return op == BinaryOp::kDiv ? left / right : left % right;
  bool is_negative = static_cast<int64_t>(op == BinaryOp::kDiv ? left ^ right : left) < 0;
  uint64_t l = magnitude(left), r = magnitude(right);
  uint64_t result = op == BinaryOp::kDiv ? l / r : l % r;
  return is_negative ? 0 - result : result;
}

}  // namespace

uint64_t fold(BinaryOp op, uint64_t left, uint64_t right, bool is_signed) {
  switch (op) {
    case BinaryOp::kAdd: return left + right;
    case BinaryOp::kSub: return left - right;
    case BinaryOp::kMul: return left * right;
    case BinaryOp::kDiv:
    case BinaryOp::kMod: return fold_division(op, left, right, is_signed);
    case BinaryOp::kShl: return left << (right & 63);
    case BinaryOp::kShr:
      return is_signed ? static_cast<uint64_t>(static_cast<int64_t>(left) >> (right & 63))
                       : left >> (right & 63);
    case BinaryOp::kBitAnd: return left & right;
    case BinaryOp::kBitXor: return left ^ right;
    case BinaryOp::kBitOr: return left | right;
    default: SPILE_CHECK(false); return 0;
  }
}

bool fold_compare(BinaryOp op, uint64_t left, uint64_t right, bool is_unsigned) {
  auto l = static_cast<int64_t>(left), r = static_cast<int64_t>(right);
  switch (op) {
    case BinaryOp::kEq: return left == right;
    case BinaryOp::kNe: return left != right;
    case BinaryOp::kLt: return is_unsigned ? left < right : l < r;
    case BinaryOp::kLe: return is_unsigned ? left <= right : l <= r;
    case BinaryOp::kGt: return is_unsigned ? left > right : l > r;
    case BinaryOp::kGe: return is_unsigned ? left >= right : l >= r;
    default: SPILE_CHECK(false); return false;
  }
}

uint64_t fold_truncate(uint64_t value, uint32_t size_bytes, bool is_signed) {
  if (size_bytes >= 8) return value;
  uint32_t shift = 64 - size_bytes * 8;
  value <<= shift;
  return is_signed ? static_cast<uint64_t>(static_cast<int64_t>(value) >> shift) : value >> shift;
}

}  // namespace spile::lang
