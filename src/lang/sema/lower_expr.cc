// Lowering of values.
#include <algorithm>
#include <array>

#include "lang/sema/fold.h"
#include "lang/sema/lower.h"
#include "lang/syntax/lexer.h"
#include "lang/syntax/print.h"

namespace spile::lang {

using ast::BinaryOp;
using bundle::ContextKind;
using bundle::ProbeKind;
using typed::ExprKind;

Lowering::ExprPtr Lowering::make(ExprKind kind, Type type, Span span) {
  auto expr = std::make_unique<typed::Expr>();
  expr->kind = kind;
  expr->type = std::move(type);
  expr->span = span;
  return expr;
}

Lowering::ExprPtr Lowering::number(uint64_t value, Type type, Span span) {
  ExprPtr expr = make(ExprKind::kNumber, std::move(type), span);
  expr->number = value;
  return expr;
}

Lowering::ExprPtr Lowering::text(std::string value, Span span) {
  value.resize(std::min(value.size(), value.find('\0')));
  ExprPtr expr = make(ExprKind::kText, Type::string(static_cast<uint32_t>(value.size()) + 1), span);
  expr->text = std::move(value);
  return expr;
}

Lowering::ExprPtr Lowering::lower(const ast::Expr& expr, Want want) {
  switch (expr.kind) {
    case ast::ExprKind::kInteger: return lower_integer(ast::as<ast::Integer>(expr));
    case ast::ExprKind::kString: return text(ast::as<ast::String>(expr).value, expr.span);
    case ast::ExprKind::kBool: return number(ast::as<ast::Bool>(expr).value, Type::literal(), expr.span);
    case ast::ExprKind::kIdentifier: return lower_identifier(ast::as<ast::Identifier>(expr));
    case ast::ExprKind::kPositional: return lower_positional(ast::as<ast::Positional>(expr), want);
    case ast::ExprKind::kPositionalCount: return number(options_.positional.size(), Type::literal(), expr.span);
    case ast::ExprKind::kVariable: return lower_variable(ast::as<ast::Variable>(expr));
    case ast::ExprKind::kMap: return lower_map_read(ast::as<ast::Map>(expr));
    case ast::ExprKind::kIndex: return lower_index(ast::as<ast::Index>(expr));
    case ast::ExprKind::kField: return lower_field(ast::as<ast::Field>(expr));
    case ast::ExprKind::kTupleField: return lower_tuple_field(ast::as<ast::TupleField>(expr));
    case ast::ExprKind::kUnary: return lower_unary(ast::as<ast::Unary>(expr));
    case ast::ExprKind::kIncDec: return lower_inc_dec(ast::as<ast::IncDec>(expr));
    case ast::ExprKind::kBinary: return lower_binary(ast::as<ast::Binary>(expr));
    case ast::ExprKind::kTernary: return lower_ternary(ast::as<ast::Ternary>(expr));
    case ast::ExprKind::kCast: return lower_cast(ast::as<ast::Cast>(expr));
    case ast::ExprKind::kTuple: return lower_tuple(ast::as<ast::Tuple>(expr));
    case ast::ExprKind::kCall: return lower_call(ast::as<ast::Call>(expr));
    case ast::ExprKind::kSizeof: return lower_sizeof(ast::as<ast::Sizeof>(expr));
    case ast::ExprKind::kRecord: refuse(expr.span, "a record"); break;
    case ast::ExprKind::kOffsetof: refuse(expr.span, "offsetof"); break;
    case ast::ExprKind::kTypeArgument: refuse(expr.span, "a type as an argument"); break;
    case ast::ExprKind::kBlock: refuse(expr.span, "a block as a value"); break;
    case ast::ExprKind::kIf: refuse(expr.span, "'if' as a value"); break;
    case ast::ExprKind::kComptime: refuse(expr.span, "comptime"); break;
  }
  return unknown(expr.span);
}

bool Lowering::expect_number(const typed::Expr& expr, std::string_view what) {
  if (expr.type.is_unknown() || expr.type.is_number()) return true;
  if (expr.type.is_none()) {
    diagnostics_.error(expr.span, "{} needs a number, and this has no value", what);
  } else {
    diagnostics_.error(expr.span, "{} needs a number, not {}", what, to_string(expr.type));
  }
  return false;
}

Lowering::ExprPtr Lowering::lower_number(const ast::Expr& expr, std::string_view what) {
  ExprPtr value = lower(expr);
  return expect_number(*value, what) ? std::move(value) : unknown(expr.span);
}

Lowering::ExprPtr Lowering::lower_integer(const ast::Integer& expr) {
  bool fits = expr.value <= static_cast<uint64_t>(INT64_MAX);
  return number(expr.value, fits && !expr.is_unsigned ? Type::literal() : Type::uint64(), expr.span);
}

Lowering::ExprPtr Lowering::lower_positional(const ast::Positional& expr, Want want) {
  size_t index = expr.index;
  bool is_given = index >= 1 && index <= options_.positional.size();
  const std::string value = is_given ? options_.positional[index - 1] : "";
  if (want == Want::kString) return text(value, expr.span);
  if (!is_given) return number(0, Type::literal(), expr.span);
  bool is_negative = value.starts_with('-');
  auto parsed = read_number(std::string_view(value).substr(is_negative ? 1 : 0));
  if (!parsed) return text(value, expr.span);
  if (is_negative) return number(0 - parsed->value, Type::int64(), expr.span);
  return number(parsed->value, parsed->value <= static_cast<uint64_t>(INT64_MAX) ? Type::literal() : Type::uint64(),
                expr.span);
}

Lowering::ExprPtr Lowering::lower_identifier(const ast::Identifier& expr) { return lower_name(expr.name, expr.span); }

Lowering::ExprPtr Lowering::lower_name(const std::string& name, Span span) {
  if (name == "args") {
    refuse(span, "args as a whole");
    return unknown(span);
  }
  if (name == "retval") return lower_retval(span);
  if (name.starts_with("arg") && name.size() > 3 && std::ranges::all_of(name.substr(3), [](char c) { return c >= '0' && c <= '9'; })) {
    return lower_argument_register(name.size() > 5 ? 99 : static_cast<uint32_t>(std::stoul(name.substr(3))), span);
  }
  const BuiltinEntry* entry = find_builtin(name);
  if (entry == nullptr) {
    Diagnostic& diagnostic = diagnostics_.error(span, "unknown name '{}'", name);
    std::string_view near = nearest_builtin(name);
    if (!near.empty()) {
      diagnostic.with_hint("did you mean '{}'?", near);
    } else if (find_function(name) != nullptr) {
      diagnostic.with_hint("it is a function: {}(...)", name);
    }
    return unknown(span);
  }
  if (!entry->is_built) {
    refuse(span, name);
    return unknown(span);
  }
  if (entry->builtin == typed::Builtin::kFunc && instance_.context.kind != ContextKind::kRegs) {
    diagnostics_.error(span, "func is only there in uprobe, kprobe and kretprobe");
    return unknown(span);
  }
  ExprPtr expr = make(ExprKind::kBuiltin, type_of(entry->builtin), span);
  expr->builtin = entry->builtin;
  return expr;
}

Lowering::ExprPtr Lowering::lower_argument_register(uint32_t index, Span span) {
  namespace regs = bpf::x86_64_regs;
  constexpr std::array kOffsets = {regs::kDi, regs::kSi, regs::kDx, regs::kCx, regs::kR8, regs::kR9};
  ProbeKind kind = instance_.context.probe;
  if (kind == ProbeKind::kTracepoint) {
    diagnostics_.error(span, "arg{} is not there in a tracepoint", index).with_hint("use its fields: args.name");
  } else if (kind != ProbeKind::kUprobe && kind != ProbeKind::kKprobe) {
    diagnostics_.error(span, "arg{} is only there in uprobe and kprobe", index);
  } else if (index >= kOffsets.size()) {
    diagnostics_.error(span, "arg{}: only the first six arguments are in registers: arg0 to arg5", index);
  } else {
    ExprPtr expr = make(ExprKind::kContext, Type::uint64(), span);
    expr->offset = static_cast<uint32_t>(kOffsets[index]);
    return expr;
  }
  return unknown(span);
}

Lowering::ExprPtr Lowering::lower_retval(Span span) {
  if (instance_.context.probe != ProbeKind::kKretprobe) {
    diagnostics_.error(span, "retval is only there in kretprobe");
    return unknown(span);
  }
  ExprPtr expr = make(ExprKind::kContext, Type::int64(), span);
  expr->offset = bpf::x86_64_regs::kAx;
  return expr;
}

Lowering::ExprPtr Lowering::lower_variable(const ast::Variable& expr) {
  int variable = find_variable(expr.name);
  if (variable < 0) {
    report_undefined(expr.name, expr.span);
    return unknown(expr.span);
  }
  ExprPtr value = make(ExprKind::kVariable, instance_.variables[variable].type, expr.span);
  value->variable = variable;
  return value;
}

// ---- fields -----------------------------------------------------------------------------------------------------------

bool Lowering::is_args(const ast::Expr& expr) {
  if (const auto* name = ast::try_as<ast::Identifier>(&expr)) return name->name == "args";
  const auto* call = ast::try_as<ast::Call>(&expr);
  return call != nullptr && call->name == "args" && call->arguments.empty();
}

Lowering::ExprPtr Lowering::lower_field(const ast::Field& expr) {
  if (is_args(*expr.base)) return lower_event_field(expr);
  ExprPtr base = lower(*expr.base);
  if (base->type.is_unknown()) return unknown(expr.span);
  if (base->type.is_pointer()) {
    refuse(expr.span, "access to the fields of a struct");
  } else {
    diagnostics_.error(expr.span, "{} has no field '{}'", to_string(base->type), expr.name);
  }
  return unknown(expr.span);
}

namespace {

/// How a field of an event is read, or kUnknown in the type when it cannot be.
struct FieldAccess {
  ExprKind kind = ExprKind::kContext;
  Type type;
};

FieldAccess access_of(const EventField& field, uint32_t max_strlen) {
  switch (field.shape) {
    case EventField::Shape::kInt: {
      bool is_plain = field.size == 1 || field.size == 2 || field.size == 4 || field.size == 8;
      return {ExprKind::kContext, is_plain ? Type::integer(field.size, field.is_signed) : Type{}};
    }
    case EventField::Shape::kPointer: {
      // `char *` may be given to str(), and so may everything else: the type only matters when it is printed.
      return {ExprKind::kContext, field.size == 8 ? Type::void_pointer() : Type{}};
    }
    case EventField::Shape::kCharArray: return {ExprKind::kContextString, Type::string(std::min(field.size, max_strlen))};
    case EventField::Shape::kDataLocStr:
    case EventField::Shape::kRelLocStr: return {ExprKind::kContextDataLoc, Type::string(max_strlen)};
    default: return {};
  }
}

}  // namespace

Lowering::ExprPtr Lowering::lower_event_field(const ast::Field& expr) {
  if (instance_.context.kind == ContextKind::kRegs) {
    refuse(expr.span, "args of functions (from debug information)");
    return unknown(expr.span);
  }
  if (instance_.context.kind == ContextKind::kNone) {
    diagnostics_.error(expr.span, "args is only there in tracepoints");
    return unknown(expr.span);
  }
  const Tracepoint& event = instance_.events.front();
  auto field = std::ranges::find(event.fields, expr.name, &EventField::name);
  instance_.used_fields.insert(expr.name);
  if (field == event.fields.end()) {
    std::vector<std::string_view> names;
    for (const EventField& other : event.fields) names.push_back(other.name);
    Diagnostic& diagnostic = diagnostics_.error(expr.name_span, "tracepoint:{}:{} has no field '{}'", event.category,
                                                event.event, expr.name);
    std::string_view near = nearest(expr.name, names);
    if (!near.empty()) diagnostic.with_hint("did you mean '{}'?", near);
    return unknown(expr.span);
  }
  if (field->offset < 8) {
    diagnostics_.error(expr.name_span, "args.{}: the kernel hides the first 8 bytes of a record from programs", expr.name)
        .with_hint("pid, tid and probe say the same");
    return unknown(expr.span);
  }
  FieldAccess access = access_of(*field, effective_strlen(options_));
  if (access.type.is_unknown()) {
    diagnostics_.error(expr.name_span, "args.{}: a field of type '{}' is not built yet", expr.name, field->type);
    return unknown(expr.span);
  }
  ExprPtr value = make(access.kind, access.type, expr.span);
  value->offset = field->offset;
  value->is_relative = field->shape == EventField::Shape::kRelLocStr;
  return value;
}

Lowering::ExprPtr Lowering::lower_tuple_field(const ast::TupleField& expr) {
  ExprPtr base = lower(*expr.base);
  if (base->type.is_unknown()) return unknown(expr.span);
  if (base->type.kind != Type::Kind::kTuple) {
    diagnostics_.error(expr.span, "{} has no element .{}", to_string(base->type), expr.index);
    return unknown(expr.span);
  }
  if (expr.index >= base->type.fields.size()) {
    diagnostics_.error(expr.span, "the tuple has {} elements, there is no .{}", base->type.fields.size(), expr.index);
    return unknown(expr.span);
  }
  ExprPtr value = make(ExprKind::kTupleField, base->type.fields[expr.index], expr.span);
  value->number = expr.index;
  value->args.push_back(std::move(base));
  return value;
}

Lowering::ExprPtr Lowering::lower_index(const ast::Index& expr) {
  ExprPtr base = lower(*expr.base);
  ExprPtr index = lower_number(*expr.index, "an index");
  if (base->type.is_unknown() || index->type.is_unknown()) return unknown(expr.span);
  if (!base->type.is_pointer()) {
    refuse(expr.span, fmt::format("an index into {}", to_string(base->type)));
    return unknown(expr.span);
  }
  return lower_deref(pointer_arithmetic(BinaryOp::kAdd, std::move(base), std::move(index), expr.span), expr.span);
}

Lowering::ExprPtr Lowering::lower_deref(ExprPtr address, Span span) {
  if (address->type.is_unknown()) return unknown(span);
  if (!address->type.is_pointer()) {
    diagnostics_.error(span, "'*' needs a pointer, not {}", to_string(address->type))
        .with_hint("say what it points to: *(uint64 *)...");
    return unknown(span);
  }
  if (address->type.fields.empty()) {
    diagnostics_.error(span, "'*' of a void pointer").with_hint("say what it points to: *(uint64 *)...");
    return unknown(span);
  }
  ExprPtr value = make(ExprKind::kLoad, address->type.fields[0], span);
  value->args.push_back(std::move(address));
  return value;
}

// ---- operators --------------------------------------------------------------------------------------------------------

Lowering::ExprPtr Lowering::lower_unary(const ast::Unary& expr) {
  if (expr.op == ast::UnaryOp::kDeref) return lower_deref(lower(*expr.operand), expr.span);
  if (expr.op == ast::UnaryOp::kAddressOf) {
    refuse(expr.span, "the address of a variable or map (&)");
    return unknown(expr.span);
  }
  ExprPtr operand = lower_number(*expr.operand, fmt::format("'{}'", ast::to_string(expr.op)));
  if (operand->type.is_unknown()) return unknown(expr.span);
  bool is_constant = operand->kind == ExprKind::kNumber;
  switch (expr.op) {
    case ast::UnaryOp::kPlus: return operand;
    case ast::UnaryOp::kNegate: {
      if (is_constant) return number(0 - operand->number, operand->number == 0 ? operand->type : Type::int64(), expr.span);
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
      if (is_constant) return number(operand->number == 0, Type::literal(), expr.span);
      ExprPtr value = make(ExprKind::kNot, Type::int64(), expr.span);
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
  if (variable->type.is_unknown() || !expect_number(*variable, expr.is_increment ? "'++'" : "'--'")) return unknown(expr.span);
  if (variable->type.is_pointer()) {
    refuse(expr.span, "'++' and '--' of a pointer");
    return unknown(expr.span);
  }
  if (!instance_.is_declared[variable->variable] && op == BinaryOp::kSub) {
    join_variable(variable->variable, Type::int64(), expr.span);  // it may go below 0
  }
  ExprPtr value = make(ExprKind::kModifyVariable, instance_.variables[variable->variable].type, expr.span);
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
  if (left->type.is_string() && expr.right->kind == ast::ExprKind::kPositional) right = lower(*expr.right, Want::kString);
  if (right->type.is_string() && expr.left->kind == ast::ExprKind::kPositional) left = lower(*expr.left, Want::kString);
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
    if ((left->number != 0) != is_and) return number(!is_and, Type::literal(), expr.span);
    if (right->kind == ExprKind::kNumber) return number(right->number != 0, Type::literal(), expr.span);
  }
  ExprPtr value = make(is_and ? ExprKind::kAnd : ExprKind::kOr, Type::int64(), expr.span);
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
    diagnostics_.error(span, "a shift by {}: 0 to 63 make sense", static_cast<int64_t>(right.number));
    return false;
  }
  return true;
}

Lowering::ExprPtr Lowering::arithmetic(BinaryOp op, ExprPtr left, ExprPtr right, Span span) {
  std::string what = fmt::format("'{}'", ast::to_string(op));
  bool both = expect_number(*left, what);
  if (!expect_number(*right, what) || !both || !check_operands(op, *right, span)) return unknown(span);
  if (left->type.is_unknown() || right->type.is_unknown()) return number(0, Type::literal(), span);  // some number
  if (left->type.is_pointer() || right->type.is_pointer()) return pointer_arithmetic(op, std::move(left), std::move(right), span);
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

Lowering::ExprPtr Lowering::pointer_arithmetic(BinaryOp op, ExprPtr left, ExprPtr right, Span span) {
  if (right->type.is_pointer() && !left->type.is_pointer() && op == BinaryOp::kAdd) std::swap(left, right);
  bool can = (op == BinaryOp::kAdd || op == BinaryOp::kSub) && !right->type.is_pointer();
  if (!can) {
    diagnostics_.error(span, "'{}' between {} and {}", ast::to_string(op), to_string(left->type), to_string(right->type))
        .with_hint("cast to uint64 to calculate with an address");
    return unknown(span);
  }
  Type type = left->type;
  uint64_t scale = type.fields.empty() ? 1 : std::max(1u, type.fields[0].size);
  ExprPtr bytes = std::move(right);
  if (scale != 1) bytes = arithmetic(BinaryOp::kMul, std::move(bytes), number(scale, Type::literal(), span), span);
  ExprPtr value = make(ExprKind::kArithmetic, type, span);
  value->op = op;
  value->args.push_back(std::move(left));
  value->args.push_back(std::move(bytes));
  return value;
}

Lowering::ExprPtr Lowering::compare(BinaryOp op, ExprPtr left, ExprPtr right, Span span) {
  const Type &l = left->type, &r = right->type;
  if (l.is_unknown() || r.is_unknown()) return unknown(span);
  bool is_equality = op == BinaryOp::kEq || op == BinaryOp::kNe;
  if (l.is_string() && r.is_string() && is_equality) {
    if (left->kind == ExprKind::kText && right->kind == ExprKind::kText) {
      return number((left->text == right->text) == (op == BinaryOp::kEq), Type::literal(), span);
    }
    ExprPtr value = make(ExprKind::kCompareText, Type::int64(), span);
    value->op = op;
    value->args.push_back(std::move(left));
    value->args.push_back(std::move(right));
    return value;
  }
  if (!l.is_number() || !r.is_number()) {
    if (l.kind == r.kind && is_equality) {
      refuse(span, fmt::format("a comparison of {} with {}", to_string(l), to_string(r)));
    } else {
      diagnostics_.error(span, "'{}' cannot compare {} with {}", ast::to_string(op), to_string(l), to_string(r));
    }
    return unknown(span);
  }
  bool is_unsigned = compares_unsigned(l, r);
  if (left->kind == ExprKind::kNumber && right->kind == ExprKind::kNumber) {
    return number(fold_compare(op, left->number, right->number, is_unsigned), Type::literal(), span);
  }
  ExprPtr value = make(ExprKind::kCompare, Type::int64(), span);
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
                       to_string(is_elvis ? condition->type : then_value->type), to_string(else_value->type));
    return unknown(expr.span);
  }
  type.is_flexible = false;
  bool is_known = condition->kind == ExprKind::kNumber && !condition->type.is_unknown();
  if (is_known && condition->number == 0) return else_value;
  if (is_known) return is_elvis ? std::move(condition) : std::move(then_value);
  ExprPtr value = make(is_elvis ? ExprKind::kElvis : ExprKind::kConditional, widened(type), expr.span);
  value->args.push_back(std::move(condition));
  if (!is_elvis) value->args.push_back(std::move(then_value));
  value->args.push_back(std::move(else_value));
  return value;
}

