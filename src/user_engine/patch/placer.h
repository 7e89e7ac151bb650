// One placing of a module's short sites: the ways of placement.cc, what they share, how they are
// taken back.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "user_engine/patch/hosts.h"
#include "user_engine/patch/jump_maker.h"
#include "user_engine/patch/ledger.h"
#include "user_engine/patch/placement.h"
#include "user_engine/patch/window.h"

namespace spile::patch {

using Pages = StoneSpace::Pages;

/// What a two-byte jump reaches, from behind itself.
inline constexpr uint64_t kHopBack = 128, kHopAhead = 127, kHopBytes = 2;
/// Around a site: all that hops and evictions look at.
inline constexpr uint64_t kSurroundings = 256;

/// What is known about the code around short sites.
struct Ground {
  Ground(const ModuleCode& module, std::span<const SitePlan* const> sites, const PlanRules& with)
      : map(module),
        rules(with),
        ways(map, surroundings(sites), rules),
        sweeps(map),
        scene{map, ways, sweeps, rules},
        padding(scene) {}

  static std::vector<Areas::Stretch> surroundings(std::span<const SitePlan* const> sites) {
    std::vector<Areas::Stretch> stretches;
    for (const SitePlan* plan : sites) {
      if (plan->mechanism != Mechanism::kShort) continue;
      const TargetAddr from = plan->site - std::min(kSurroundings, plan->site.value);
      stretches.push_back({from, plan->site + kSurroundings});
    }
    return stretches;
  }

  CodeMap map;
  PlanRules rules;
  WaysIn ways;
  Sweeps sweeps;
  Scene scene;
  Padding padding;
};

class Placer {
 public:
  Placer(Ground& ground, std::span<const SitePlan* const> sites, StoneSpace& space)
      : sites_(sites),
        ways_(ground.ways),
        sweeps_(ground.sweeps),
        scene_(ground.scene),
        padding_(ground.padding),
        ledger_(ground.map, sites),
        maker_(ledger_, space, ground.rules) {}

  Placements run();

 private:
  using Maybe = std::optional<Placement>;

  Maybe place(const SitePlan& plan);

  struct Mark {
    JumpMaker::Mark made;
    size_t evicted, settled, areas;
  };
  Mark mark() const;
  void roll_back(const Mark& mark);
  static Refusal refusal(const SitePlan& plan);

  // ---- at the site itself: placement.cc

  Maybe pun_to_used_page(const SitePlan& plan);
  Maybe pun(const SitePlan& plan);
  Maybe pun_with(const SitePlan& plan, Pages pages);
  static bool needs_next_page(const SitePlan& plan);
  static Placement finish(std::vector<Edit> before, Jump jump, std::string how, std::string why);

  // ---- hops: hops.cc

  /// Where a hop from the site may lead.
  struct Reach {
    TargetAddr first, last;
    uint8_t level = 0;
    bool by_next_byte = false;  ///< the site has one byte: the next is the distance as it is
  };

  std::optional<Reach> reach_of(const SitePlan& plan) const;
  std::optional<Reach> reach_by(TargetAddr site, uint8_t distance, uint8_t level) const;
  std::vector<HostArea> host_areas(const Reach& reach);
  void add_unused_bytes(const Reach& reach, std::vector<HostArea>& areas) const;
  Maybe hop_to_full_jump(const SitePlan& plan);
  Maybe hop_to_punned_jump(const SitePlan& plan);
  Maybe hop(const SitePlan& plan, size_t least, size_t most);
  Maybe hop_into(
      const SitePlan& plan, const Reach& reach, const HostArea& area, size_t least, size_t most);
  size_t room_at(TargetAddr at, TargetAddr end) const;
  Maybe hop_to(const SitePlan& plan, const Reach& reach, TargetAddr at, size_t room, uint8_t level);
  Maybe finish_hop(const SitePlan& plan, const Reach& reach, Jump host, std::string how);

  // ---- moving other instructions away: evictions.cc

  std::optional<Window> evictable(TargetAddr at, size_t least);
  bool is_dead_nop(TargetAddr at);
  void evict(Window window, Jump jump, TargetAddr for_site);
  Maybe hop_after_evicting(const SitePlan& plan);
  Maybe hop_behind(const SitePlan& plan, const Reach& reach, TargetAddr victim, size_t least);
  Maybe evict_next(const SitePlan& plan);

  struct Pair {
    Jump next;
    Placement placement;
  };
  std::optional<Pair> jump_over(const SitePlan& plan, TargetAddr next);
  std::optional<Pair> hop_by_prefix(const SitePlan& plan, TargetAddr next);

  std::span<const SitePlan* const> sites_;
  const WaysIn& ways_;
  Sweeps& sweeps_;
  const Scene& scene_;
  Padding& padding_;
  Ledger ledger_;
  JumpMaker maker_;
  std::vector<Evicted> evicted_;
  std::vector<std::pair<size_t, Placement>> settled_;  ///< ordinary sites
  std::vector<HostArea> moved_areas_;                  ///< behind the jumps of evicted instructions
  Placements result_;
};

}  // namespace spile::patch
