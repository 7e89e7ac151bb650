// Statements.
#include <algorithm>

#include "lang/codegen/emitter.h"

namespace spile::lang::codegen {

using typed::ExprKind;
using typed::StmtKind;

namespace {

bool mentions(const typed::Expr& expr, int variable) {
  return any_expr(expr, [&](const typed::Expr& node) { return node.variable == variable; });
}

}  // namespace

void Emitter::declare(const typed::Block& block, int except) {
  for (int variable : block.variables) {
    if (variable != except)
      slots_[variable] = home().allocate(storage_bytes(clause_.variables[variable].type));
  }
}

void Emitter::statements(const typed::Block& block) {
  for (const typed::Stmt& stmt : block.statements) {
    if (!code_.is_reachable() || is_too_long()) return;  // after exit(), return, break, continue
    statement(stmt);
  }
}

void Emitter::block(const typed::Block& block) {
  FrameScope scope(frame_), home_scope(home());
  declare(block);
  statements(block);
}

void Emitter::block_value(const Expr& expr, const std::function<void(const Expr&)>& last) {
  FrameScope scope(frame_), home_scope(home());
  declare(*expr.block);
  const bool is_left = expr.variable >= 0;
  if (is_left) leaves_.emplace_back(expr.variable, code_.new_label());
  statements(*expr.block);
  if (is_left) {
    code_.bind(leaves_.back().second);
    leaves_.pop_back();
  }
  if (!expr.args.empty()) last(*expr.args[0]);
}

void Emitter::statement(const typed::Stmt& stmt) {
  switch (stmt.kind) {
    case StmtKind::kEval: return effect(*stmt.expr);
    case StmtKind::kDeclare:
      return zero(variable(stmt.variable), storage_bytes(clause_.variables[stmt.variable].type));
    case StmtKind::kSetVariable: return set_variable(stmt);
    case StmtKind::kSetMap: return set_map(stmt);
    case StmtKind::kAggregate: return aggregate(stmt);
    case StmtKind::kIf: return if_statement(stmt);
    case StmtKind::kWhile: return while_loop(stmt);
    case StmtKind::kForRange: return for_range(stmt);
    case StmtKind::kForMap: return for_map(stmt);
    case StmtKind::kUnroll:
      for (int64_t i = 0; i < stmt.first && !is_too_long(); ++i) block(stmt.body);
      return;
    case StmtKind::kBlock: return block(stmt.body);
    case StmtKind::kBreak: return code_.jump(loops_.back().on_break);
    case StmtKind::kContinue: return code_.jump(loops_.back().on_continue);
    case StmtKind::kReturn:
      if (stmt.expr != nullptr) {
        value(*stmt.expr);
        store(home_place(*result_slot_), 8, Reg::r0);
      }
      return code_.jump(leave_);
    case StmtKind::kLeave: {
      const auto to = std::ranges::find(leaves_, stmt.variable, &std::pair<int, Label>::first);
      return code_.jump(to->second);
    }
  }
}

void Emitter::set_variable(const typed::Stmt& stmt) {
  FrameScope scope(frame_);
  const Type& type = clause_.variables[stmt.variable].type;
  const Place place = variable(stmt.variable);
  if (type.is_scalar() || !mentions(*stmt.expr, stmt.variable))
    return into(*stmt.expr, place, type, Fill::kPadded);
  if (stmt.expr->kind == ExprKind::kVariable) return;  // $x = $x
  Place aside = materialise(*stmt.expr, type);
  copy(aside, type, place, type, Fill::kPadded);
}

void Emitter::if_statement(const typed::Stmt& stmt) {
  Label otherwise = code_.new_label(), done = code_.new_label();
  branch(*stmt.expr, false, otherwise);
  block(stmt.body);
  if (stmt.other.statements.empty()) return code_.bind(otherwise);
  code_.jump(done);
  code_.bind(otherwise);
  block(stmt.other);
  code_.bind(done);
}

}  // namespace spile::lang::codegen
