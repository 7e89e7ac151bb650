// All ways into some stretches of a module's text, and questions about them.
//
// Made once for many sites: finding references costs a pass over the whole text.
#pragma once

#include <optional>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "user_engine/patch/code_map.h"
#include "user_engine/patch/entrances.h"
#include "user_engine/patch/plan.h"

namespace spile::patch {

class WaysIn {
 public:
  /// `stretches`: whose bytes will be asked about. A function's start inside them is entered
  /// anyway: who calls it is not looked for. A rule that is off leaves its ways out.
  WaysIn(const CodeMap& map, std::vector<Areas::Stretch> stretches, const PlanRules& rules);

  /// The first address in [from, to) that something enters or refers to: a branch, a table, a
  /// pointer, a symbol. Only for addresses in the stretches.
  std::optional<Entrance> into(TargetAddr from, TargetAddr to) const;
  /// What needs one of the bytes [from, to) as it is: reads it as data, or runs it as part of an
  /// instruction that begins elsewhere.
  const Entrance* reader_of(TargetAddr from, TargetAddr to) const;
  /// Where the part of [from, to) ends that nothing enters or reads.
  TargetAddr untouched_to(TargetAddr from, TargetAddr to) const;
  /// An indirect jump that may lead to any instruction of the function around `at`.
  const Entrance* unresolved(TargetAddr at) const;

 private:
  void add_readers();
  void add_unresolved(std::vector<Entrance> jumps);

  const CodeMap& map_;
  const PlanRules& rules_;
  std::vector<Entrance> entrances_;  ///< by target
  std::vector<Entrance> readers_;    ///< by target, one a byte
  std::vector<Entrance> unresolved_;
  std::unordered_map<uint64_t, size_t> unresolved_regions_;
  std::unordered_map<std::string_view, size_t> unresolved_names_;
};

}  // namespace spile::patch
