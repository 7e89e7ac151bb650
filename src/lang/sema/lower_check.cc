// Lowering of functions that check something or tell of it: errorf(), assert(), fail(), find() and
// the questions about types.
#include "lang/sema/lower.h"

namespace spile::lang {

using typed::ExprKind;
using typed::StmtKind;

namespace {

typed::Stmt evaluate(typed::ExprPtr expr) {
  typed::Stmt stmt;
  stmt.kind = StmtKind::kEval;
  stmt.span = expr->span;
  stmt.expr = std::move(expr);
  return stmt;
}

}  // namespace

/// errorf(), warnf().
Lowering::ExprPtr Lowering::lower_message(const ast::Call& call, ExprKind kind) {
  ExprPtr value = lower_printf(call, kind);
  if (options_.locate) value->place = options_.locate(call.span.begin, call.span.end);
  return value;
}

/// assert(condition, "text"): tells the text and ends the script where the condition is false.
Lowering::ExprPtr Lowering::lower_assert(const ast::Call& call) {
  ExprPtr condition = lower_condition(*call.arguments[0]);
  std::string message;
  if (!literal_text(*call.arguments[1], "the text of assert()", message) ||
      condition->type.is_unknown())
    return unknown(call.span);
  ExprPtr tell = nothing(ExprKind::kErrorf, call.span);
  tell->text = "%s";
  tell->args.push_back(text(std::move(message), call.span));
  if (options_.locate) tell->place = options_.locate(call.span.begin, call.span.end);
  ExprPtr leave = nothing(ExprKind::kExit, call.span);
  leave->args.push_back(number(1, Type::literal(), call.span));
  typed::Stmt failed;
  failed.kind = StmtKind::kIf;
  failed.span = call.span;
  failed.expr = make(ExprKind::kNot, Type::boolean(), call.span);
  failed.expr->args.push_back(std::move(condition));
  failed.body.statements.push_back(evaluate(std::move(tell)));
  failed.body.statements.push_back(evaluate(std::move(leave)));
  ExprPtr result = nothing(ExprKind::kBlock, call.span);
  result->block = std::make_shared<typed::Block>();
  result->block->statements.push_back(std::move(failed));
  return result;
}

Lowering::ExprPtr Lowering::lower_static_assert(const ast::Call& call) {
  ExprPtr condition = lower_condition(*call.arguments[0]);
  std::string message;
  if (!literal_text(*call.arguments[1], "the text of static_assert()", message) ||
      !check_comptime(*condition))
    return unknown(call.span);
  if (condition->number == 0 && !never_runs_) diagnostics_.error(call.span, "{}", message);
  return nothing_at_all(call.span);
}

/// An error of the script, where it is not in a branch that never runs.
Lowering::ExprPtr Lowering::lower_fail(const ast::Call& call) {
  ExprPtr told = lower_printf(call, ExprKind::kErrorf);
  for (const ExprPtr& argument : told->args) {
    if (!argument->type.is_unknown() && !check_comptime(*argument)) return unknown(call.span);
  }
  if (never_runs_) return nothing_at_all(call.span);
  std::string text = told->text;
  for (const ExprPtr& argument : told->args) {
    const size_t at = text.find('%');
    if (at == std::string::npos) break;
    const size_t end = text.find_first_of("diuxXsoc", at);
    if (end == std::string::npos) break;
    const std::string shown = argument->kind == ExprKind::kText
                                  ? argument->text
                                  : fmt::format("{}", static_cast<int64_t>(argument->number));
    text.replace(at, end + 1 - at, shown);
  }
  diagnostics_.error(call.span, "{}", text);
  return unknown(call.span);
}

Lowering::ExprPtr Lowering::nothing_at_all(Span span) {
  ExprPtr empty = nothing(ExprKind::kBlock, span);
  empty->block = std::make_shared<typed::Block>();
  return empty;
}

/// find(@x, key, $v): has_key(@x, key) && { $v = @x[key]; true }.
Lowering::ExprPtr Lowering::lower_find(const ast::Call& call) {
  const ast::Map* map = map_argument(call, 0);
  if (map == nullptr) return unknown(call.span);
  const auto* variable = ast::try_as<ast::Variable>(call.arguments[2].get());
  if (variable == nullptr) {
    diagnostics_.error(call.arguments[2]->span, "find() puts the value into a variable: {}",
                       "find(@x, key, $value)");
    return unknown(call.span);
  }
  const int index = map_named(*map);
  ExprPtr parts[2] = {make(ExprKind::kHasKey, Type::boolean(), call.span),
                      make(ExprKind::kMapRead, Type{}, call.span)};
  for (ExprPtr& part : parts) {
    std::vector<ExprPtr> given;
    given.push_back(lower(*call.arguments[1]));
    if (has_effects(*given[0])) {
      refuse(call.arguments[1]->span, "find() with a key that changes something");
      return unknown(call.span);
    }
    part->map = index;
    if (!add_key(index, std::move(given), call.span, part->args)) return unknown(call.span);
  }
  if (!check_readable(index, call.span)) return unknown(call.span);
  const typed::Map& known = maps_.maps[index].map;
  if (known.role != bundle::MapRole::kValue) {
    refuse(call.span, fmt::format("find() in a map of {}", describe(known.role)));
    return unknown(call.span);
  }
  parts[1]->type = known.value;
  int target = find_variable(variable->name);
  if (target < 0) target = declare_variable(variable->name, *declaring_);
  ExprPtr found = make(ExprKind::kBlock, Type::boolean(), call.span);
  found->block = std::make_shared<typed::Block>();
  assign_variable(target, std::move(parts[1]), call.span, *found->block);
  found->args.push_back(number(1, Type::boolean(), call.span));
  ExprPtr both = make(ExprKind::kAnd, Type::boolean(), call.span);
  both->args.push_back(std::move(parts[0]));
  both->args.push_back(std::move(found));
  return both;
}

namespace {

std::string_view base_name(const Type& type) {
  switch (type.kind) {
    case Type::Kind::kInt: return type.is_bool ? "bool" : type.is_enum() ? "enum" : "int";
    case Type::Kind::kString: return "string";
    case Type::Kind::kBuffer: return "buffer";
    case Type::Kind::kPointer: return "pointer";
    case Type::Kind::kTuple: return type.names.empty() ? "tuple" : "record";
    case Type::Kind::kStruct: return "struct";
    case Type::Kind::kArray: return "array";
    case Type::Kind::kObject: return base_name(type.fields[0]);
    case Type::Kind::kNone: return "none";
    default: return "other";
  }
}

}  // namespace

/// typeinfo(x), typeinfo(struct X): (0, what sort of type, its name), before the script runs. The
/// number is BTF's in bpftrace.
Lowering::ExprPtr Lowering::lower_typeinfo(const ast::Call& call) {
  Type type;
  if (const auto* given = ast::try_as<ast::TypeArgument>(call.arguments[0].get())) {
    if (!resolve_type(given->type, type)) return unknown(call.span);
  } else {
    type = lower(*call.arguments[0])->type;
  }
  if (type.is_unknown()) return unknown(call.span);
  std::vector<ExprPtr> parts;
  parts.push_back(number(0, Type::literal(), call.span));
  parts.push_back(text(std::string(base_name(type)), call.span));
  parts.push_back(text(to_string(type), call.span));
  std::vector<Type> types;
  for (const ExprPtr& part : parts) types.push_back(widened(part->type));
  ExprPtr result = make(ExprKind::kTuple, Type::tuple(std::move(types)), call.span);
  result->type.names = {"btf_id", "base_type", "full_type"};
  result->args = std::move(parts);
  return result;
}

/// is_str(x) and the like: known before the script runs.
Lowering::ExprPtr Lowering::lower_type_question(const ast::Call& call) {
  const ast::Expr& asked = *call.arguments[0];
  ExprPtr value = lower(asked);
  const Type& type = value->type;
  if (type.is_unknown()) return unknown(call.span);
  bool answer = false;
  if (call.name == "is_str") answer = type.is_string();
  if (call.name == "is_ptr") answer = type.is_pointer();
  if (call.name == "is_integer") answer = type.is_int() && !type.is_bool;
  if (call.name == "is_unsigned_integer")
    answer = type.is_int() && !type.is_bool && !type.is_signed;
  if (call.name == "is_array") {
    const bool is_copy = type.is_object() && type.fields[0].kind == Type::Kind::kArray;
    answer = type.kind == Type::Kind::kArray || is_copy;
  }
  if (call.name == "is_literal") {
    answer = asked.kind == ast::ExprKind::kInteger || asked.kind == ast::ExprKind::kString ||
             asked.kind == ast::ExprKind::kBool;
  }
  return number(answer, Type::boolean(), call.span);
}

}  // namespace spile::lang
