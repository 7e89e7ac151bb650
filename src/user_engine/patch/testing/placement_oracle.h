// Checks of what was planned and placed, made apart from how it was found: every edit is applied to
// a copy of the text, one after the other, and after each the text must still run right.
#pragma once

#include <random>
#include <set>
#include <string>
#include <vector>

#include "user_engine/patch/placement.h"

namespace spile::patch {

class PlacementOracle {
 public:
  /// Decodes the whole module once.
  explicit PlacementOracle(const ModuleCode& module);

  /// What is wrong with the plans and placements; empty: nothing. Edits of one level are applied in
  /// an order that `random` chooses.
  std::string check(const std::vector<SitePlan>& sites,
                    const Placements& placements,
                    std::mt19937_64& random) const;

  /// Addresses that a branch, call, return or symbol of the module leads to.
  const std::set<uint64_t>& targets() const { return targets_; }

 private:
  friend class Run;
  const ModuleCode& module_;
  std::set<uint64_t> targets_;
  std::set<uint64_t> padding_;  ///< bytes of nops and int3 that no instruction before falls into
};

}  // namespace spile::patch
