// Direct branches of a module that enter given stretches of code elsewhere than at their start.
#pragma once

#include <span>
#include <vector>

#include "user_engine/patch/code_map.h"

namespace spile::patch {

struct BranchInto {
  TargetAddr source, target;
  bool certain = true;  ///< false: in text that does not decode surely, bytes look like a branch
};

/// jmp, jcc, loop, xbegin and call that lead from outside into one of `regions` (by start, not
/// overlapping), but not to its first instruction or the one behind its endbr64. By source.
/// Cost: about one pass over the text; 1 to 2 ns a byte and some microseconds a find.
std::vector<BranchInto> find_branches_into(const CodeMap& map, std::span<const Region> regions);

}  // namespace spile::patch
