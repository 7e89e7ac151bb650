// Lowering of functions on texts and memory.
#include <algorithm>

#include "lang/sema/lower.h"

namespace spile::lang {

using typed::ExprKind;

namespace {

constexpr size_t kMostNeedleBytes = 32;
/// memcmp() looks at each byte by itself, without a loop.
constexpr int64_t kMostComparedBytes = 1024;

bool points_to_bytes(const Type& type) {
  return type.is_pointer() && type.fields.size() == 1 && type.fields[0].is_int() &&
         type.fields[0].size == 1;
}

}  // namespace

/// A string, or what a pointer to characters points to.
Lowering::ExprPtr Lowering::lower_string(const ast::Expr& expr, std::string_view what) {
  ExprPtr value = lower(expr, Want::kString);
  if (value->type.is_unknown() || value->type.is_string()) return value;
  if (points_to_bytes(value->type)) {  // as str() reads it
    const uint32_t most = effective_strlen(options_);
    ExprPtr read = make(ExprKind::kStr, Type::string(most), expr.span);
    read->number = most;
    read->args.push_back(std::move(value));
    return read;
  }
  diagnostics_.error(expr.span, "{} needs a string, not {}", what, to_string(value->type));
  return unknown(expr.span);
}

Lowering::ExprPtr Lowering::lower_strlen(const ast::Call& call) {
  ExprPtr text = lower_string(*call.arguments[0], "strlen()");
  if (text->type.is_unknown()) return unknown(call.span);
  if (text->kind == ExprKind::kText) return number(text->text.size(), Type::literal(), call.span);
  ExprPtr value = make(ExprKind::kStrlen, Type::uint64(), call.span);
  value->args.push_back(std::move(text));
  return value;
}

Lowering::ExprPtr Lowering::lower_strncmp(const ast::Call& call) {
  ExprPtr left = lower_string(*call.arguments[0], "strncmp()");
  ExprPtr right = lower_string(*call.arguments[1], "strncmp()");
  int64_t length = 0;
  if (!constant(*call.arguments[2], "the length of strncmp()", length) || left->type.is_unknown() ||
      right->type.is_unknown())
    return unknown(call.span);
  if (length < 0) {
    diagnostics_.error(call.arguments[2]->span, "strncmp: the length cannot be negative");
    return unknown(call.span);
  }
  if (left->kind == ExprKind::kText && right->kind == ExprKind::kText) {
    const auto n = static_cast<size_t>(length);
    const bool is_same = left->text.substr(0, n) == right->text.substr(0, n);
    return number(is_same ? 0 : 1, Type::literal(), call.span);
  }
  ExprPtr value = make(ExprKind::kTextDiffers, Type::int64(), call.span);
  value->number = static_cast<uint64_t>(length);
  value->args.push_back(std::move(left));
  value->args.push_back(std::move(right));
  return value;
}

Lowering::ExprPtr Lowering::lower_strcontains(const ast::Call& call, ExprKind kind) {
  ExprPtr text = lower_string(*call.arguments[0], call.name + "()");
  std::string needle;
  if (!literal_text(*call.arguments[1], fmt::format("what {}() looks for", call.name), needle) ||
      text->type.is_unknown())
    return unknown(call.span);
  const bool is_find = kind == ExprKind::kFind;
  const Type type = is_find ? Type::int64() : Type::boolean();
  if (needle.empty()) return number(is_find ? 0 : 1, type, call.span);
  if (text->kind == ExprKind::kText) {
    const size_t at = text->text.find(needle);
    const bool is_there = at != std::string::npos;
    const uint64_t where = is_there ? at : ~uint64_t{0};
    return number(is_find ? where : uint64_t{is_there}, type, call.span);
  }
  if (needle.size() > kMostNeedleBytes) {
    refuse(call.arguments[1]->span,
           fmt::format("{}() for more than {} bytes", call.name, kMostNeedleBytes));
    return unknown(call.span);
  }
  ExprPtr value = make(kind, type, call.span);
  value->text = std::move(needle);
  value->args.push_back(std::move(text));
  return value;
}

// ---- memory

/// strcap(x): bytes that a string can have, elements of an array; of a pointer as strlen().
Lowering::ExprPtr Lowering::lower_strcap(const ast::Call& call) {
  ExprPtr value = lower(*call.arguments[0], Want::kString);
  const Type& type = value->type;
  if (type.is_unknown()) return unknown(call.span);
  if (points_to_bytes(type)) return lower_strlen(call);
  const Type& inner = type.is_object() ? type.fields[0] : type;
  if (inner.kind == Type::Kind::kArray && inner.count > 0 && inner.fields[0].is_int() &&
      inner.fields[0].size == 1)
    return number(inner.count, Type::literal(), call.span);
  if (type.is_string()) return number(type.size, Type::literal(), call.span);
  diagnostics_.error(call.arguments[0]->span, "strcap() needs a string, not {}", to_string(type));
  return unknown(call.span);
}

/// memcmp(left, right, bytes): strings, structs and arrays, by their bytes.
Lowering::ExprPtr Lowering::lower_memcmp(const ast::Call& call) {
  int64_t bytes = 0;
  const bool has_bytes = constant(*call.arguments[2], "the length of memcmp()", bytes);
  if (has_bytes && (bytes < 0 || bytes > kMostComparedBytes)) {
    diagnostics_.error(call.arguments[2]->span, "memcmp: the length is 0 to {}",
                       kMostComparedBytes);
    return unknown(call.span);
  }
  ExprPtr value = make(ExprKind::kCompareMemory, Type::int64(), call.span);
  for (size_t i = 0; i < 2; ++i) {
    ExprPtr side = lower(*call.arguments[i], Want::kString);
    if (side->type.is_unknown() || !as_value(side)) return unknown(call.span);
    const Type& type = side->type;
    if (!type.is_string() && !type.is_object()) {
      diagnostics_
          .error(call.arguments[i]->span, "memcmp: {} has no bytes to compare", to_string(type))
          .with_hint("strings, structs and arrays do");
      return unknown(call.span);
    }
    if (has_bytes && bytes > static_cast<int64_t>(type.size)) {
      diagnostics_.error(call.arguments[2]->span, "memcmp: {} bytes, and {} has {}", bytes,
                         to_string(type), type.size);
      return unknown(call.span);
    }
    value->args.push_back(std::move(side));
  }
  if (!has_bytes) return unknown(call.span);
  value->number = static_cast<uint64_t>(bytes);
  return value;
}

}  // namespace spile::lang