// ---- types ------------------------------------------------------------------------------------------------------------

namespace {

/// Types that C and BTF give a size on x86-64, as far as scripts use them without definitions.
struct NamedType {
  std::string_view name;
  uint32_t size;
  bool is_signed;
};
constexpr NamedType kNamedTypes[] = {
    {"int8", 1, true},   {"int16", 2, true},   {"int32", 4, true},   {"int64", 8, true},     {"uint8", 1, false},
    {"uint16", 2, false}, {"uint32", 4, false}, {"uint64", 8, false}, {"char", 1, true},      {"short", 2, true},
    {"int", 4, true},    {"long", 8, true},    {"int8_t", 1, true},  {"int16_t", 2, true},   {"int32_t", 4, true},
    {"int64_t", 8, true}, {"uint8_t", 1, false}, {"uint16_t", 2, false}, {"uint32_t", 4, false}, {"uint64_t", 8, false},
    {"u8", 1, false},    {"u16", 2, false},    {"u32", 4, false},    {"u64", 8, false},      {"s8", 1, true},
    {"s16", 2, true},    {"s32", 4, true},     {"s64", 8, true},     {"size_t", 8, false},   {"ssize_t", 8, true},
    {"pid_t", 4, true},  {"uid_t", 4, false},  {"gid_t", 4, false},  {"bool", 1, false},     {"uintptr_t", 8, false},
};

}  // namespace

