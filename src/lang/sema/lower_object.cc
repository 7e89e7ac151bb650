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

/// The first bytes of a value as another type.
Lowering::ExprPtr Lowering::bytes_of(ExprPtr value, Type type, Span span) {
  ExprPtr result = make(ExprKind::kBytesOf, std::move(type), span);
  result->args.push_back(std::move(value));
  return result;
}

Lowering::ExprPtr Lowering::number_of_bytes(ExprPtr& value, Span span) {
  const bool is_array =
      value->type.kind == Type::Kind::kArray ||
      (value->type.is_object() && value->type.fields[0].kind == Type::Kind::kArray);
  if (!is_array) return nullptr;
  const uint32_t bytes =
      types_.size_of(value->type.is_object() ? value->type.fields[0] : value->type);
  if (bytes != 1 && bytes != 2 && bytes != 4 && bytes != 8) return nullptr;
  return read_at(std::move(value), 0, Type::integer(bytes, false), span);
}

/// (int8[])"text": as many elements as there are.
Lowering::ExprPtr Lowering::lower_cast_to_open_array(const ast::Cast& expr) {
  Type element;
  const bool is_resolved = resolve_base(expr.type, element);
  ExprPtr value = lower(*expr.operand);
  if (!is_resolved || value->type.is_unknown()) return unknown(expr.span);
  const std::string what = fmt::format("the cast to {}", ast::to_string(expr.type));
  const uint32_t bytes =
      types_.size_of(value->type.is_object() ? value->type.fields[0] : value->type);
  const uint32_t size = types_.size_of(element);
  if (!element.is_int() || size == 0 || bytes % size != 0) {
    diagnostics_.error(expr.span, "{}: {} has no whole number of elements", what,
                       to_string(value->type));
    return unknown(expr.span);
  }
  return cast_to_array(std::move(value), Type::array_of(element, bytes / size), what, expr.span);
}

/// A number of as many bytes, a string, or an array of as many bytes.
Lowering::ExprPtr Lowering::cast_to_array(ExprPtr value,
                                          const Type& type,
                                          std::string_view what,
                                          Span span) {
  const Type object = types_.object(type);
  if (!as_value(value) || object.is_unknown()) return unknown(span);
  const Type& from = value->type;
  if (value->kind == ExprKind::kText && object.size >= value->text.size()) {
    ExprPtr bytes = make(ExprKind::kBytes, object, span);
    bytes->text = value->text;
    bytes->text.resize(object.size);
    return bytes;
  }
  const bool is_constant = value->kind == ExprKind::kNumber && from.is_int();
  const bool fits_number =
      from.is_int() && (is_constant || from.is_flexible || from.size == object.size);
  const bool fits = (fits_number && object.size <= 8) ||
                    (from.is_string() && object.size <= from.size) ||
                    (from.is_object() && object.size == from.size);
  if (fits) return bytes_of(std::move(value), object, span);
  diagnostics_.error(span, "{}: {} has not as many bytes", what, to_string(from));
  return unknown(span);
}

/// (string[64])p reads what is at an address; of a string it is at most so much.
Lowering::ExprPtr Lowering::cast_to_text(ExprPtr value,
                                         const Type& type,
                                         std::string_view what,
                                         Span span) {
  const bool is_address = value->type.is_number() || value->type.kind == Type::Kind::kArray;
  if (is_address) {
    ExprPtr read = make(type.is_string() ? ExprKind::kStr : ExprKind::kBuf, type, span);
    read->number = type.size;
    read->args.push_back(std::move(value));
    return read;
  }
  if (type.is_string() && value->type.is_string()) {
    if (value->type.size <= type.size) return value;
    if (value->kind == ExprKind::kText) return text(value->text.substr(0, type.size - 1), span);
    return bytes_of(std::move(value), type, span);
  }
  diagnostics_.error(span, "{} needs an address{}, not {}", what,
                     type.is_string() ? " or a string" : "", to_string(value->type));
  return unknown(span);
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
