// Lowering of loops and of what leaves them.
#include <bit>

#include "lang/sema/lower.h"

namespace spile::lang {

using typed::ExprKind;
using typed::StmtKind;

namespace {

/// Whether anything in a loop's body ends the loop. `is_inner`: a `break` here ends another one.
bool can_leave(const typed::Block& body, bool is_inner) {
  const auto leaves = [&](const typed::Stmt& stmt) {
    if (stmt.kind == StmtKind::kReturn) return true;
    if (stmt.kind == StmtKind::kBreak) return !is_inner;
    const bool is_loop = stmt.kind == StmtKind::kWhile || stmt.kind == StmtKind::kForRange ||
                         stmt.kind == StmtKind::kForMap;
    return can_leave(stmt.body, is_inner || is_loop) || can_leave(stmt.other, is_inner);
  };
  return std::ranges::any_of(body.statements, leaves) ||
         typed::any_expr(body, [&](const typed::Expr& expr) {
           return expr.kind == ExprKind::kExit ||
                  (expr.block != nullptr && can_leave(*expr.block, is_inner));
         });
}

}  // namespace

/// The kernel calls the body of each loop as a function, and has eight levels of calls, with one
/// stack of 512 bytes. False: reported.
bool Lowering::enter_loop(Span span) {
  if (all_loops_ >= kMaxLoopDepth) {
    diagnostics_.error(span, "more than {} loops inside of each other", kMaxLoopDepth);
    return false;
  }
  ++loop_depth_;
  ++all_loops_;
  return true;
}

void Lowering::leave_loop() {
  --loop_depth_;
  --all_loops_;
}

void Lowering::lower_while(const ast::While& stmt, typed::Block& into) {
  typed::Stmt result = statement(StmtKind::kWhile, stmt.span);
  result.expr = lower_condition(*stmt.condition);
  if (!enter_loop(stmt.span)) return;
  result.body = lower_block(stmt.body);
  leave_loop();
  const bool is_always = result.expr->kind == ExprKind::kNumber && result.expr->number != 0;
  if (is_always && !can_leave(result.body, false)) {
    diagnostics_.error(stmt.condition->span, "this loop never ends")
        .with_hint("its condition is always true: leave it by 'break', 'return' or exit()");
  }
  into.statements.push_back(std::move(result));
}

/// Constant bounds are checked here; others are calculated once, when the loop begins.
void Lowering::lower_for_range(const ast::ForRange& stmt, typed::Block& into) {
  typed::Stmt result = statement(StmtKind::kForRange, stmt.span);
  ExprPtr first = lower_number(*stmt.first, "a range");
  ExprPtr last = lower_number(*stmt.last, "a range");
  if (first->kind == ExprKind::kNumber && last->kind == ExprKind::kNumber) {
    result.first = static_cast<int64_t>(first->number);
    result.last = static_cast<int64_t>(last->number);
    if (result.last > result.first &&
        last->number - first->number > static_cast<uint64_t>(kMaxRounds)) {
      diagnostics_.error(stmt.span, "a loop of {} rounds: {} at most", last->number - first->number,
                         kMaxRounds);
    }
  } else {
    result.keys.push_back(std::move(first));
    result.keys.push_back(std::move(last));
  }
  if (!enter_loop(stmt.span)) return;
  scopes_.emplace_back();
  typed::Block* outer = std::exchange(declaring_, &result.body);
  result.variable = declare_variable(stmt.variable, result.body);
  join_variable(result.variable, Type::int64(), stmt.variable_span);
  lower_statements(stmt.body, result.body);
  leave_loop();
  declaring_ = outer;
  scopes_.pop_back();
  into.statements.push_back(std::move(result));
}

/// What a loop over a map, or len(), begins with. False: reported.
bool Lowering::begin_walk(const ast::Map& map, typed::Stmt& loop) {
  loop.map = map_named(map);
  const MapState& state = maps_.maps[loop.map];
  if (!map.keys.empty()) {
    diagnostics_.error(map.span, "a whole map is walked through, without a key: {}", map.name);
    return false;
  }
  if (!state.has_role) {
    diagnostics_.error(map.span, "undefined map: nothing is ever put into {}", map.name);
    return false;
  }
  if (state.map.is_scalar()) {
    diagnostics_.error(map.span, "{} has no keys to walk through", map.name);
    return false;
  }
  if (!is_readable(state.map.role) || state.map.role == bundle::MapRole::kStats) {
    refuse(map.span, fmt::format("a walk through a map of {}", describe(state.map.role)));
    return false;
  }
  loop.first = std::bit_ceil(world_.cpu_count());
  return true;
}

/// for ($kv : @x): $kv is a copy of the key and the value.
void Lowering::lower_for_map(const ast::ForMap& stmt, typed::Block& into) {
  const auto* map = ast::try_as<ast::Map>(stmt.map.get());
  if (map == nullptr) {
    diagnostics_.error(stmt.map->span, "'for' goes over a range or a map")
        .with_hint("for ({} : 0..10) {{ ... }}", stmt.variable);
    return;
  }
  typed::Stmt result = statement(StmtKind::kForMap, stmt.span);
  const bool is_walkable = begin_walk(*map, result);
  if (!enter_loop(stmt.span)) return;
  scopes_.emplace_back();
  typed::Block* outer = std::exchange(declaring_, &result.body);
  result.variable = declare_variable(stmt.variable, result.body);
  const typed::Map& known = maps_.maps[result.map].map;
  const Type value = known.role == bundle::MapRole::kValue ? known.value : type_when_read(known);
  if (is_walkable && !known.key.is_unknown() && !value.is_unknown())
    join_variable(result.variable, Type::tuple({known.key, value}), stmt.variable_span);
  lower_statements(stmt.body, result.body);
  leave_loop();
  declaring_ = outer;
  scopes_.pop_back();
  if (is_walkable) into.statements.push_back(std::move(result));
}

/// len(@x): a loop that counts.
Lowering::ExprPtr Lowering::lower_len(const ast::Call& call) {
  const ast::Map* map = map_argument(call, 0);
  if (map == nullptr) return unknown(call.span);
  typed::Stmt loop = statement(StmtKind::kForMap, call.span);
  if (!begin_walk(*map, loop)) return unknown(call.span);
  if (all_loops_ >= kMaxLoopDepth) return unknown(call.span);
  ExprPtr result = make(ExprKind::kBlock, Type::int64(), call.span);
  result->block = std::make_shared<typed::Block>();
  scopes_.emplace_back();
  const int count = declare_variable("len()", *result->block);  // a name that no script can write
  scopes_.pop_back();
  join_variable(count, Type::int64(), call.span);
  typed::Stmt begin = statement(StmtKind::kDeclare, call.span);
  begin.variable = count;
  result->block->statements.push_back(std::move(begin));
  ExprPtr more = make(ExprKind::kModifyVariable, Type::int64(), call.span);
  more->variable = count;
  more->op = ast::BinaryOp::kAdd;
  more->args.push_back(number(1, Type::literal(), call.span));
  typed::Stmt step = statement(StmtKind::kEval, call.span);
  step.expr = std::move(more);
  loop.body.statements.push_back(std::move(step));
  result->block->statements.push_back(std::move(loop));
  ExprPtr value = make(ExprKind::kVariable, Type::int64(), call.span);
  value->variable = count;
  result->args.push_back(std::move(value));
  return result;
}

void Lowering::lower_unroll(const ast::Unroll& stmt, typed::Block& into) {
  typed::Stmt result = statement(StmtKind::kUnroll, stmt.span);
  if (constant(*stmt.count, "the count of unroll", result.first) &&
      (result.first < 1 || result.first > 100)) {
    diagnostics_.error(stmt.count->span, "unroll takes 1 to 100 rounds, not {}", result.first);
    result.first = 1;
  }
  result.body = lower_block(stmt.body);
  into.statements.push_back(std::move(result));
}

/// Out of the probe. Of a test the value is its result.
void Lowering::lower_return(const ast::Return& leave, typed::Block& into) {
  typed::Stmt stmt = statement(StmtKind::kReturn, leave.span);
  if (leave.value != nullptr && instance_.context.probe == bundle::ProbeKind::kTest) {
    stmt.expr = lower_number(*leave.value, "the result of a test");
  } else if (leave.value != nullptr) {
    typed::Stmt value = statement(StmtKind::kEval, leave.span);
    value.expr = lower(*leave.value);
    into.statements.push_back(std::move(value));
  }
  into.statements.push_back(std::move(stmt));
}

void Lowering::lower_jump(const ast::Stmt& stmt, typed::Block& into) {
  if (const auto* leave = ast::try_as<ast::Return>(&stmt)) {
    const bool is_function =
        expansion_ != nullptr && expansion_->macro->kind == ast::Routine::Kind::kFunction;
    return is_function ? leave_function(*leave, into) : lower_return(*leave, into);
  }
  bool is_break = stmt.kind == ast::StmtKind::kBreak;
  if (loop_depth_ == 0) {
    diagnostics_.error(stmt.span, "'{}' outside of a loop", is_break ? "break" : "continue");
    return;
  }
  into.statements.push_back(
      statement(is_break ? StmtKind::kBreak : StmtKind::kContinue, stmt.span));
}

}  // namespace spile::lang