bool Lowering::resolve_type(const ast::TypeName& name, Type& type) {
  if (name.base != ast::TypeName::Base::kNamed) {
    refuse(name.span, name.base == ast::TypeName::Base::kTypeof ? "typeof" : fmt::format("the type '{}'", ast::to_string(name)));
    return false;
  }
  auto known = std::ranges::find(kNamedTypes, name.name, &NamedType::name);
  bool is_void = name.name == "void";
  if (known == std::end(kNamedTypes) && !is_void) {
    refuse(name.span, fmt::format("the type '{}'", ast::to_string(name)));
    return false;
  }
  bool is_first = true;
  if (!is_void) type = Type::integer(known->size, known->is_signed);
  for (const ast::TypeName::Suffix& suffix : name.suffixes) {
    if (suffix.is_array) {
      refuse(name.span, fmt::format("the type '{}'", ast::to_string(name)));
      return false;
    }
    type = is_void && is_first ? Type::void_pointer() : Type::pointer_to(type);
    is_first = false;
  }
  if (is_void && is_first) {
    diagnostics_.error(name.span, "void is the type of no value");
    return false;
  }
  return true;
}

Lowering::ExprPtr Lowering::truncate(ExprPtr value, const Type& type, Span span) {
  if (value->kind == ExprKind::kNumber && type.is_int()) {
    return number(fold_truncate(value->number, type.size, type.is_signed), type, span);
  }
  ExprPtr result = make(ExprKind::kTruncate, type, span);
  result->args.push_back(std::move(value));
  return result;
}

