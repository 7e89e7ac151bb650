// Lowering of operators, casts and tuples.
#include <algorithm>

#include "lang/sema/fold.h"
#include "lang/sema/lower.h"

namespace spile::lang {

using ast::BinaryOp;
using typed::ExprKind;

Lowering::ExprPtr Lowering::lower_unary(const ast::Unary& expr) {
  if (expr.op == ast::UnaryOp::kDeref) return lower_deref(lower(*expr.operand), expr.span);
  if (expr.op == ast::UnaryOp::kAddressOf) return lower_address_of(expr);
  ExprPtr operand = lower_number(*expr.operand, fmt::format("'{}'", ast::to_string(expr.op)));
  if (operand->type.is_unknown()) return unknown(expr.span);
  bool is_constant = operand->kind == ExprKind::kNumber;
  switch (expr.op) {
    case ast::UnaryOp::kPlus: return operand;
    case ast::UnaryOp::kNegate: {
      if (is_constant)
        return number(0 - operand->number, operand->number == 0 ? operand->type : Type::int64(),
                      expr.span);
      ExprPtr value = make(ExprKind::kNegate, Type::int64(), expr.span);
      value->args.push_back(std::move(operand));
      return value;
    }
    case ast::UnaryOp::kBitNot: {
      Type type = operand->type.is_unsigned_number() ? Type::uint64() : Type::int64();
      if (is_constant) return number(~operand->number, type, expr.span);
      ExprPtr value = make(ExprKind::kBitNot, type, expr.span);
      value->args.push_back(std::move(operand));
      return value;
    }
    default: {
      if (is_constant) return number(operand->number == 0, Type::boolean(), expr.span);
      ExprPtr value = make(ExprKind::kNot, Type::boolean(), expr.span);
      value->args.push_back(std::move(operand));
      return value;
    }
  }
}

Lowering::ExprPtr Lowering::lower_inc_dec(const ast::IncDec& expr) {
  BinaryOp op = expr.is_increment ? BinaryOp::kAdd : BinaryOp::kSub;
  typed::Yields yields = expr.is_prefix ? typed::Yields::kNew : typed::Yields::kOld;
  ExprPtr one = number(1, Type::literal(), expr.span);
  if (const auto* map = ast::try_as<ast::Map>(expr.target.get())) {
    return modify_map(*map, op, std::move(one), yields, expr.span);
  }
  const auto& target = ast::as<ast::Variable>(*expr.target);
  ExprPtr variable = lower_variable(target);
  if (variable->type.is_unknown() || !expect_number(*variable, expr.is_increment ? "'++'" : "'--'"))
    return unknown(expr.span);
  if (variable->type.is_pointer()) {
    one->number = pointee_bytes(variable->type);
  } else if (!instance_.is_declared[variable->variable]) {  // it may leave the size it was given
    join_variable(variable->variable, op == BinaryOp::kSub ? Type::int64() : Type::literal(),
                  expr.span);
  }
  ExprPtr value =
      make(ExprKind::kModifyVariable, instance_.variables[variable->variable].type, expr.span);
  value->variable = variable->variable;
  value->op = op;
  value->yields = yields;
  value->args.push_back(std::move(one));
  return value;
}

Lowering::ExprPtr Lowering::lower_binary(const ast::Binary& expr) {
  if (expr.op == BinaryOp::kLogAnd || expr.op == BinaryOp::kLogOr) return lower_logical(expr);
  ExprPtr left = lower(*expr.left);
  ExprPtr right = lower(*expr.right);
  // `comm == $1`: the parameter is whatever the other side is.
  if (left->type.is_string() && expr.right->kind == ast::ExprKind::kPositional)
    right = lower(*expr.right, Want::kString);
  if (right->type.is_string() && expr.left->kind == ast::ExprKind::kPositional)
    left = lower(*expr.left, Want::kString);
  switch (expr.op) {
    case BinaryOp::kEq:
    case BinaryOp::kNe:
    case BinaryOp::kLt:
    case BinaryOp::kLe:
    case BinaryOp::kGt:
    case BinaryOp::kGe: return compare(expr.op, std::move(left), std::move(right), expr.span);
    default: return arithmetic(expr.op, std::move(left), std::move(right), expr.span);
  }
}

Lowering::ExprPtr Lowering::lower_logical(const ast::Binary& expr) {
  std::string what = fmt::format("'{}'", ast::to_string(expr.op));
  ExprPtr left = lower_number(*expr.left, what);
  ExprPtr right = lower_number(*expr.right, what);
  bool is_and = expr.op == BinaryOp::kLogAnd;
  if (left->kind == ExprKind::kNumber && !left->type.is_unknown()) {
    if ((left->number != 0) != is_and) return number(!is_and, Type::boolean(), expr.span);
    if (right->kind == ExprKind::kNumber)
      return number(right->number != 0, Type::boolean(), expr.span);
  }
  ExprPtr value = make(is_and ? ExprKind::kAnd : ExprKind::kOr, Type::boolean(), expr.span);
  value->args.push_back(std::move(left));
  value->args.push_back(std::move(right));
  return value;
}

bool Lowering::check_operands(BinaryOp op, const typed::Expr& right, Span span) {
  if (right.kind != ExprKind::kNumber || right.type.is_unknown()) return true;
  if ((op == BinaryOp::kDiv || op == BinaryOp::kMod) && right.number == 0) {
    diagnostics_.error(span, "division by zero");
    return false;
  }
  if ((op == BinaryOp::kShl || op == BinaryOp::kShr) && right.number > 63) {
    diagnostics_.error(span, "a shift by {}: 0 to 63 make sense",
                       static_cast<int64_t>(right.number));
    return false;
  }
  return true;
}

Lowering::ExprPtr Lowering::arithmetic(BinaryOp op, ExprPtr left, ExprPtr right, Span span) {
  std::string what = fmt::format("'{}'", ast::to_string(op));
  bool both = expect_number(*left, what);
  if (!expect_number(*right, what) || !both || !check_operands(op, *right, span))
    return unknown(span);
  if (left->type.is_unknown() || right->type.is_unknown())
    return number(0, Type::literal(), span);  // some number
  if (left->type.is_pointer() || right->type.is_pointer())
    return pointer_arithmetic(op, std::move(left), std::move(right), span);
  Type type = arithmetic_type(op, left->type, right->type);
  if (left->kind == ExprKind::kNumber && right->kind == ExprKind::kNumber) {
    uint64_t value = fold(op, left->number, right->number, type.is_signed);
    bool is_negative = static_cast<int64_t>(value) < 0;
    bool is_flexible = left->type.is_flexible && right->type.is_flexible && !is_negative;
    return number(value, is_flexible ? Type::literal() : type, span);
  }
  ExprPtr value = make(ExprKind::kArithmetic, type, span);
  value->op = op;
  value->args.push_back(std::move(left));
  value->args.push_back(std::move(right));
  return value;
}

/// What `pointer + 1` adds.
uint64_t Lowering::pointee_bytes(const Type& pointer) {
  return pointer.fields.empty() ? 1 : std::max(1u, types_.size_of(pointer.fields[0]));
}

/// The bytes that `pointer += value` adds.
Lowering::ExprPtr Lowering::scaled(BinaryOp op, ExprPtr value, const Type& pointer, Span span) {
  if ((op != BinaryOp::kAdd && op != BinaryOp::kSub) || !value->type.is_int()) {
    diagnostics_
        .error(span, "'{}' between {} and {}", ast::to_string(op), to_string(pointer),
               to_string(value->type))
        .with_hint("cast to uint64 to calculate with an address");
    return unknown(span);
  }
  const uint64_t bytes = pointee_bytes(pointer);
  if (bytes == 1) return value;
  return arithmetic(BinaryOp::kMul, std::move(value), number(bytes, Type::literal(), span), span);
}

Lowering::ExprPtr Lowering::pointer_arithmetic(BinaryOp op,
                                               ExprPtr left,
                                               ExprPtr right,
                                               Span span) {
  if (right->type.is_pointer() && !left->type.is_pointer() && op == BinaryOp::kAdd)
    std::swap(left, right);
  bool can = (op == BinaryOp::kAdd || op == BinaryOp::kSub) && !right->type.is_pointer();
  if (!can) {
    diagnostics_
        .error(span, "'{}' between {} and {}", ast::to_string(op), to_string(left->type),
               to_string(right->type))
        .with_hint("cast to uint64 to calculate with an address");
    return unknown(span);
  }
  Type type = left->type;
  const uint64_t scale = pointee_bytes(type);
  ExprPtr bytes = std::move(right);
  if (scale != 1)
    bytes =
        arithmetic(BinaryOp::kMul, std::move(bytes), number(scale, Type::literal(), span), span);
  ExprPtr value = make(ExprKind::kArithmetic, type, span);
  value->op = op;
  value->args.push_back(std::move(left));
  value->args.push_back(std::move(bytes));
  return value;
}

/// Two values that are no numbers: equal where all their bytes are.
Lowering::ExprPtr Lowering::compare_bytes(BinaryOp op, ExprPtr left, ExprPtr right, Span span) {
  if (!as_value(left) || !as_value(right)) return unknown(span);
  Type common = left->type;
  const bool is_equality = op == BinaryOp::kEq || op == BinaryOp::kNe;
  if (!is_equality || left->type.is_number() || right->type.is_number() ||
      join(common, right->type) == Join::kMismatch) {
    diagnostics_.error(span, "'{}' cannot compare {} with {}", ast::to_string(op),
                       to_string(left->type), to_string(right->type));
    return unknown(span);
  }
  ExprPtr value = make(ExprKind::kCompareBytes, Type::boolean(), span);
  value->op = op;
  value->args.push_back(std::move(left));
  value->args.push_back(std::move(right));
  return value;
}

Lowering::ExprPtr Lowering::compare(BinaryOp op, ExprPtr left, ExprPtr right, Span span) {
  const Type &l = left->type, &r = right->type;
  if (l.is_unknown() || r.is_unknown()) return unknown(span);
  bool is_equality = op == BinaryOp::kEq || op == BinaryOp::kNe;
  if (l.is_string() && r.is_string() && is_equality) {
    if (left->kind == ExprKind::kText && right->kind == ExprKind::kText) {
      return number((left->text == right->text) == (op == BinaryOp::kEq), Type::boolean(), span);
    }
    ExprPtr value = make(ExprKind::kCompareText, Type::boolean(), span);
    value->op = op;
    value->args.push_back(std::move(left));
    value->args.push_back(std::move(right));
    return value;
  }
  if (!l.is_number() || !r.is_number())
    return compare_bytes(op, std::move(left), std::move(right), span);
  bool is_unsigned = compares_unsigned(l, r);
  if (left->kind == ExprKind::kNumber && right->kind == ExprKind::kNumber) {
    return number(fold_compare(op, left->number, right->number, is_unsigned), Type::boolean(),
                  span);
  }
  ExprPtr value = make(ExprKind::kCompare, Type::boolean(), span);
  value->op = op;
  value->is_unsigned = is_unsigned;
  value->args.push_back(std::move(left));
  value->args.push_back(std::move(right));
  return value;
}

Lowering::ExprPtr Lowering::lower_ternary(const ast::Ternary& expr) {
  ExprPtr condition = lower_number(*expr.condition, "the condition of '?:'");
  bool is_elvis = expr.then_value == nullptr;
  ExprPtr then_value = is_elvis ? nullptr : lower(*expr.then_value);
  ExprPtr else_value = lower(*expr.else_value);
  Type type = is_elvis ? condition->type : then_value->type;
  if (join(type, else_value->type) == Join::kMismatch) {
    diagnostics_.error(expr.span, "'?:' has {} on one side and {} on the other",
                       to_string(is_elvis ? condition->type : then_value->type),
                       to_string(else_value->type));
    return unknown(expr.span);
  }
  type.is_flexible = false;
  bool is_known = condition->kind == ExprKind::kNumber && !condition->type.is_unknown();
  if (is_known && condition->number == 0) return else_value;
  if (is_known) return is_elvis ? std::move(condition) : std::move(then_value);
  ExprPtr value =
      make(is_elvis ? ExprKind::kElvis : ExprKind::kConditional, widened(type), expr.span);
  value->args.push_back(std::move(condition));
  if (!is_elvis) value->args.push_back(std::move(then_value));
  value->args.push_back(std::move(else_value));
  return value;
}

// ---- types
// ------------------------------------------------------------------------------------------------------------

bool Lowering::resolve_base(const ast::TypeName& name, Type& type) {
  using Base = ast::TypeName::Base;
  switch (name.base) {
    case Base::kNamed: {
      if (name.name == "void") return true;
      if (name.name == "string" || name.name == "buffer") {
        const uint32_t bytes = effective_strlen(options_);
        type = name.name == "string" ? Type::string(bytes) : Type::buffer(bytes);
        return true;
      }
      auto known = types_.named(name.name);
      if (!known && ast::is_builtin_type(name.name)) {
        refuse(name.span, fmt::format("the type '{}' of a value", name.name));
        return false;
      }
      if (!known) {
        diagnostics_.error(name.span, "unknown type '{}'", ast::to_string(name))
            .with_hint("neither the script nor the kernel's BTF defines it");
        return false;
      }
      type = *known;
      return true;
    }
    case Base::kStruct:
    case Base::kUnion: {
      type = Type::structure((name.base == Base::kStruct ? "struct " : "union ") + name.name);
      // In a program's function the program's own types come before the kernel's.
      if (!types_.is_own(type.name) && !instance_.functions.empty()) {
        const std::string of_program = type.name + " of " + instance_.functions.front().path;
        if (types_.structure(of_program) != nullptr) {
          type = Type::structure(of_program);
          return true;
        }
      }
      if (types_.structure(type.name) != nullptr) return true;
      diagnostics_.error(name.span, "unknown type '{}'", type.name)
          .with_hint("{}", world_.has_kernel_types()
                               ? "neither the script nor the kernel's BTF defines it"
                               : "the script does not define it, and this kernel has no BTF");
      return false;
    }
    case Base::kEnum: {
      if (auto known = types_.enumeration("enum " + name.name)) {
        type = std::move(*known);
        return true;
      }
      diagnostics_.error(name.span, "unknown type 'enum {}'", name.name)
          .with_hint("neither the script nor the kernel's BTF defines it");
      return false;
    }
    case Base::kTypeof:
      if (name.typeof_type) return resolve_type(*name.typeof_type, type);
      type = lower(*name.typeof_operand)->type;
      if (type.is_none()) diagnostics_.error(name.span, "typeof of something without a value");
      return !type.is_unknown() && !type.is_none();
  }
  return false;
}

bool Lowering::resolve_type(const ast::TypeName& name, Type& type) {
  if (!resolve_base(name, type)) return false;
  bool is_void = name.base == ast::TypeName::Base::kNamed && name.name == "void";
  for (const ast::TypeName::Suffix& suffix : name.suffixes) {
    if (suffix.is_array) {
      int64_t count = 0;
      const bool is_text = type.is_string() || type.kind == Type::Kind::kBuffer;
      if (is_text && suffix.size != nullptr) {  // string[64]: its size
        if (!constant(*suffix.size, "the size of a string", count)) return false;
        if (count <= 0 || count > static_cast<int64_t>(CompileOptions::kMaxStrlen)) {
          diagnostics_.error(suffix.size->span,
                             "a string or buffer of {} bytes: 1 to {} make sense", count,
                             CompileOptions::kMaxStrlen);
          return false;
        }
        type.size = static_cast<uint32_t>(count);
        continue;
      }
      if (suffix.size == nullptr || !constant(*suffix.size, "the size of an array", count) ||
          count <= 0 || count > INT32_MAX || is_void) {
        if (!diagnostics_.has_errors())
          refuse(name.span, fmt::format("the type '{}'", ast::to_string(name)));
        return false;
      }
      type = Type::array_of(type, static_cast<uint32_t>(count));
      continue;
    }
    type = is_void ? Type::void_pointer() : Type::pointer_to(type);
    is_void = false;
  }
  if (is_void) diagnostics_.error(name.span, "void is the type of no value");
  return !is_void;
}

Lowering::ExprPtr Lowering::truncate(ExprPtr value, const Type& type, Span span) {
  if (type.is_bool) {  // what is not 0 is 1
    ExprPtr truth =
        compare(BinaryOp::kNe, std::move(value), number(0, Type::literal(), span), span);
    truth->type = type;
    return truth;
  }
  if (value->kind == ExprKind::kNumber && type.is_int()) {
    return number(fold_truncate(value->number, type.size, type.is_signed), type, span);
  }
  ExprPtr result = make(ExprKind::kTruncate, type, span);
  result->args.push_back(std::move(value));
  return result;
}

Lowering::ExprPtr Lowering::lower_cast(const ast::Cast& expr) {
  if (expr.type.suffixes.size() == 1 && expr.type.suffixes[0].is_array &&
      expr.type.suffixes[0].size == nullptr)
    return lower_cast_to_open_array(expr);
  Type type;
  bool is_resolved = resolve_type(expr.type, type);
  ExprPtr operand = lower(*expr.operand);
  if (!is_resolved || operand->type.is_unknown()) return unknown(expr.span);
  std::string what = fmt::format("the cast to {}", ast::to_string(expr.type));
  if (type.kind == Type::Kind::kArray)
    return cast_to_array(std::move(operand), type, what, expr.span);
  if (type.is_string() || type.kind == Type::Kind::kBuffer)
    return cast_to_text(std::move(operand), type, what, expr.span);
  if (type.is_place()) {
    diagnostics_.error(expr.span, "{}: a value cannot become a struct", what)
        .with_hint("an address can become a pointer: ({} *)...", ast::to_string(expr.type));
    return unknown(expr.span);
  }
  if (type.kind == Type::Kind::kTuple) {
    Type joined = type;
    const bool fits = join(joined, operand->type) != Join::kMismatch &&
                      storage_bytes(joined) == storage_bytes(type);
    if (fits) return operand;
    diagnostics_.error(expr.span, "{}: {} is something else", what, to_string(operand->type));
    return unknown(expr.span);
  }
  if (operand->type.is_place() && type.is_pointer()) {  // an array is its address
    operand->type = std::move(type);
    return operand;
  }
  if (type.is_bool && operand->type.is_string())
    return compare(BinaryOp::kNe, std::move(operand), text("", expr.span), expr.span);
  if (type.is_number() && !operand->type.is_number()) {
    if (ExprPtr bytes = number_of_bytes(operand, expr.span))
      return truncate(std::move(bytes), type, expr.span);
  }
  if (!expect_number(*operand, what)) return unknown(expr.span);
  return truncate(std::move(operand), type, expr.span);
}

Lowering::ExprPtr Lowering::lower_tuple(const ast::Tuple& expr) {
  std::vector<const ast::Expr*> elements;
  for (const ast::ExprPtr& element : expr.elements) elements.push_back(element.get());
  return tuple_of(elements, {}, expr.span);
}

/// (a=1, b="x"): a tuple whose elements have names.
Lowering::ExprPtr Lowering::lower_record(const ast::Record& expr) {
  std::vector<const ast::Expr*> elements;
  std::vector<std::string> names;
  for (const ast::Record::Member& member : expr.members) {
    if (std::ranges::find(names, member.name) != names.end()) {
      diagnostics_.error(member.name_span, "the record has a field '{}' already", member.name);
      return unknown(expr.span);
    }
    names.push_back(member.name);
    elements.push_back(member.value.get());
  }
  return tuple_of(elements, std::move(names), expr.span);
}

Lowering::ExprPtr Lowering::tuple_of(const std::vector<const ast::Expr*>& given,
                                     std::vector<std::string> names,
                                     Span span) {
  std::vector<ExprPtr> elements;
  std::vector<Type> types;
  bool is_known = true;
  for (const ast::Expr* element : given) {
    elements.push_back(lower(*element));
    const Type& type = elements.back()->type;
    if (type.is_none()) {
      diagnostics_.error(element->span, "this has no value, it cannot be part of a tuple");
      return unknown(span);
    }
    if (!as_value(elements.back())) return unknown(span);
    const Type& kept = elements.back()->type;
    is_known = is_known && !kept.is_unknown();
    types.push_back(widened(kept));
  }
  Type type = is_known ? Type::tuple(std::move(types)) : Type{};
  if (is_known) type.names = std::move(names);
  ExprPtr value = make(ExprKind::kTuple, std::move(type), span);
  if (storage_bytes(value->type) > kMaxTupleBytes) {
    diagnostics_.error(span, "a tuple of {} bytes: {} at most", storage_bytes(value->type),
                       kMaxTupleBytes);
    return unknown(span);
  }
  value->args = std::move(elements);
  return value;
}

}  // namespace spile::lang
