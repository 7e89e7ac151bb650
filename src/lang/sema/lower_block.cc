// Lowering of blocks and `if` as values, of macros and of functions of the script.
//
// A macro is lowered anew at each call, as a block of its own: its variables are not the caller's,
// and the caller's are not seen, except through parameters. `$x` stands for a variable, `@x` for a
// map, a bare name for an expression, which is lowered where the macro uses it, but with the names
// of the caller. A function is lowered at each call as well, but its parameters are variables.
#include <algorithm>

#include "lang/sema/lower.h"

namespace spile::lang {

using ast::Routine;
using typed::ExprKind;

namespace {

constexpr int kMaxExpansions = 32;

/// A parameter's sigil says what it takes.
bool takes(const ast::Parameter& parameter, const ast::Expr& argument) {
  switch (parameter.name.empty() ? '\0' : parameter.name[0]) {
    case '$': return argument.kind == ast::ExprKind::kVariable;
    case '@': {
      const auto* map = ast::try_as<ast::Map>(&argument);
      return map != nullptr && map->keys.empty();
    }
    default: return true;
  }
}

bool takes(const Routine& macro, const std::vector<ast::ExprPtr>& arguments) {
  if (macro.parameters.size() != arguments.size()) return false;
  if (macro.kind == Routine::Kind::kFunction) return true;  // it takes values
  for (size_t i = 0; i < arguments.size(); ++i) {
    if (!takes(macro.parameters[i], *arguments[i])) return false;
  }
  return true;
}

std::string signature(const Routine& macro) {
  std::string text = macro.name + "(";
  for (const ast::Parameter& parameter : macro.parameters)
    text += (text.ends_with('(') ? "" : ", ") + parameter.name;
  return text + ")";
}

}  // namespace

// ---- blocks

namespace {

/// The last statement is a value: an expression without ';', or an `if` both sides of which are.
bool has_value(const ast::Block& block) {
  if (block.statements.empty()) return false;
  const ast::Stmt* last = block.statements.back().get();
  if (const auto* expr = ast::try_as<ast::ExprStmt>(last)) return !expr->has_semicolon;
  const auto* choice = ast::try_as<ast::If>(last);
  return choice != nullptr && choice->else_block && has_value(choice->then_block) &&
         has_value(*choice->else_block);
}

}  // namespace

Lowering::ExprPtr Lowering::lower_block_expr(const ast::Block& block, Span span) {
  ExprPtr result = make(ExprKind::kBlock, Type::none(), span);
  result->block = std::make_shared<typed::Block>();
  typed::Block* outer = std::exchange(declaring_, result->block.get());
  scopes_.emplace_back();
  const bool is_value = has_value(block);
  const size_t count = block.statements.size() - (is_value ? 1 : 0);
  for (size_t i = 0; i < count; ++i) lower_statement(*block.statements[i], *result->block);
  if (is_value) {
    const ast::Stmt& last = *block.statements.back();
    const auto* expr = ast::try_as<ast::ExprStmt>(&last);
    result->args.push_back(expr != nullptr ? lower(*expr->expr)
                                           : lower_if_expr(ast::as<ast::If>(last), last.span));
    result->type = result->args[0]->type;
  }
  scopes_.pop_back();
  declaring_ = outer;
  return result;
}

Lowering::ExprPtr Lowering::lower_if_expr(const ast::If& stmt, Span span) {
  ExprPtr condition = lower_condition(*stmt.condition);
  if (stmt.is_comptime) {
    if (!check_comptime(*condition)) return unknown(span);
    if (condition->number != 0) return lower_block_expr(stmt.then_block, span);
    return stmt.else_block ? lower_block_expr(*stmt.else_block, span) : nothing_at_all(span);
  }
  ExprPtr then_value = lower_block_expr(stmt.then_block, span);
  ExprPtr else_value =
      stmt.else_block ? lower_block_expr(*stmt.else_block, span) : nothing(ExprKind::kBlock, span);
  if (!stmt.else_block) else_value->block = std::make_shared<typed::Block>();
  return choose(std::move(condition), std::move(then_value), std::move(else_value), span);
}

/// condition ? then : else, whose types become one.
Lowering::ExprPtr Lowering::choose(ExprPtr condition,
                                   ExprPtr then_value,
                                   ExprPtr else_value,
                                   Span span) {
  Type type = then_value->type;
  if (type.is_none() != else_value->type.is_none() && !type.is_unknown() &&
      !else_value->type.is_unknown()) {
    diagnostics_.error(span, "one side of this 'if' has a value, the other has none")
        .with_hint("as a value: if c {{ 1 }} else {{ 2 }}, without ';' behind the values");
    return unknown(span);
  }
  if (join(type, else_value->type) == Join::kMismatch) {
    diagnostics_.error(span, "one side has {}, the other {}", to_string(then_value->type),
                       to_string(else_value->type));
    return unknown(span);
  }
  type.is_flexible = false;
  ExprPtr value = make(ExprKind::kConditional, widened(type), span);
  value->args.push_back(std::move(condition));
  value->args.push_back(std::move(then_value));
  value->args.push_back(std::move(else_value));
  return value;
}

// ---- macros

bool Lowering::is_macro(const std::string& name) const {
  return std::ranges::any_of(routines_,
                             [&](const Routine& routine) { return routine.name == name; });
}

const Routine* Lowering::find_macro(const std::string& name,
                                    const std::vector<ast::ExprPtr>& arguments) const {
  const Routine* best = nullptr;
  for (const Routine& routine : routines_) {
    if (routine.name != name || !takes(routine, arguments)) continue;
    // Of several the one that asks for more: `@m` before a bare name.
    const auto sigils = [](const Routine& macro) {
      return std::ranges::count_if(macro.parameters, [](const ast::Parameter& parameter) {
        return parameter.name.starts_with('$') || parameter.name.starts_with('@');
      });
    };
    if (best == nullptr || sigils(routine) > sigils(*best)) best = &routine;
  }
  return best;
}

Lowering::ExprPtr Lowering::lower_macro(const std::string& name,
                                        const std::vector<ast::ExprPtr>& arguments,
                                        Span span) {
  if (!is_macro(name)) return nullptr;
  const Routine* macro = find_macro(name, arguments);
  if (macro == nullptr) {
    std::string forms;
    for (const Routine& routine : routines_) {
      if (routine.name == name) forms += (forms.empty() ? "" : " or ") + signature(routine);
    }
    diagnostics_.error(span, "macro {}: these arguments fit none of its forms", name)
        .with_hint("{}; $name takes a variable, @name a map", forms);
    return unknown(span);
  }
  if (expansion_ != nullptr && expansion_->depth >= kMaxExpansions) {
    const std::string_view kind = macro->kind == Routine::Kind::kFunction ? "function" : "macro";
    diagnostics_
        .error(span, "{} {} is expanded more than {} levels deep", kind, name, kMaxExpansions)
        .with_hint("a {} cannot use itself", kind);
    return unknown(span);
  }
  return expand(*macro, arguments, span);
}

Lowering::ExprPtr Lowering::expand(const Routine& macro,
                                   const std::vector<ast::ExprPtr>& arguments,
                                   Span span) {
  std::vector<ExprPtr> values;  // of a function: calculated with the caller's names
  if (macro.kind == Routine::Kind::kFunction) {
    for (const ast::ExprPtr& argument : arguments) values.push_back(lower(*argument));
  }
  Expansion expansion;
  expansion.macro = &macro;
  expansion.outer = expansion_;
  expansion.depth = expansion_ == nullptr ? 1 : expansion_->depth + 1;
  std::map<std::string, int> variables;
  for (size_t i = 0; i < arguments.size(); ++i) {
    if (!values.empty()) break;
    const std::string& name = macro.parameters[i].name;
    if (name.starts_with('$')) {
      const auto& variable = ast::as<ast::Variable>(*arguments[i]);
      const int index = find_variable(variable.name);
      if (index < 0) {
        report_undefined(variable.name, variable.span);
        return unknown(span);
      }
      variables[name] = index;
    } else if (name.starts_with('@')) {
      expansion.maps[name] = resolve_map_name(ast::as<ast::Map>(*arguments[i]).name);
    } else {
      expansion.expressions[name] = arguments[i].get();
    }
  }
  Scopes callers = std::exchange(scopes_, Scopes{std::move(variables)});
  expansion.callers_scopes = &callers;
  const int loops = std::exchange(loop_depth_, 0);
  expansion_ = &expansion;
  ExprPtr value;
  if (macro.kind == Routine::Kind::kFunction) {
    // Its parameters are variables of a block of its own; its value is that of the return at its
    // end, cut to the type that is declared.
    value = make(ExprKind::kBlock, Type::none(), span);
    value->block = std::make_shared<typed::Block>();
    expansion.block = value->block.get();
    typed::Block* outer = std::exchange(declaring_, value->block.get());
    for (size_t i = 0; i < values.size(); ++i) {
      const ast::Parameter& parameter = macro.parameters[i];
      const int variable = declare_variable(parameter.name, *value->block);
      Type type;
      const bool is_text = parameter.type && parameter.type->name == "string";
      if (parameter.type && !is_text && resolve_type(*parameter.type, type) && type.is_number()) {
        instance_.variables[static_cast<size_t>(variable)].type = type;
        instance_.is_declared[static_cast<size_t>(variable)] = true;
      }
      assign_variable(variable, std::move(values[i]), span, *value->block);
    }
    const auto& statements = macro.body.statements;
    const auto* end =
        statements.empty() ? nullptr : ast::try_as<ast::Return>(statements.back().get());
    const size_t count = statements.size() - (end != nullptr ? 1 : 0);
    for (size_t i = 0; i < count; ++i) lower_statement(*statements[i], *value->block);
    if (expansion.result >= 0) {
      if (end != nullptr) leave_function(*end, *value->block);
      value->variable = expansion.result;
      const Type& type = instance_.variables[static_cast<size_t>(expansion.result)].type;
      ExprPtr result = make(ExprKind::kVariable, type, span);
      result->variable = expansion.result;
      value->type = type;
      value->args.push_back(std::move(result));
    } else if (end != nullptr && end->value != nullptr) {
      ExprPtr result = lower_result(*end->value);
      value->type = result->type;
      value->args.push_back(std::move(result));
    }
    declaring_ = outer;
  } else {
    value = lower_block_expr(macro.body, span);
  }
  expansion_ = expansion.outer;
  loop_depth_ = loops;
  scopes_ = std::move(callers);
  return value;
}

/// What a function gives, cut to the type that it declares.
Lowering::ExprPtr Lowering::lower_result(const ast::Expr& expr) {
  ExprPtr result = lower(expr);
  const auto& declared = expansion_->macro->return_type;
  Type type;
  const bool is_number = declared && result->type.is_number();
  if (is_number && resolve_type(*declared, type) && type.is_number())
    return truncate(std::move(result), type, expr.span);
  return result;
}

/// A return before the end of a function: its value goes into a variable of the function's block.
void Lowering::leave_function(const ast::Return& leave, typed::Block& into) {
  if (loop_depth_ > 0) return refuse(leave.span, "a return inside of a loop of a function");
  if (expansion_->result < 0)
    expansion_->result = declare_variable("return " + expansion_->macro->name, *expansion_->block);
  if (leave.value != nullptr)
    assign_variable(expansion_->result, lower_result(*leave.value), leave.span, into);
  typed::Stmt stmt;
  stmt.kind = typed::StmtKind::kLeave;
  stmt.span = leave.span;
  stmt.variable = expansion_->result;
  into.statements.push_back(std::move(stmt));
}

/// What the caller wrote, with the caller's names.
Lowering::ExprPtr Lowering::lower_parameter(const ast::Expr& expr) {
  Expansion* inner = expansion_;
  Scopes own = std::exchange(scopes_, *inner->callers_scopes);
  expansion_ = inner->outer;
  ExprPtr value = lower(expr);
  expansion_ = inner;
  scopes_ = std::move(own);
  return value;
}

std::string Lowering::resolve_map_name(const std::string& name) const {
  if (expansion_ == nullptr) return name;
  const auto found = expansion_->maps.find(name);
  return found == expansion_->maps.end() ? name : found->second;
}

}  // namespace spile::lang
