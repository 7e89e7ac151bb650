// Lowering of statements, scopes and variables.
#include <algorithm>
#include <utility>

#include "lang/sema/lower.h"

namespace spile::lang {

using typed::ExprKind;
using typed::StmtKind;

typed::Stmt statement(StmtKind kind, Span span) {
  typed::Stmt stmt;
  stmt.kind = kind;
  stmt.span = span;
  return stmt;
}

namespace {

typed::Stmt evaluate(typed::ExprPtr expr, Span span) {
  typed::Stmt stmt = statement(StmtKind::kEval, span);
  stmt.expr = std::move(expr);
  return stmt;
}

/// Runs `restore` at the end of a scope.
template <typename F>
struct AtExit {
  F restore;
  ~AtExit() { restore(); }
};
template <typename F>
AtExit(F) -> AtExit<F>;

}  // namespace

typed::Clause Lowering::run() {
  next_variable_ = 0;
  typed::Clause clause;
  clause.span = instance_.clause->span;
  clause.context = instance_.context;
  clause.probes = instance_.probes;
  scopes_.emplace_back();
  declaring_ = &clause.body;
  declare_hoisted(clause.body);
  if (instance_.clause->predicate != nullptr) {
    scopes_.emplace_back();
    declaring_ = &clause.body;
    typed::Stmt guard = statement(StmtKind::kIf, instance_.clause->predicate->span);
    guard.expr = lower_condition(*instance_.clause->predicate);
    scopes_.pop_back();
    guard.body = lower_block(instance_.clause->body);
    clause.body.statements.push_back(std::move(guard));
  } else if (instance_.hoisted.empty()) {
    clause.body = lower_block(instance_.clause->body);
  } else {
    typed::Stmt whole = statement(StmtKind::kBlock, instance_.clause->body.span);
    whole.body = lower_block(instance_.clause->body);
    clause.body.statements.push_back(std::move(whole));
  }
  clause.variables = instance_.variables;
  return clause;
}

typed::Block Lowering::lower_block(const ast::Block& block) {
  typed::Block result;
  scopes_.emplace_back();
  lower_statements(block, result);
  scopes_.pop_back();
  return result;
}

void Lowering::lower_statements(const ast::Block& block, typed::Block& into) {
  typed::Block* outer = std::exchange(declaring_, &into);
  for (const ast::StmtPtr& stmt : block.statements) lower_statement(*stmt, into);
  declaring_ = outer;
}

void Lowering::lower_statement(const ast::Stmt& stmt, typed::Block& into) {
  switch (stmt.kind) {
    case ast::StmtKind::kExpr:
      return into.statements.push_back(
          evaluate(lower(*ast::as<ast::ExprStmt>(stmt).expr), stmt.span));
    case ast::StmtKind::kAssign: return lower_assign(ast::as<ast::Assign>(stmt), into);
    case ast::StmtKind::kDiscard:
      return into.statements.push_back(
          evaluate(lower(*ast::as<ast::Discard>(stmt).value), stmt.span));
    case ast::StmtKind::kLet: return lower_let(ast::as<ast::Let>(stmt), into);
    case ast::StmtKind::kIf: return lower_if(ast::as<ast::If>(stmt), into);
    case ast::StmtKind::kWhile: return lower_while(ast::as<ast::While>(stmt), into);
    case ast::StmtKind::kForRange: return lower_for_range(ast::as<ast::ForRange>(stmt), into);
    case ast::StmtKind::kForMap: return lower_for_map(ast::as<ast::ForMap>(stmt), into);
    case ast::StmtKind::kUnroll: return lower_unroll(ast::as<ast::Unroll>(stmt), into);
    case ast::StmtKind::kBreak:
    case ast::StmtKind::kContinue:
    case ast::StmtKind::kReturn: return lower_jump(stmt, into);
    case ast::StmtKind::kImport: return check_import(ast::as<ast::ImportStmt>(stmt));
    case ast::StmtKind::kBlock: {
      typed::Stmt block = statement(StmtKind::kBlock, stmt.span);
      block.body = lower_block(ast::as<ast::BlockStmt>(stmt).block);
      into.statements.push_back(std::move(block));
    }
  }
}

/// Inside of a block only what is there without it.
void Lowering::check_import(const ast::ImportStmt& stmt) {
  if (is_standard_module(stmt.path)) return;
  diagnostics_.error(stmt.span, "import: there is no module '{}'", stmt.path)
      .with_hint("inside of a block: stdlib/NAME; files are imported before the probes");
}

// ---- control flow
// -------------------------------------------------------------------------------------------------------

/// A condition that is known before the script runs.
std::optional<bool> Lowering::decided(const typed::Expr& condition) {
  if (condition.kind != ExprKind::kNumber || condition.type.is_unknown()) return std::nullopt;
  return condition.number != 0;
}

/// What never runs is checked like anything else, but fail() in it says nothing.
typed::Block Lowering::lower_side(const ast::Block& block, bool may_run) {
  const bool outer = std::exchange(never_runs_, never_runs_ || !may_run);
  typed::Block result = lower_block(block);
  never_runs_ = outer;
  return result;
}

bool Lowering::check_comptime(const typed::Expr& value) {
  if (value.kind == ExprKind::kNumber && !value.type.is_unknown()) return true;
  if (value.kind == ExprKind::kText) return true;
  if (!value.type.is_unknown())
    diagnostics_.error(value.span, "comptime: this is not known before the script runs");
  return false;
}

Lowering::ExprPtr Lowering::lower_condition(const ast::Expr& expr) {
  return lower_number(expr, "a condition");
}

void Lowering::lower_if(const ast::If& stmt, typed::Block& into) {
  typed::Stmt result = statement(StmtKind::kIf, stmt.span);
  result.expr = lower_condition(*stmt.condition);
  const auto known = decided(*result.expr);
  if (stmt.is_comptime) {
    if (!check_comptime(*result.expr)) return;
    typed::Stmt chosen = statement(StmtKind::kBlock, stmt.span);
    if (*known) chosen.body = lower_block(stmt.then_block);
    if (!*known && stmt.else_block) chosen.body = lower_block(*stmt.else_block);
    return into.statements.push_back(std::move(chosen));
  }
  result.body = lower_side(stmt.then_block, !known || *known);
  if (stmt.else_block) result.other = lower_side(*stmt.else_block, !known || !*known);
  into.statements.push_back(std::move(result));
}

// ---- variables
// ----------------------------------------------------------------------------------------------------------

int Lowering::find_variable(const std::string& name) const {
  for (auto scope = scopes_.rbegin(); scope != scopes_.rend(); ++scope) {
    auto found = scope->find(name);
    if (found != scope->end()) return found->second;
  }
  return -1;
}

int Lowering::declare_variable(const std::string& name, typed::Block& block) {
  if (next_variable_ == instance_.variables.size()) {
    instance_.variables.push_back({name, Type{}});
    instance_.is_declared.push_back(false);
  }
  int variable = static_cast<int>(next_variable_++);
  scopes_.back()[name] = variable;
  if (expansion_ == nullptr) seen_variables_.insert(name);
  block.variables.push_back(variable);
  return variable;
}

/// Scripts written before variables had a block use them behind it: the next round declares them
/// for the whole clause.
bool Lowering::hoist(const std::string& name, Span span) {
  if (expansion_ != nullptr || !seen_variables_.contains(name)) return false;
  instance_.hoisted.insert(name);
  instance_.variables.clear();
  instance_.is_declared.clear();
  maps_.changed = true;
  diagnostics_.error(span, "undefined variable {}", name);  // of this round, which nobody reads
  return true;
}

void Lowering::declare_hoisted(typed::Block& block) {
  for (const std::string& name : instance_.hoisted) {
    typed::Stmt stmt = statement(StmtKind::kDeclare, instance_.clause->span);
    stmt.variable = declare_variable(name, block);
    block.statements.push_back(std::move(stmt));
  }
}

void Lowering::report_undefined(const std::string& name, Span span) {
  if (hoist(name, span)) return;
  Diagnostic& diagnostic = diagnostics_.error(span, "undefined variable {}", name);
  std::vector<std::string_view> names;
  for (const auto& scope : scopes_) {
    for (const auto& [known, variable] : scope) names.push_back(known);
  }
  std::string_view near = nearest(name, names);
  if (!near.empty()) diagnostic.with_hint("did you mean {}?", near);
}

void Lowering::join_variable(int variable, const Type& type, Span span) {
  typed::Variable& known = instance_.variables[variable];
  Type before = known.type;
  switch (join(known.type, type.is_int() ? type : widened(type))) {
    case Join::kSame: return;
    case Join::kWidened: maps_.changed = true; return;
    case Join::kMismatch: break;
  }
  known.type = before;
  diagnostics_.error(span, "{} holds {} elsewhere, it cannot hold {} as well", known.name,
                     to_string(before), to_string(type));
}

namespace {

/// A place that is declared as that type has room for the other.
bool can_hold(const Type& declared, const Type& given) {
  if (declared.is_number() || given.is_number()) return declared.is_number() && given.is_number();
  Type joined = declared;
  return join(joined, given) != Join::kMismatch &&
         storage_bytes(joined) == storage_bytes(declared) && joined.size == declared.size;
}

}  // namespace

void Lowering::assign_variable(int variable, ExprPtr value, Span span, typed::Block& into) {
  if (value->type.is_none()) {
    diagnostics_.error(value->span, "this has no value to assign");
    return;
  }
  if (instance_.is_declared[variable] && !value->type.is_unknown()) {
    const typed::Variable& declared = instance_.variables[variable];
    if (declared.type.is_object() && !as_value(value)) return;
    if (!can_hold(declared.type, value->type)) {
      Diagnostic& diagnostic =
          diagnostics_.error(span, "{} is declared as {}, it cannot hold {}", declared.name,
                             to_string(declared.type), to_string(value->type));
      if (declared.type.is_string() && value->type.is_string())
        diagnostic.with_hint("({})... is its first bytes", to_string(declared.type));
      return;
    }
    if (declared.type.is_number()) value = truncate(std::move(value), declared.type, span);
  } else {
    join_variable(variable, value->type, span);
  }
  typed::Stmt stmt = statement(StmtKind::kSetVariable, span);
  stmt.variable = variable;
  stmt.expr = std::move(value);
  into.statements.push_back(std::move(stmt));
}

void Lowering::lower_let(const ast::Let& let, typed::Block& into) {
  Type type;
  bool has_type = let.type && resolve_type(*let.type, type);
  ExprPtr value = let.value == nullptr ? nullptr : lower(*let.value);  // before the name exists
  if (find_variable(let.name) >= 0) {
    diagnostics_.error(let.name_span, "{} exists already; a variable cannot hide another",
                       let.name);
  }
  int variable = declare_variable(let.name, into);
  // `string` alone is one of any length.
  const bool is_any_text = has_type && type.is_string() && let.type->suffixes.empty() &&
                           let.type->base == ast::TypeName::Base::kNamed;
  if (is_any_text) {
    join_variable(variable, Type::string(1), let.span);
    if (value != nullptr && !value->type.is_string() && !value->type.is_unknown()) {
      diagnostics_.error(let.span, "{} is declared as string, it cannot hold {}", let.name,
                         to_string(value->type));
      return;
    }
  } else if (has_type) {
    instance_.variables[variable].type = type.is_place() ? types_.object(type) : type;
    instance_.is_declared[variable] = true;
  }
  if (value != nullptr) return assign_variable(variable, std::move(value), let.span, into);
  typed::Stmt stmt = statement(StmtKind::kDeclare, let.span);
  stmt.variable = variable;
  into.statements.push_back(std::move(stmt));
}

// ---- assignments
// --------------------------------------------------------------------------------------------------------

void Lowering::lower_assign(const ast::Assign& assign, typed::Block& into) {
  if (const auto* map = ast::try_as<ast::Map>(assign.target.get()))
    return lower_assign_map(assign, *map, into);
  lower_assign_variable(assign, ast::as<ast::Variable>(*assign.target), into);
}

void Lowering::lower_assign_variable(const ast::Assign& assign,
                                     const ast::Variable& target,
                                     typed::Block& into) {
  ExprPtr value = lower(*assign.value);
  if (assign.op) {
    ExprPtr old = lower_variable(target);
    if (old->type.is_unknown()) return;
    int variable = old->variable;
    return assign_variable(variable,
                           arithmetic(*assign.op, std::move(old), std::move(value), assign.span),
                           assign.span, into);
  }
  int variable = find_variable(target.name);
  if (variable < 0) variable = declare_variable(target.name, into);
  assign_variable(variable, std::move(value), assign.span, into);
}

void Lowering::lower_assign_map(const ast::Assign& assign,
                                const ast::Map& target,
                                typed::Block& into) {
  if (lower_aggregate(assign, target, into)) return;
  if (assign.op) {
    ExprPtr operand = lower_number(*assign.value, fmt::format("'{}='", ast::to_string(*assign.op)));
    return into.statements.push_back(evaluate(
        modify_map(target, *assign.op, std::move(operand), typed::Yields::kNothing, assign.span),
        assign.span));
  }
  typed::Stmt stmt = statement(StmtKind::kSetMap, assign.span);
  stmt.expr = lower(*assign.value);
  stmt.map = map_named(target);
  bool has_key = lower_key(target, stmt.map, stmt.keys);
  if (stmt.expr->type.is_none()) {
    diagnostics_.error(assign.value->span, "this has no value to assign");
    return;
  }
  if (!set_role(stmt.map, bundle::MapRole::kValue, assign.span) || !has_key) return;
  if (!as_value(stmt.expr)) return;
  join_value(stmt.map, stmt.expr->type, assign.span);
  into.statements.push_back(std::move(stmt));
}

/// @x = count() and the like. False: the value is something else.
bool Lowering::lower_aggregate(const ast::Assign& assign,
                               const ast::Map& target,
                               typed::Block& into) {
  const auto* call = ast::try_as<ast::Call>(assign.value.get());
  const FunctionEntry* entry = call == nullptr ? nullptr : find_function(call->name);
  if (entry == nullptr || !is_aggregation(entry->function)) return false;
  typed::Stmt stmt = statement(StmtKind::kAggregate, assign.span);
  stmt.map = map_named(target);
  bool has_key = lower_key(target, stmt.map, stmt.keys);
  size_t given = call->arguments.size();
  if (given < entry->min_args || given > entry->max_args) {
    lower_call(*call);  // reports it
    return true;
  }
  if (assign.op) {
    diagnostics_.error(assign.span, "{}() adds by itself: write '=' instead of '{}='", call->name,
                       ast::to_string(*assign.op));
    return true;
  }
  if (!set_role(stmt.map, role_of(entry->function), assign.span)) return true;
  if (given > 0) {
    stmt.expr = lower_number(*call->arguments[0], fmt::format("{}()", call->name));
    if (!stmt.expr->type.is_unknown()) {
      Type type = stmt.expr->type.is_pointer() ? Type::uint64() : stmt.expr->type;
      join_value(stmt.map, type, assign.span);
    }
  } else {
    join_value(stmt.map, Type::uint64(), assign.span);
  }
  int64_t bits = 0;
  if (entry->function == Function::kHist) {
    if (given > 1 && constant(*call->arguments[1], "the second argument of hist()", bits) &&
        (bits < 0 || bits > 5)) {
      diagnostics_.error(call->arguments[1]->span, "hist: 0 to 5 bits, not {}", bits);
      bits = 0;
    }
    typed::Map& map = maps_.maps[stmt.map].map;
    if (map.hist_bits != bits && !maps_.maps[stmt.map].has_bits) {
      map.hist_bits = static_cast<uint32_t>(bits);
    } else if (map.hist_bits != bits) {
      diagnostics_.error(call->span, "hist: {} has {} bits elsewhere", map.name, map.hist_bits);
    }
    maps_.maps[stmt.map].has_bits = true;
  }
  if (entry->function == Function::kLhist) lower_lhist(*call, maps_.maps[stmt.map].map);
  if (entry->function == Function::kTimeSeries) lower_series(*call, maps_.maps[stmt.map].map);
  if (has_key) into.statements.push_back(std::move(stmt));
  return true;
}

void Lowering::lower_lhist(const ast::Call& call, typed::Map& map) {
  int64_t min = 0, max = 0, step = 0;
  bool are_constant = constant(*call.arguments[1], "the minimum of lhist()", min);
  are_constant = constant(*call.arguments[2], "the maximum of lhist()", max) && are_constant;
  are_constant = constant(*call.arguments[3], "the step of lhist()", step) && are_constant;
  if (!are_constant) return;
  if (step <= 0) {
    diagnostics_.error(call.arguments[3]->span, "lhist: the step must be positive");
    return;
  }
  if (max <= min) {
    diagnostics_.error(call.span, "lhist: the maximum must be larger than the minimum");
    return;
  }
  uint64_t range = static_cast<uint64_t>(max) - static_cast<uint64_t>(min);
  if (range / static_cast<uint64_t>(step) > 1000) {
    diagnostics_
        .error(call.span, "lhist: {} buckets, 1000 are the most",
               range / static_cast<uint64_t>(step))
        .with_hint("a larger step");
    return;
  }
  bool is_first = map.lhist_max == map.lhist_min;
  if (!is_first && (map.lhist_min != min || map.lhist_max != max || map.lhist_step != step)) {
    diagnostics_.error(call.span, "lhist: {} has other bounds elsewhere ({}, {}, {})", map.name,
                       map.lhist_min, map.lhist_max, map.lhist_step);
    return;
  }
  map.lhist_min = min;
  map.lhist_max = max;
  map.lhist_step = step;
}

/// tseries(n, interval, how many[, "avg" | "max" | "min" | "sum"]).
void Lowering::lower_series(const ast::Call& call, typed::Map& map) {
  using bundle::SeriesOf;
  constexpr int64_t kMostIntervals = 1000;
  int64_t interval = 0, count = 0;
  bool are_constant = constant(*call.arguments[1], "the interval of tseries()", interval);
  are_constant =
      constant(*call.arguments[2], "how many intervals tseries() keeps", count) && are_constant;
  std::string how = "last";
  if (call.arguments.size() > 3 &&
      !literal_text(*call.arguments[3], "the fourth argument of tseries()", how))
    return;
  if (!are_constant) return;
  if (interval <= 0) {
    diagnostics_.error(call.arguments[1]->span, "tseries: the interval must be positive");
    return;
  }
  if (count < 1 || count > kMostIntervals) {
    diagnostics_.error(call.arguments[2]->span, "tseries: 1 to {} intervals are kept, not {}",
                       kMostIntervals, count);
    return;
  }
  constexpr std::pair<std::string_view, SeriesOf> kWays[] = {{"last", SeriesOf::kLast},
                                                             {"avg", SeriesOf::kAvg},
                                                             {"max", SeriesOf::kMax},
                                                             {"min", SeriesOf::kMin},
                                                             {"sum", SeriesOf::kSum}};
  const auto* way = std::ranges::find(kWays, how, &std::pair<std::string_view, SeriesOf>::first);
  if (way == std::end(kWays) || (how == "last" && call.arguments.size() > 3)) {
    diagnostics_
        .error(call.arguments[3]->span, "tseries: '{}' is no way to make one number of many", how)
        .with_hint("avg, max, min or sum; without one the last number counts");
    return;
  }
  const bool is_first = map.series_count == 0;
  if (!is_first && (map.series_ns != static_cast<uint64_t>(interval) || map.series_count != count ||
                    map.series_of != way->second)) {
    diagnostics_.error(call.span, "tseries: {} has other intervals elsewhere", map.name);
    return;
  }
  map.series_ns = static_cast<uint64_t>(interval);
  map.series_count = static_cast<uint32_t>(count);
  map.series_of = way->second;
  map.real_time_offset_ns = world_.real_time_offset_ns();
}

}  // namespace spile::lang
