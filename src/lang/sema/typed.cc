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
  }
  return "";
}

bool has_effects(const Expr& expr) {
  if (expr.kind >= ExprKind::kModifyVariable) return true;
  return std::ranges::any_of(expr.args, [](const ExprPtr& arg) { return has_effects(*arg); });
}

}  // namespace spile::lang::typed
