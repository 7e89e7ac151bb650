// Two streams of instructions in the same bytes.
//
//   f:   66 05 90 90 | 90 | 90 | c3       add $0x9090,%ax; nop; nop; ret
//   f+1:    05 90 90   90   90 | c3       add $0x90909090,%eax; ret        entered by a jump
//
// A jump written over the nops of the first stream is an operand of the second. So the bytes of
// every instruction of another stream stay as they are, and where it meets the row of the first it
// enters it.
#include <algorithm>
#include <set>

#include "user_engine/patch/entrances.h"

namespace spile::patch {
namespace {

/// Of a function: behind them a place may be inside.
constexpr uint64_t kEntryBytes = 4 + kPatchBytes;
/// What streams from the function before are followed into.
constexpr uint64_t kSpillReach = 64;
/// Streams fall into step after a few instructions.
constexpr size_t kMaxStream = 64;

class StreamSearch {
 public:
  StreamSearch(const CodeMap& map, const Areas& areas, const PlanRules& rules)
      : map_(map), areas_(areas), rules_(rules) {}

  std::vector<Entrance> run(std::span<const Entrance> known) {
    for (const Areas::Stretch& s : areas_.stretches()) look_at(s);
    for (const Entrance& e : known) add_way(e);
    // In order of address: regions are decoded once.
    std::ranges::sort(starts_, {}, &Start::at);
    for (const Start& s : starts_) {
      if (!is_head(s.at)) follow({}, s.at, s.certain);
    }
    while (!branched_to_.empty()) {
      const Start s = branched_to_.back();
      branched_to_.pop_back();
      if (!is_head(s.at)) follow({}, s.at, s.certain);
    }
    return std::move(found_);
  }

 private:
  struct Start {
    TargetAddr at;
    bool certain;
  };

  void add_way(const Entrance& e) {
    if (e.read_bytes == 0) starts_.push_back({e.target, e.certain});
  }

  void look_at(const Areas::Stretch& s) {
    for (TargetAddr at = s.start; at < s.end;) {
      const Region region = map_.region_at(at);
      if (region.end <= at) return;
      if (!region.is_gap) {
        if (s.start < region.start + kSpillReach) follow_spills(region.start);
        if (s.end > region.start + kEntryBytes) add_overlaps(region);
      }
      at = region.end;
    }
    if (!rules_.code_pointers) return;
    const auto& pointers = map_.module().code_pointers;
    for (auto it = std::lower_bound(pointers.begin(), pointers.end(), s.start);
         it != pointers.end() && *it < s.end; ++it) {
      starts_.push_back({*it, true});
    }
  }

  void add_overlaps(const Region& region) {
    load(region.start);
    for (const SweptInsn& insn : code_.overlapped) starts_.push_back({code_.address(insn), true});
  }

  /// Of the regions before `start` whose last instruction may reach it.
  void follow_spills(TargetAddr start) {
    for (TargetAddr at = start; at + x86::kMaxInsnBytes > start;) {
      if (!map_.is_text(at - 1)) return;
      const Region before = map_.region_at(at - 1);
      at = before.start;
      if (before.is_gap) {
        const auto bytes = map_.text_of(before);
        if (x86::padding_bytes(bytes) == bytes.size()) return;
        continue;
      }
      const auto cut = find_cut(map_, before);
      if (!cut) continue;
      const TargetAddr source = before.start + cut->offset, end = source + cut->shape.length;
      add(source, before.end, RefusalKind::kSharedBytes, true,
          static_cast<uint8_t>(end - before.end));
      follow(source, end, true);
    }
  }

  /// `last`: the instruction before, if that is of the stream too.
  void follow(std::optional<TargetAddr> last, TargetAddr at, bool certain) {
    for (size_t n = 0; n < kMaxStream && map_.is_text(at); ++n) {
      if (is_head(at)) {
        if (last) add(*last, at, RefusalKind::kSharedBytes, certain, 0);
        return;
      }
      if (!seen_.insert(at).second) return;
      const auto shape = x86::decode_shape(map_.text_from(at));
      if (!shape) return;
      add(at, at, RefusalKind::kSharedBytes, certain, shape->length);
      if (shape->is_direct_branch()) branch(at, shape->branch_target(at), certain);
      if (shape->ends_flow()) return;
      last = at;
      at += shape->length;
    }
  }

  void branch(TargetAddr from, TargetAddr to, bool certain) {
    if (!rules_.direct_branches || !(areas_.is_inside(to) || areas_.is_site(to))) return;
    add(from, to, RefusalKind::kDirectBranch, certain, 0);
    branched_to_.push_back({to, certain});
  }

  void add(TargetAddr source, TargetAddr target, RefusalKind kind, bool certain, uint8_t bytes) {
    found_.push_back({source, target, kind, certain, bytes});
  }

  /// Of the row from the start of its region.
  bool is_head(TargetAddr at) {
    load(at);
    const SweptInsn* insn = code_.covering(at);
    return insn != nullptr && code_.address(*insn) == at;
  }

  void load(TargetAddr at) {
    if (at >= code_.region.start && at < code_.region.end) return;
    code_ = sweep(map_, map_.region_at(at));
  }

  const CodeMap& map_;
  const Areas& areas_;
  const PlanRules& rules_;
  Sweep code_;
  std::set<TargetAddr> seen_;
  std::vector<Start> starts_, branched_to_;
  std::vector<Entrance> found_;
};

}  // namespace

std::vector<Entrance> find_shared_bytes(const CodeMap& map,
                                        const Areas& areas,
                                        std::span<const Entrance> known,
                                        const PlanRules& rules) {
  if (areas.empty()) return {};
  return StreamSearch(map, areas, rules).run(known);
}

}  // namespace spile::patch
