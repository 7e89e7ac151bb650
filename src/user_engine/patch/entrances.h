// Ways into windows that the module's code itself has: branches, jump tables, references.
#pragma once

#include <optional>
#include <span>
#include <vector>

#include "user_engine/patch/code_map.h"
#include "user_engine/patch/plan.h"

namespace spile::patch {

/// The bytes of many patches: answers "is this address one of bytes 1..4 of a patch, and of which".
class WindowSet {
 public:
  /// `sites` in any order; their windows may overlap.
  explicit WindowSet(std::span<const TargetAddr> sites);

  bool is_inside(TargetAddr a) const { return bit(inside_, a); }
  bool is_site(TargetAddr a) const { return bit(starts_, a); }
  /// The sites whose bytes 1..4 hold `a`, in order of address.
  std::span<const TargetAddr> sites_around(TargetAddr a) const;
  const std::vector<TargetAddr>& sites() const { return sites_; }
  TargetAddr lowest() const { return TargetAddr(base_); }
  TargetAddr highest() const { return TargetAddr(base_ + span_); }

 private:
  using Bits = std::vector<uint64_t>;
  bool bit(const Bits& bits, TargetAddr a) const {
    const uint64_t i = a.value - base_;
    return i < span_ && (bits[i >> 6] >> (i & 63) & 1) != 0;
  }
  static void set(Bits& bits, uint64_t i) { bits[i >> 6] |= uint64_t{1} << (i & 63); }

  std::vector<TargetAddr> sites_;
  uint64_t base_ = 0, span_ = 0;
  Bits inside_, starts_;
};

/// One way in.
struct Entrance {
  TargetAddr source;  ///< the branch, reference or indirect jump
  TargetAddr target;
  RefusalKind kind = RefusalKind::kDirectBranch;
  bool certain = true;  ///< false: the bytes at `source` could be such an instruction; that they
                        ///< are not is not known
};

/// Direct branches, and lea, loads and absolute addresses, that name a byte inside a window.
///
/// First every byte of the text is looked at as if an instruction began there, which finds every
/// such branch and many byte patterns that only look like one; then the few found are decoded in
/// their function.
std::vector<Entrance> find_references(const CodeMap& map,
                                      const WindowSet& windows,
                                      const PlanRules& rules);

/// Targets of jump tables inside windows, and the functions that have an indirect jump which could
/// not be resolved.
struct TableScan {
  std::vector<Entrance> entrances;
  std::vector<Entrance> unresolved;  ///< source: the jump; target: start of its region
};
TableScan find_table_targets(const CodeMap& map, const WindowSet& windows);

}  // namespace spile::patch
