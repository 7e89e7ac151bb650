// Lowering of copies of structs, unions and arrays: what print() shows, maps and tuples hold, and
// `==` compares. A name such as `*$p` alone copies nothing: it is the place.
#include <arpa/inet.h>

#include "lang/sema/lower.h"

namespace spile::lang {

using typed::ExprKind;

bool Lowering::as_value(ExprPtr& expr) {
  if (!expr->type.is_place()) return true;
  const Type object = types_.object(expr->type);
  if (object.is_unknown()) {
    diagnostics_.error(expr->span, "what {} consists of is not known", to_string(expr->type));
    return false;
  }
  if (object.size > kMaxTupleBytes) {
    diagnostics_
        .error(expr->span, "a copy of {} has {} bytes: {} at most", to_string(expr->type),
               object.size, kMaxTupleBytes)
        .with_hint("name the field that you want");
    return false;
  }
  ExprPtr copy = make(ExprKind::kCopy, object, expr->span);
  copy->args.push_back(std::move(expr));
  expr = std::move(copy);
  return true;
}

/// What is of that type `offset` bytes into a copy.
Lowering::ExprPtr Lowering::part_of(ExprPtr object, uint32_t offset, const Type& type, Span span) {
  if (object->kind == ExprKind::kPart) {
    offset += object->offset;
    ExprPtr whole = std::move(object->args[0]);
    object = std::move(whole);
  }
  const Type result = type.is_place() ? types_.object(type) : type;
  const bool is_number = result.is_number();
  const uint32_t size = result.is_pointer() ? 8 : result.size;
  if (result.is_unknown() || (is_number && offset % size != 0)) {
    refuse(span, fmt::format("a {} in the copy of a packed struct", to_string(type)));
    return unknown(span);
  }
  ExprPtr value = make(ExprKind::kPart, result, span);
  value->offset = offset;
  value->args.push_back(std::move(object));
  return value;
}

/// &$p->field. A variable has no address that anybody else could read.
Lowering::ExprPtr Lowering::lower_address_of(const ast::Unary& expr) {
  const bool is_own =
      expr.operand->kind == ast::ExprKind::kVariable || expr.operand->kind == ast::ExprKind::kMap;
  if (is_own) {
    refuse(expr.span, "the address of a variable or map (&)");
    return unknown(expr.span);
  }
  ExprPtr value = lower(*expr.operand);
  if (value->type.is_unknown()) return unknown(expr.span);
  const Type pointee = value->type;
  const bool is_read =
      value->kind == ExprKind::kLoad || (value->kind == ExprKind::kStr && value->is_array);
  if (is_read) {
    ExprPtr address = std::move(value->args[0]);
    value = std::move(address);
  } else if (!pointee.is_place()) {
    diagnostics_.error(expr.span, "'&': this has no address");
    return unknown(expr.span);
  }
  value->type = Type::pointer_to(pointee.is_string() ? Type::integer(1, true) : pointee);
  value->span = expr.span;
  return value;
}

/// pton("10.0.0.1"), pton("::1"): the bytes as they are in a packet.
Lowering::ExprPtr Lowering::lower_pton(const ast::Call& call) {
  std::string address;
  if (!literal_text(*call.arguments[0], "the address of pton()", address))
    return unknown(call.span);
  std::string bytes(16, '\0');
  const bool is_6 = address.find(':') != std::string::npos;
  if (inet_pton(is_6 ? AF_INET6 : AF_INET, address.c_str(), bytes.data()) != 1) {
    diagnostics_.error(call.arguments[0]->span, "pton: '{}' is no IPv4 or IPv6 address", address);
    return unknown(call.span);
  }
  if (!is_6) bytes.resize(4);
  const auto count = static_cast<uint32_t>(bytes.size());
  ExprPtr value = make(ExprKind::kBytes,
                       types_.object(Type::array_of(Type::integer(1, false), count)), call.span);
  value->text = std::move(bytes);
  return value;
}

}  // namespace spile::lang
