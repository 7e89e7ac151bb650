// What operators do to constants and to types: the definition that generated code must agree with.
#pragma once

#include <cstdint>

#include "lang/sema/type.h"
#include "lang/syntax/ast.h"

namespace spile::lang {

/// The type of `left op right` for two integers. A difference is signed, a shift is of its left
/// side; else unsigned when no side is signed. Literals that are not negative take the other side's
/// sign.
Type arithmetic_type(ast::BinaryOp op, const Type& left, const Type& right);

/// Numbers compare as unsigned when neither can be negative.
bool compares_unsigned(const Type& left, const Type& right);

/// 64-bit two's complement. As eBPF defines: x / 0 is 0, x % 0 is x; shifts use the low six bits.
uint64_t fold(ast::BinaryOp op, uint64_t left, uint64_t right, bool is_signed);
bool fold_compare(ast::BinaryOp op, uint64_t left, uint64_t right, bool is_unsigned);
/// The low `size_bytes` of a value, extended again.
uint64_t fold_truncate(uint64_t value, uint32_t size_bytes, bool is_signed);

}  // namespace spile::lang
