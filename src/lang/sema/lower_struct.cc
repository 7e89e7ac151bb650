// Lowering of structs, unions, arrays and pointers to them.
//
// A struct or array is never copied as a whole: an expression of such a type gives its address, a
// field of it is the address a few bytes on, and only a number, a pointer or a string at the end of
// such a path is read. What is read is copied by a helper that cannot fault.
#include <algorithm>

#include "lang/sema/lower.h"

namespace spile::lang {

using ast::BinaryOp;
using typed::ExprKind;

Lowering::ExprPtr Lowering::lower_field(const ast::Field& expr) {
  if (is_args(*expr.base)) return lower_event_field(expr);
  ExprPtr base = lower(*expr.base);
  if (const auto& names = base->type.names; !names.empty()) {
    const auto at = std::ranges::find(names, expr.name);
    if (at != names.end()) {
      const auto index = static_cast<uint64_t>(at - names.begin());
      return element_of_tuple(std::move(base), index, expr.span);
    }
  }
  return member(std::move(base), expr.name, expr.name_span, expr.span);
}

Lowering::ExprPtr Lowering::member(ExprPtr base,
                                   const std::string& name,
                                   Span name_span,
                                   Span span) {
  if (base->type.is_unknown()) return unknown(span);
  const bool is_wrapped = base->type.is_object() || base->type.is_pointer();
  Type whole = is_wrapped && !base->type.fields.empty() ? base->type.fields[0] : base->type;
  if (whole.kind != Type::Kind::kStruct) {
    Diagnostic& diagnostic =
        diagnostics_.error(span, "{} has no field '{}'", to_string(base->type), name);
    if (base->type.is_number())
      diagnostic.with_hint("say what is there: ((struct name *)...)->{}", name);
    return unknown(span);
  }
  const Structure* structure = types_.structure(whole.name);
  if (structure == nullptr) {
    diagnostics_.error(span, "what {} consists of is not known", whole.name)
        .with_hint("neither the script nor the kernel's BTF defines it");
    return unknown(span);
  }
  const auto found = types_.field(*structure, name);
  if (!found) {
    const auto names = types_.field_names(*structure);
    const std::vector<std::string_view> views(names.begin(), names.end());
    Diagnostic& diagnostic =
        diagnostics_.error(name_span, "{} has no field '{}'", whole.name, name);
    const std::string_view near = nearest(name, views);
    if (!near.empty()) diagnostic.with_hint("did you mean '{}'?", near);
    return unknown(span);
  }
  if (found->field.bits != 0) return read_bits(std::move(base), *found, span);
  return read_at(std::move(base), found->offset_bytes, found->field.type, span);
}

Lowering::ExprPtr Lowering::offset_by(ExprPtr address, uint32_t bytes, Span span) {
  if (bytes == 0) return address;
  const bool is_sum = address->kind == ExprKind::kArithmetic && address->op == BinaryOp::kAdd &&
                      address->args[1]->kind == ExprKind::kNumber;
  if (is_sum) {  // a field of a field: one addition
    address->args[1]->number += bytes;
    return address;
  }
  ExprPtr sum = make(ExprKind::kArithmetic, Type::uint64(), span);
  sum->op = BinaryOp::kAdd;
  sum->args.push_back(std::move(address));
  sum->args.push_back(number(bytes, Type::literal(), span));
  return sum;
}

/// What is of that type `offset` bytes behind an address.
Lowering::ExprPtr Lowering::read_at(ExprPtr address, uint32_t offset, const Type& type, Span span) {
  if (address->type.is_object()) return part_of(std::move(address), offset, type, span);
  address = offset_by(std::move(address), offset, span);
  if (type.is_place()) {
    address->type = type;
    address->span = span;
    return address;
  }
  if (type.is_string()) {
    const uint32_t size = std::min(type.size, effective_strlen(options_));
    ExprPtr value = make(ExprKind::kStr, Type::string(size), span);
    value->number = size;
    value->is_array = true;
    value->args.push_back(std::move(address));
    return value;
  }
  ExprPtr value = make(ExprKind::kLoad, type, span);
  value->args.push_back(std::move(address));
  return value;
}

/// The unit that holds a bitfield, shifted up and down again: the sign comes along.
Lowering::ExprPtr Lowering::read_bits(ExprPtr address, const TypeTable::Found& found, Span span) {
  const StructField& field = found.field;
  const Type unit = Type::integer(field.type.size, false);
  ExprPtr value = read_at(std::move(address), found.offset_bytes, unit, span);
  const Type wide = field.type.is_signed ? Type::int64() : Type::uint64();
  const std::pair<BinaryOp, uint32_t> steps[] = {{BinaryOp::kShl, 64 - field.shift - field.bits},
                                                 {BinaryOp::kShr, 64 - field.bits}};
  for (const auto& [op, by] : steps) {
    ExprPtr shifted = make(ExprKind::kArithmetic, wide, span);
    shifted->op = op;
    shifted->args.push_back(std::move(value));
    shifted->args.push_back(number(by, Type::literal(), span));
    value = std::move(shifted);
  }
  value->type = wide;
  return value;
}

Lowering::ExprPtr Lowering::lower_index(const ast::Index& expr) {
  const auto* field = ast::try_as<ast::Field>(expr.base.get());
  if (field != nullptr && is_args(*field->base) &&
      instance_.context.kind == bundle::ContextKind::kTracepoint) {
    if (ExprPtr element = lower_event_element(expr)) return element;
  }
  ExprPtr base = lower(*expr.base);
  ExprPtr index = lower_number(*expr.index, "an index");
  if (base->type.is_unknown() || index->type.is_unknown()) return unknown(expr.span);
  if (base->type.kind == Type::Kind::kTuple && index->kind == ExprKind::kNumber)
    return element_of_tuple(std::move(base), index->number, expr.span);
  const bool is_copied_array =
      base->type.is_object() && base->type.fields[0].kind == Type::Kind::kArray;
  if (base->type.kind == Type::Kind::kArray || is_copied_array)
    return lower_element(std::move(base), std::move(index), expr.span);
  if (!base->type.is_pointer()) {
    diagnostics_.error(expr.span, "{} has no elements: an index needs an array or a pointer",
                       to_string(base->type));
    return unknown(expr.span);
  }
  return lower_deref(
      pointer_arithmetic(BinaryOp::kAdd, std::move(base), std::move(index), expr.span), expr.span);
}

/// args.list[2]: a constant place in the record. Null: the field is no array of integers.
Lowering::ExprPtr Lowering::lower_event_element(const ast::Index& expr) {
  const auto& field = ast::as<ast::Field>(*expr.base);
  const Tracepoint& event = instance_.events.front();
  const auto known = std::ranges::find(event.fields, field.name, &EventField::name);
  if (known == event.fields.end() || known->shape != EventField::Shape::kIntArray) return nullptr;
  instance_.used_fields.insert(field.name);
  const auto element = types_.named(known->type.substr(0, known->type.find('[')));
  int64_t index = 0;
  if (!element || !element->is_int()) return nullptr;
  if (!constant(*expr.index, "the index of an event's field", index)) return unknown(expr.span);
  if (index < 0 || static_cast<uint64_t>(index) >= known->size / element->size) {
    diagnostics_.error(expr.index->span, "args.{} has {} elements, there is no [{}]", field.name,
                       known->size / element->size, index);
    return unknown(expr.span);
  }
  ExprPtr value = make(ExprKind::kContext, *element, expr.span);
  value->offset = known->offset + static_cast<uint32_t>(index) * element->size;
  return value;
}

Lowering::ExprPtr Lowering::lower_element(ExprPtr array, ExprPtr index, Span span) {
  const bool is_copy = array->type.is_object();
  const Type type = is_copy ? Type(array->type.fields[0]) : array->type;
  const Type element = type.fields[0];
  const uint32_t size = types_.size_of(element);
  if (size == 0) {
    diagnostics_.error(span, "what {} consists of is not known", to_string(element));
    return unknown(span);
  }
  if (index->kind == ExprKind::kNumber) {
    if (type.count != 0 && index->number >= type.count) {
      diagnostics_.error(span, "the array has {} elements, there is no [{}]", type.count,
                         static_cast<int64_t>(index->number));
      return unknown(span);
    }
    return read_at(std::move(array), static_cast<uint32_t>(index->number) * size, element, span);
  }
  if (is_copy) {
    diagnostics_.error(index->span, "the index into a copied array must be a constant");
    return unknown(span);
  }
  ExprPtr bytes =
      arithmetic(BinaryOp::kMul, std::move(index), number(size, Type::literal(), span), span);
  ExprPtr address = make(ExprKind::kArithmetic, Type::uint64(), span);
  address->op = BinaryOp::kAdd;
  address->args.push_back(std::move(array));
  address->args.push_back(std::move(bytes));
  return read_at(std::move(address), 0, element, span);
}

Lowering::ExprPtr Lowering::lower_deref(ExprPtr address, Span span) {
  if (address->type.is_unknown()) return unknown(span);
  // An address that is no pointer yet, as of kaddr(): what is there is 64 bits.
  if (address->type.is_int()) return read_at(std::move(address), 0, Type::uint64(), span);
  if (!address->type.is_pointer()) {
    diagnostics_.error(span, "'*' needs a pointer, not {}", to_string(address->type))
        .with_hint("say what it points to: *(uint64 *)...");
    return unknown(span);
  }
  if (address->type.fields.empty()) {
    diagnostics_.error(span, "'*' of a void pointer")
        .with_hint("say what it points to: *(uint64 *)...");
    return unknown(span);
  }
  const Type type = address->type.fields[0];
  return read_at(std::move(address), 0, type, span);
}

Lowering::ExprPtr Lowering::lower_sizeof(const ast::Sizeof& expr) {
  Type type;
  if (expr.type) {
    if (!resolve_type(*expr.type, type)) return unknown(expr.span);
  } else {
    const auto* name = ast::try_as<ast::Identifier>(expr.operand.get());
    auto known = name == nullptr ? std::nullopt : types_.named(name->name);
    type = known ? *known : lower(*expr.operand)->type;
  }
  if (type.is_unknown()) return unknown(expr.span);
  return number(types_.size_of(type), Type::literal(), expr.span);
}

/// offsetof(struct X, a.b), offsetof($p, a).
Lowering::ExprPtr Lowering::lower_offsetof(const ast::Offsetof& expr) {
  Type type;
  if (expr.type) {
    if (!resolve_type(*expr.type, type)) return unknown(expr.span);
  } else {
    type = lower(*expr.operand)->type;
  }
  const auto offset = offset_of(std::move(type), expr.path, "offsetof", expr.span);
  return offset ? number(*offset, Type::literal(), expr.span) : unknown(expr.span);
}

std::optional<uint32_t> Lowering::offset_of(Type type,
                                            const std::vector<std::string>& path,
                                            std::string_view what,
                                            Span span) {
  uint32_t offset = 0;
  for (const std::string& name : path) {
    const Structure* structure =
        type.kind == Type::Kind::kStruct ? types_.structure(type.name) : nullptr;
    const auto found = structure == nullptr ? std::nullopt : types_.field(*structure, name);
    if (!found || found->field.bits != 0) {
      if (!type.is_unknown())
        diagnostics_.error(span, "{}: {} {} '{}'", what, to_string(type),
                           found ? "has the bitfield" : "has no field", name);
      return std::nullopt;
    }
    offset += found->offset_bytes;
    type = found->field.type;
  }
  return offset;
}

/// container_of(p, struct X, a.b): the struct X whose a.b is at p.
Lowering::ExprPtr Lowering::lower_container_of(const ast::Call& call) {
  const auto* of = ast::try_as<ast::TypeArgument>(call.arguments[1].get());
  std::vector<std::string> path;
  const ast::Expr* at = call.arguments[2].get();
  for (const auto* field = ast::try_as<ast::Field>(at); field != nullptr;
       field = ast::try_as<ast::Field>(at)) {
    path.insert(path.begin(), field->name);
    at = field->base.get();
  }
  const auto* first = ast::try_as<ast::Identifier>(at);
  if (of == nullptr || first == nullptr) {
    diagnostics_.error(call.span, "container_of() takes an address, a struct and one of its fields")
        .with_hint("container_of($p, struct task_struct, se)");
    return unknown(call.span);
  }
  path.insert(path.begin(), first->name);
  ExprPtr address = lower_number(*call.arguments[0], "container_of()");
  Type type;
  if (!resolve_type(of->type, type) || address->type.is_unknown()) return unknown(call.span);
  const auto offset = offset_of(type, path, "container_of", call.span);
  if (!offset) return unknown(call.span);
  address->type = Type::uint64();
  ExprPtr whole = arithmetic(BinaryOp::kSub, std::move(address),
                             number(*offset, Type::literal(), call.span), call.span);
  whole->type = Type::pointer_to(std::move(type));
  return whole;
}

}  // namespace spile::lang
