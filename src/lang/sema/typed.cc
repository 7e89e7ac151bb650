#include "lang/sema/typed.h"

#include <algorithm>

namespace spile::lang::typed {

std::string_view to_string(Builtin builtin) {
  switch (builtin) {
    case Builtin::kPid: return "pid";
    case Builtin::kTid: return "tid";
    case Builtin::kUid: return "uid";
    case Builtin::kGid: return "gid";
    case Builtin::kNsecs: return "nsecs";
    case Builtin::kBootNsecs: return "nsecs(boot)";
    case Builtin::kElapsed: return "elapsed";
    case Builtin::kCpu: return "cpu";
    case Builtin::kComm: return "comm";
    case Builtin::kProbe: return "probe";
    case Builtin::kFunc: return "func";
    case Builtin::kCurtask: return "curtask";
    case Builtin::kCgroup: return "cgroup";
    case Builtin::kRand: return "rand";
    case Builtin::kNumaNode: return "numaid";
    case Builtin::kJiffies: return "jiffies";
    case Builtin::kChildPid: return "cpid";
  }
  return "";
}

bool any_expr(const Expr& expr, const std::function<bool(const Expr&)>& wanted) {
  if (expr.block != nullptr && any_expr(*expr.block, wanted)) return true;
  return wanted(expr) ||
         std::ranges::any_of(expr.args, [&](const ExprPtr& arg) { return any_expr(*arg, wanted); });
}

bool any_expr(const Block& block, const std::function<bool(const Expr&)>& wanted) {
  return std::ranges::any_of(block.statements, [&](const Stmt& stmt) {
    if (stmt.expr != nullptr && any_expr(*stmt.expr, wanted)) return true;
    if (std::ranges::any_of(stmt.keys, [&](const ExprPtr& key) { return any_expr(*key, wanted); }))
      return true;
    return any_expr(stmt.body, wanted) || any_expr(stmt.other, wanted);
  });
}

namespace {

bool is_loop(const Stmt& stmt, uint64_t rounds) {
  const bool is_open = !stmt.keys.empty();
  const uint64_t count = static_cast<uint64_t>(stmt.last) - static_cast<uint64_t>(stmt.first);
  if (stmt.kind == StmtKind::kForRange)
    return is_open || (stmt.last > stmt.first && count > rounds);
  return stmt.kind == StmtKind::kWhile || stmt.kind == StmtKind::kForMap;
}

}  // namespace

const Stmt* find_loop(const Block& block, uint64_t rounds) {
  const Stmt* found = nullptr;
  for (const Stmt& stmt : block.statements) {
    if (is_loop(stmt, rounds)) return &stmt;
    found = find_loop(stmt.body, rounds);
    if (found == nullptr) found = find_loop(stmt.other, rounds);
    if (found != nullptr) return found;
  }
  // In functions, which are called in expressions.
  any_expr(block, [&](const Expr& expr) {
    if (expr.block != nullptr) found = find_loop(*expr.block, rounds);
    return found != nullptr;
  });
  return found;
}

bool has_effects(const Expr& expr) {
  return any_expr(expr, [](const Expr& node) { return node.kind >= ExprKind::kModifyVariable; });
}

bool has_loops(const Expr& expr) {
  return any_expr(expr, [](const Expr& node) { return node.kind == ExprKind::kAggregateRead; });
}

}  // namespace spile::lang::typed
