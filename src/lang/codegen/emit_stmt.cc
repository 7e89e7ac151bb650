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
      slots_[variable] = frame_.allocate(storage_bytes(clause_.variables[variable].type));
  }
}

void Emitter::statements(const typed::Block& block) {
  for (const typed::Stmt& stmt : block.statements) {
    if (!code_.is_reachable() || is_too_long()) return;  // after exit(), return, break, continue
    statement(stmt);
  }
}

void Emitter::block(const typed::Block& block) {
  FrameScope scope(frame_);
  declare(block);
  statements(block);
}

void Emitter::block_value(const Expr& expr, const std::function<void(const Expr&)>& last) {
  FrameScope scope(frame_);
  declare(*expr.block);
  statements(*expr.block);
  if (!expr.args.empty()) last(*expr.args[0]);
}

void Emitter::statement(const typed::Stmt& stmt) {
  switch (stmt.kind) {
    case StmtKind::kEval: return effect(*stmt.expr);
    case StmtKind::kDeclare:
      return zero({{}, slots_[stmt.variable]},
                  storage_bytes(clause_.variables[stmt.variable].type));
    case StmtKind::kSetVariable: return set_variable(stmt);
    case StmtKind::kSetMap: return set_map(stmt);
    case StmtKind::kAggregate: return aggregate(stmt);
    case StmtKind::kIf: return if_statement(stmt);
    case StmtKind::kWhile: return while_loop(stmt);
    case StmtKind::kForRange: return for_range(stmt);
    case StmtKind::kUnroll:
      for (int64_t i = 0; i < stmt.first && !is_too_long(); ++i) block(stmt.body);
      return;
    case StmtKind::kBlock: return block(stmt.body);
    case StmtKind::kBreak: return code_.jump(loops_.back().on_break);
    case StmtKind::kContinue: return code_.jump(loops_.back().on_continue);
    case StmtKind::kReturn: return code_.jump(leave_);
  }
}

void Emitter::set_variable(const typed::Stmt& stmt) {
  FrameScope scope(frame_);
  const Type& type = clause_.variables[stmt.variable].type;
  Place place{{}, slots_[stmt.variable]};
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

/// The kernel accepts it where its verifier sees the end; the user engine counts rounds.
void Emitter::while_loop(const typed::Stmt& stmt) {
  Label again = code_.new_label(), done = code_.new_label();
  code_.bind(again);
  branch(*stmt.expr, false, done);
  loops_.push_back({again, done});
  block(stmt.body);
  loops_.pop_back();
  code_.jump(again);
  code_.bind(done);
}

/// One round, with the variable as a copy of the counter: the body may change it.
void Emitter::range_body(const typed::Stmt& stmt, int counter, Label next, Label done) {
  slots_[stmt.variable] = frame_.allocate(8);
  code_.load(8, Reg::r0, Reg::r10, counter);
  code_.store(8, Reg::r10, slots_[stmt.variable], Reg::r0);
  loops_.push_back({next, done});
  declare(stmt.body, stmt.variable);
  statements(stmt.body);
  loops_.pop_back();
  code_.bind(next);
  code_.load(8, Reg::r0, Reg::r10, counter);
  code_.alu_imm(bpf::kAdd, Reg::r0, 1);
  code_.store(8, Reg::r10, counter, Reg::r0);
}

void Emitter::for_range(const typed::Stmt& stmt) {
  if (!stmt.keys.empty()) return for_open_range(stmt);
  if (stmt.first >= stmt.last) return;
  FrameScope scope(frame_);
  Label again = code_.new_label(), next = code_.new_label(), done = code_.new_label();
  int counter = frame_.allocate(8);
  code_.load_imm64(Reg::r0, static_cast<uint64_t>(stmt.first));
  code_.store(8, Reg::r10, counter, Reg::r0);
  code_.bind(again);
  range_body(stmt, counter, next, done);
  code_.load_imm64(Reg::r1, static_cast<uint64_t>(stmt.last));
  code_.jump_if(bpf::kJslt, Reg::r0, Reg::r1, again);
  code_.bind(done);
}

/// The kernel's verifier walks through every round that it cannot rule out, so there must be a last
/// one: a second counter, that starts at a constant, says which.
void Emitter::for_open_range(const typed::Stmt& stmt) {
  FrameScope scope(frame_);
  Label again = code_.new_label(), next = code_.new_label(), done = code_.new_label(),
        go = code_.new_label();
  int counter = frame_.allocate(8), end = frame_.allocate(8), budget = frame_.allocate(8);
  value(*stmt.keys[0]);
  code_.store(8, Reg::r10, counter, Reg::r0);
  value(*stmt.keys[1]);
  code_.store(8, Reg::r10, end, Reg::r0);
  code_.mov_imm(Reg::r2,
                kMaxOpenRounds);  // by a register: older verifiers forget a stored constant
  code_.store(8, Reg::r10, budget, Reg::r2);
  code_.load(8, Reg::r0, Reg::r10, counter);
  code_.bind(again);
  code_.load(8, Reg::r1, Reg::r10, end);
  code_.jump_if(bpf::kJsge, Reg::r0, Reg::r1, done);
  code_.load(8, Reg::r2, Reg::r10, budget);
  code_.jump_if_imm(bpf::kJne, Reg::r2, 0, go);
  bump(bundle::Counter::kLoopCut);
  code_.jump(done);
  code_.bind(go);
  code_.alu_imm(bpf::kSub, Reg::r2, 1);
  code_.store(8, Reg::r10, budget, Reg::r2);
  range_body(stmt, counter, next, done);
  code_.jump(again);
  code_.bind(done);
}

}  // namespace spile::lang::codegen
