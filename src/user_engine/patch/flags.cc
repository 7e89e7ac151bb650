#include <vector>

#include "user_engine/patch/window.h"

namespace spile::patch {
namespace {

using x86::Kind;

/// Follows all paths from a site until every flag has been overwritten or one is read.
class FlagWalk {
 public:
  explicit FlagWalk(Sweeps& sweeps) : sweeps_(sweeps) {}

  bool live_from(TargetAddr site) {
    paths_.push_back({site, x86::kStatusFlags});
    int budget = kBudget;
    while (!paths_.empty()) {
      if (budget-- == 0) return true;
      const Path path = paths_.back();
      paths_.pop_back();
      if (step(path)) return true;
    }
    return false;
  }

 private:
  static constexpr int kBudget = 64;

  struct Path {
    TargetAddr at;
    x86::FlagMask pending;  ///< not overwritten yet
  };

  /// True if a pending flag is read here.
  bool step(Path path) {
    const std::optional<x86::Insn>& insn = sweeps_.insn(path.at);
    if (!insn) return true;
    if (insn->flags_read & path.pending) return true;
    const TargetAddr next = path.at + insn->length;
    const auto pending = static_cast<x86::FlagMask>(path.pending & ~insn->flags_overwritten);
    if (pending == 0) return false;
    switch (insn->kind) {
      case Kind::kCall:
      case Kind::kCallIndirect:
      case Kind::kRet:
      case Kind::kJmpIndirect:
        return true;  // dead by the ABI, but hand-written code need not follow it
      case Kind::kTrap: return false;
      case Kind::kFar:
      case Kind::kBreakpoint: return true;
      case Kind::kJmp: paths_.push_back({insn->branch_target(path.at), pending}); return false;
      case Kind::kSwitch:
      case Kind::kJcc:
      case Kind::kLoop:
      case Kind::kXbegin: paths_.push_back({insn->branch_target(path.at), pending}); break;
      default: break;
    }
    paths_.push_back({next, pending});
    return false;
  }

  Sweeps& sweeps_;
  std::vector<Path> paths_;
};

}  // namespace

bool flags_live_at(Sweeps& sweeps, TargetAddr site) {
  return FlagWalk(sweeps).live_from(site);
}

}  // namespace spile::patch
