// What can be decided about one site by looking at the site.
#pragma once

#include "user_engine/patch/code_map.h"
#include "user_engine/patch/plan.h"

namespace spile::patch {

/// The window at `site` and the rules that need no other code: everything of SitePlan is filled in.
Outcome choose_window(const CodeMap& map, TargetAddr site, const PlanRules& rules);

/// The same for a punned jump: only the first instruction, of at most four bytes, moves, and only
/// its bytes change.
Outcome choose_pun(const CodeMap& map, TargetAddr site, const PlanRules& rules);

/// Whether a status flag that was set before `site` may still be read at or after it. Errs towards
/// true. A call, a return or an indirect jump counts as reading all: the ABI leaves flags undefined
/// there, hand-written code need not.
bool flags_live_at(const CodeMap& map, TargetAddr site);

/// Where a probe on `site` goes: behind the endbr64, if a function begins there with one.
TargetAddr skip_endbr(const CodeMap& map, TargetAddr site);

}  // namespace spile::patch
