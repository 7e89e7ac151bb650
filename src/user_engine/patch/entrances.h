// Ways into places of the text that the module's code itself has: branches, jump tables,
// references.
#pragma once

#include <optional>
#include <span>
#include <vector>

#include "user_engine/patch/code_map.h"
#include "user_engine/patch/plan.h"

namespace spile::patch {

/// The places of which every way in is wanted.
class Areas {
 public:
  /// [start, end)
  struct Stretch {
    TargetAddr start, end;
  };

  /// `inside`: every reference counts. `sites`: only what reads them as data does; that they are
  /// entered is known. What is both counts as a site. In any order, overlaps allowed.
  Areas(std::vector<Stretch> inside, std::span<const TargetAddr> sites);

  bool is_inside(TargetAddr a) const { return bit(inside_, a); }
  bool is_site(TargetAddr a) const { return bit(sites_, a); }
  bool empty() const { return stretches_.empty(); }
  /// By address, joined where they touch; sites are part of them.
  const std::vector<Stretch>& stretches() const { return stretches_; }
  TargetAddr lowest() const { return TargetAddr(base_); }

 private:
  using Bits = std::vector<uint64_t>;
  bool bit(const Bits& bits, TargetAddr a) const {
    const uint64_t i = a.value - base_;
    return i < span_ && (bits[i >> 6] >> (i & 63) & 1) != 0;
  }

  std::vector<Stretch> stretches_;
  uint64_t base_ = 0, span_ = 0;
  Bits inside_, sites_;
};

/// One way in.
struct Entrance {
  TargetAddr source;  ///< the branch, reference or indirect jump
  TargetAddr target;
  RefusalKind kind = RefusalKind::kDirectBranch;
  bool certain = true;     ///< false: the bytes at `source` could be such an instruction; that they
                           ///< are not is not known
  uint8_t read_bytes = 0;  ///< of `target` on are used as they are, or may be: by an operand, by an
                           ///< instruction of another stream; 0: none, 255: that many or more
};

/// Direct branches, and lea, loads and absolute addresses, that name a byte of the areas.
///
/// First every byte of the text is looked at as if an instruction began there, which finds every
/// such branch and many byte patterns that only look like one; then the few found are decoded in
/// their function.
std::vector<Entrance> find_references(const CodeMap& map,
                                      const Areas& areas,
                                      const PlanRules& rules);

/// What instructions that are decoded from another start do to the areas: those that a way in
/// (`known`, or a code pointer) into the middle of an instruction begins, and the last of a
/// function whose end lies inside it. Each keeps its bytes as they are (`read_bytes`), may branch,
/// and goes on until its stream meets the heads of the row, which it then enters.
///
/// Not seen: streams that another function leads into, outside the areas.
std::vector<Entrance> find_shared_bytes(const CodeMap& map,
                                        const Areas& areas,
                                        std::span<const Entrance> known,
                                        const PlanRules& rules);

/// Targets of jump tables inside the areas, and the functions that have an indirect jump which
/// could not be resolved.
struct TableScan {
  std::vector<Entrance> entrances;
  std::vector<Entrance> unresolved;  ///< source: the jump; target: start of its region
};
TableScan find_table_targets(const CodeMap& map, const Areas& areas);

/// What is known of the indirect jumps of one region.
struct RegionJumps {
  std::vector<TargetAddr> by_table;  ///< through a table of distances that was found: they stay in
                                     ///< the region or go to `parts`
  std::vector<TargetAddr> parts;     ///< where tables lead in other parts of the same function
};
RegionJumps find_region_jumps(const CodeMap& map, const Sweep& code);

}  // namespace spile::patch