Lowering::ExprPtr Lowering::lower_cast(const ast::Cast& expr) {
  Type type;
  bool is_resolved = resolve_type(expr.type, type);
  ExprPtr operand = lower(*expr.operand);
  if (!is_resolved || operand->type.is_unknown()) return unknown(expr.span);
  std::string what = fmt::format("the cast to {}", ast::to_string(expr.type));
  if (!expect_number(*operand, what)) return unknown(expr.span);
  if (expr.type.name == "bool" && type.is_int()) {
    return compare(BinaryOp::kNe, std::move(operand), number(0, Type::literal(), expr.span), expr.span);
  }
  return truncate(std::move(operand), type, expr.span);
}

Lowering::ExprPtr Lowering::lower_tuple(const ast::Tuple& expr) {
  std::vector<ExprPtr> elements;
  std::vector<Type> types;
  bool is_known = true;
  for (const ast::ExprPtr& element : expr.elements) {
    elements.push_back(lower(*element));
    const Type& type = elements.back()->type;
    if (type.is_none()) {
      diagnostics_.error(element->span, "this has no value, it cannot be part of a tuple");
      return unknown(expr.span);
    }
    is_known = is_known && !type.is_unknown();
    types.push_back(widened(type));
  }
  if (types.empty()) {
    refuse(expr.span, "the empty tuple");
    return unknown(expr.span);
  }
  ExprPtr value = make(ExprKind::kTuple, is_known ? Type::tuple(std::move(types)) : Type{}, expr.span);
  if (storage_bytes(value->type) > kMaxTupleBytes) {
    diagnostics_.error(expr.span, "a tuple of {} bytes: {} at most", storage_bytes(value->type), kMaxTupleBytes);
    return unknown(expr.span);
  }
  value->args = std::move(elements);
  return value;
}

Lowering::ExprPtr Lowering::lower_sizeof(const ast::Sizeof& expr) {
  Type type;
  if (expr.type) {
    if (!resolve_type(*expr.type, type)) return unknown(expr.span);
  } else {
    const auto* name = ast::try_as<ast::Identifier>(expr.operand.get());
    auto known = name == nullptr ? std::end(kNamedTypes) : std::ranges::find(kNamedTypes, name->name, &NamedType::name);
    if (known != std::end(kNamedTypes)) {
      type = Type::integer(known->size, known->is_signed);
    } else {
      type = lower(*expr.operand)->type;
    }
  }
  if (type.is_unknown()) return unknown(expr.span);
  uint32_t size = type.is_int() || type.is_string() || type.kind == Type::Kind::kBuffer ? type.size : storage_bytes(type);
  return number(size, Type::literal(), expr.span);
}

}  // namespace spile::lang
