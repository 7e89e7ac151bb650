// How short sites get their jumps. The tactics are those of E9Patch (Duck, Gao, Roychoudhury:
// Binary Rewriting without Control Flow Recovery, PLDI 2020), chosen for a process: address space
// is plenty and on both sides, mappings are dear, so that a way that shares a page of stones comes
// before one that needs its own.
//
//   1  punned jump, if need be behind prefixes, to a page of stones that is in use
//          e9 d0 | d1 d2 d3 stay               2e e9 | d0 d1 d2 d3 stay
//   2  a hop of two bytes to five bytes of padding with a full jump
//          eb rel8  ->  e9 d0 d1 d2 d3
//   3  as 1 with a page of its own; as 2 with a punned jump in what padding there is
//   4  the next instruction is moved away; its own jump's distance is chosen such that those of its
//      bytes that are part of ours lead to a place that is free
//          e9 | e9 d0 d1 d2                    the second jump's d0..d2 are the first one's d1..d3
//   5  as 2, to bytes behind the jump of instructions that were moved away for it
//
// Sites are taken from the highest address to the lowest: the bytes behind a site, which are part
// of its jump, are then decided.
#include "user_engine/patch/placement.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>

#include "user_engine/patch/hosts.h"
#include "user_engine/patch/jump_maker.h"
#include "user_engine/patch/ledger.h"
#include "user_engine/patch/window.h"

namespace spile::patch {
namespace {

using Pages = StoneSpace::Pages;

/// What a two-byte jump reaches, from behind itself.
constexpr uint64_t kHopBack = 128, kHopAhead = 127, kHopBytes = 2;
/// Around a site: all that hops and evictions look at.
constexpr uint64_t kSurroundings = 256;

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

  Placements run() {
    for (size_t i = sites_.size(); i-- > 0;) {
      if (sites_[i]->mechanism != Mechanism::kShort) continue;
      if (auto placement = place(*sites_[i])) {
        result_.placed.emplace(i, std::move(*placement));
        ledger_.close(i);
      } else {
        result_.refused.emplace(i, refusal(*sites_[i]));
        ledger_.close_refused(i);
      }
    }
    for (auto& [site, placement] : settled_) result_.placed.emplace(site, std::move(placement));
    result_.evicted = std::move(evicted_);
    return std::move(result_);
  }

 private:
  using Maybe = std::optional<Placement>;

  Maybe place(const SitePlan& plan) {
    using Way = Maybe (Placer::*)(const SitePlan&);
    for (const Way way :
         {&Placer::pun_to_used_page, &Placer::hop_to_full_jump, &Placer::pun,
          &Placer::hop_to_punned_jump, &Placer::evict_next, &Placer::hop_after_evicting}) {
      const Mark mark = this->mark();
      if (auto placement = (this->*way)(plan)) return placement;
      roll_back(mark);
    }
    return std::nullopt;
  }

  struct Mark {
    JumpMaker::Mark made;
    size_t evicted, settled, areas;
  };
  Mark mark() const {
    return {maker_.mark(), evicted_.size(), settled_.size(), moved_areas_.size()};
  }
  void roll_back(const Mark& mark) {
    maker_.roll_back(mark.made);
    evicted_.resize(mark.evicted);
    settled_.resize(mark.settled);
    moved_areas_.resize(mark.areas);
  }

  static Refusal refusal(const SitePlan& plan) {
    return {RefusalKind::kTooShort,
            plan.site,
            {},
            fmt::format("{}, and every jump that could be made of them leads to addresses that are "
                        "taken",
                        plan.reason)};
  }

  // ---- at the site itself

  Maybe pun_to_used_page(const SitePlan& plan) { return pun_with(plan, Pages::kInUse); }
  Maybe pun(const SitePlan& plan) { return pun_with(plan, Pages::kAny); }

  Maybe pun_with(const SitePlan& plan, Pages pages) {
    auto jump = maker_.jump(plan.site, plan.written,
                            {.pages = pages, .crosses_page = needs_next_page(plan)});
    if (!jump) return std::nullopt;
    const char* how = jump->prefixes == 0 ? "punned jump" : "punned jump behind prefixes";
    return finish({}, std::move(*jump), how, plan.reason);
  }

  /// Whether the program itself runs from the site into the next page, come what may: then a jump
  /// that relies on its bytes needs nothing that the program does not need.
  static bool needs_next_page(const SitePlan& plan) {
    const uint64_t left = kPageBytes - plan.site.value % kPageBytes;
    if (left >= kPatchBytes || plan.window.size() < left) return false;
    for (const uint8_t head : plan.heads) {
      if (head >= left) break;
      const auto insn = x86::decode_shape(std::span(plan.window).subspan(head));
      const bool goes_on =
          insn && (insn->kind == x86::Kind::kPlain || insn->kind == x86::Kind::kNop);
      if (!goes_on) return false;
    }
    return plan.window.size() > left || plan.falls_through;
  }

  static Placement finish(std::vector<Edit> before, Jump jump, std::string how, std::string why) {
    Placement placement{std::move(before), std::move(jump.relies_on), jump.stone, std::move(how),
                        std::move(why)};
    placement.edits.push_back(std::move(jump.edit));
    return placement;
  }

  // ---- hops

  /// Where a hop from the site may lead.
  struct Reach {
    TargetAddr first, last;
    uint8_t level = 0;
    bool by_next_byte = false;  ///< the site has one byte: the next is the distance as it is
  };

  std::optional<Reach> reach_of(const SitePlan& plan) const {
    if (plan.written == 1) {
      const auto next = ledger_.settled(plan.site + 1);
      return next ? reach_by(plan.site, next->value, next->level) : std::nullopt;
    }
    const TargetAddr behind = plan.site + kHopBytes;
    Reach reach{behind - kHopBack, behind + kHopAhead};
    if (scene_.rules.page_boundary) {
      // The program may unmap any other page while this one stays.
      const TargetAddr page(plan.site.value & ~(kPageBytes - 1));
      reach.first = std::max(reach.first, page);
      reach.last = std::min(reach.last, page + (kPageBytes - 1));
    }
    return reach;
  }

  /// Of a site of one byte, if the next is `distance`.
  std::optional<Reach> reach_by(TargetAddr site, uint8_t distance, uint8_t level) const {
    const TargetAddr only =
        site + kHopBytes +
        static_cast<uint64_t>(static_cast<int64_t>(static_cast<int8_t>(distance)));
    const auto page = [](TargetAddr a) { return a.value / kPageBytes; };
    const bool same_page = page(site) == page(site + 1) && page(site) == page(only);
    if (scene_.rules.page_boundary && !same_page) return std::nullopt;
    return Reach{only, only, level, true};
  }

  std::vector<HostArea> host_areas(const Reach& reach) {
    auto areas = padding_.in(reach.first - kHopBack, reach.last + kHopAhead);
    areas.insert(areas.end(), moved_areas_.begin(), moved_areas_.end());
    add_unused_bytes(reach, areas);
    // The highest first: the sites that are still to come are lower.
    std::ranges::stable_sort(
        areas, [](const HostArea& a, const HostArea& b) { return a.start > b.start; });
    return areas;
  }

  /// Behind the jump of an ordinary site, inside the instruction that the jump ends in.
  void add_unused_bytes(const Reach& reach, std::vector<HostArea>& areas) const {
    auto site = std::lower_bound(sites_.begin(), sites_.end(), reach.first - kMaxWindowBytes,
                                 [](const SitePlan* s, TargetAddr a) { return s->site < a; });
    for (; site != sites_.end() && (*site)->site <= reach.last; ++site) {
      const SitePlan& plan = **site;
      if (plan.mechanism == Mechanism::kShort || plan.window.size() <= kPatchBytes) continue;
      const auto head = std::upper_bound(plan.heads.begin(), plan.heads.end(), kPatchBytes);
      const TargetAddr from = plan.site + kPatchBytes;
      TargetAddr to = head == plan.heads.end() ? plan.window_end() : plan.site + *head;
      if (head != plan.heads.begin() && *std::prev(head) == kPatchBytes)
        continue;  // a head is there
      to = ways_.untouched_to(from, to);
      const auto jump = ledger_.settled(plan.site);
      areas.push_back({from, to, jump ? jump->level : uint8_t{1}});
    }
  }

  Maybe hop_to_full_jump(const SitePlan& plan) { return hop(plan, kPatchBytes, kPatchBytes); }
  Maybe hop_to_punned_jump(const SitePlan& plan) { return hop(plan, 1, kPatchBytes - 1); }

  Maybe hop(const SitePlan& plan, size_t least, size_t most) {
    const auto reach = reach_of(plan);
    if (!reach) return std::nullopt;
    for (const HostArea& area : host_areas(*reach)) {
      if (auto placement = hop_into(plan, *reach, area, least, most)) return placement;
    }
    return std::nullopt;
  }

  Maybe hop_into(
      const SitePlan& plan, const Reach& reach, const HostArea& area, size_t least, size_t most) {
    // From the end: what is left is whole.
    const TargetAddr first = std::max(reach.first, area.start);
    for (TargetAddr at = std::min(reach.last + 1, area.end); at > first;) {
      at = at - 1;
      const size_t room = room_at(at, area.end);
      if (room < least || room > most) continue;
      if (auto placement = hop_to(plan, reach, at, room, area.level)) return placement;
    }
    return std::nullopt;
  }

  /// Bytes at `at` that a jump may be written to, up to five, in one page.
  size_t room_at(TargetAddr at, TargetAddr end) const {
    end = std::min({end, at + kPatchBytes, at + (kPageBytes - at.value % kPageBytes)});
    size_t room = 0;
    while (at + room < end && ledger_.is_spare(at + room)) ++room;
    return room;
  }

  Maybe hop_to(
      const SitePlan& plan, const Reach& reach, TargetAddr at, size_t room, uint8_t level) {
    const Mark mark = this->mark();
    // The byte that is our distance must not change with the jump.
    if (reach.by_next_byte) maker_.lock(plan.site + 1);
    const bool on_own_distance =
        reach.by_next_byte && at <= plan.site + 1 && plan.site + 1 < at + room;
    auto jump = on_own_distance ? std::nullopt : maker_.jump(at, room, {.level = level});
    if (!jump) {
      roll_back(mark);
      return std::nullopt;
    }
    const std::string how =
        fmt::format("hop to a {}jump at {}", room < kPatchBytes ? "punned " : "", at);
    return finish_hop(plan, reach, std::move(*jump), how);
  }

  Maybe finish_hop(const SitePlan& plan, const Reach& reach, Jump host, std::string how) {
    const auto distance = static_cast<uint8_t>(host.edit.at.value - (plan.site + kHopBytes).value);
    Edit hop{plan.site, {plan.before[0]}, {0xeb}};
    if (!reach.by_next_byte) {
      hop.before.push_back(plan.before[1]);
      hop.after.push_back(distance);
    }
    hop.level = std::max<uint8_t>(reach.level, static_cast<uint8_t>(host.edit.level + 1));
    ledger_.add_edit(hop);
    Placement placement{
        {std::move(host.edit)}, std::move(host.relies_on), host.stone, std::move(how), plan.reason};
    if (reach.by_next_byte) placement.relies_on.push_back({plan.site + 1, plan.site + 2});
    placement.edits.push_back(std::move(hop));
    return placement;
  }

  // ---- evicting

  /// A window at `at` of at least `least` bytes, all of them free.
  std::optional<Window> evictable(TargetAddr at, size_t least) {
    Window window(scene_, at);
    if (window.take_full(at)) return std::nullopt;
    if (is_dead_nop(at)) return std::nullopt;
    while (window.plan().window.size() < least) {
      if (!window.plan().falls_through || window.extend(window.plan().window_end())) break;
    }
    const SitePlan& plan = window.plan();
    const TargetAddr end = std::max(plan.window_end(), at + kPatchBytes);
    for (TargetAddr a = at; a < end; a += 1) {
      if (!ledger_.is_free(a)) return std::nullopt;
    }
    return window;
  }

  /// A nop that control does not fall into is padding, or the beginning of data.
  bool is_dead_nop(TargetAddr at) {
    const Sweep& code = sweeps_.around(at);
    const SweptInsn* insn = code.covering(at);
    if (insn == nullptr || insn->shape.kind != x86::Kind::kNop) return false;
    while (insn != code.insns.data() && insn->shape.kind == x86::Kind::kNop) --insn;
    return insn->shape.ends_flow();
  }

  /// Writes down that the window's instructions are moved; `jump` is what is written there.
  void evict(Window window, Jump jump, TargetAddr for_site) {
    SitePlan plan = window.finish();
    // Of what its jump does not need, hosts may use all that nothing enters.
    TargetAddr dead_to = plan.window_end();
    dead_to = ways_.untouched_to(plan.site + 1, dead_to);
    const TargetAddr behind_jump = plan.site + kPatchBytes;
    plan.written = static_cast<uint8_t>(std::max(dead_to, behind_jump) - plan.site);
    ledger_.claim(plan.site, std::max(plan.window_end(), behind_jump));
    moved_areas_.push_back({behind_jump, dead_to, static_cast<uint8_t>(jump.edit.level + 1)});
    const std::string why = fmt::format("moved to make room for the jump at {}", for_site);
    Placement placement = finish({}, std::move(jump), "jump", why);
    evicted_.push_back({std::move(plan), std::move(placement)});
  }

  Maybe hop_after_evicting(const SitePlan& plan) {
    const auto reach = reach_of(plan);
    if (!reach) return std::nullopt;
    for (const size_t least : {2 * kPatchBytes, kPatchBytes + 1}) {
      const TargetAddr from = reach->first - (kMaxWindowBytes - 1);
      for (TargetAddr at = from; at < reach->last;) {
        const Sweep& code = sweeps_.around(at);
        const SweptInsn* insn = code.covering(at);
        const TargetAddr next = insn == nullptr ? at + 1 : code.address(*insn) + insn->shape.length;
        if (insn != nullptr && code.address(*insn) == at) {
          if (auto placement = hop_behind(plan, *reach, at, least)) return placement;
        }
        at = next;
      }
    }
    return std::nullopt;
  }

  /// Moves the instructions at `victim` and hops to a jump behind theirs.
  Maybe hop_behind(const SitePlan& plan, const Reach& reach, TargetAddr victim, size_t least) {
    const TargetAddr first = std::max(reach.first, victim + kPatchBytes);
    if (first > reach.last || first >= victim + kMaxWindowBytes || !ledger_.is_free(victim))
      return std::nullopt;
    const auto behind = static_cast<size_t>(first - victim);
    const size_t wanted = std::max(least, behind + (least - kPatchBytes));
    auto window = evictable(victim, wanted);
    if (!window || window->plan().window.size() < wanted) return std::nullopt;
    const Mark mark = this->mark();
    auto jump = maker_.jump(victim, kPatchBytes, {});
    if (jump) {
      const auto level = static_cast<uint8_t>(jump->edit.level + 1);
      if (ways_.reader_of(victim, window->plan().window_end()) == nullptr) {
        evict(std::move(*window), std::move(*jump), plan.site);
        const TargetAddr end = moved_areas_.back().end;
        if (first < end) {
          if (auto placement = hop_to(plan, reach, first, room_at(first, end), level))
            return placement;
        }
      }
    }
    roll_back(mark);
    return std::nullopt;
  }

  /// The next instruction is moved, or is an ordinary site, and its jump chosen such that ours is
  /// possible.
  Maybe evict_next(const SitePlan& plan) {
    const TargetAddr next = plan.site + plan.written;
    const auto owner = ledger_.owner(next);
    if (owner) {
      const SitePlan& other = *sites_[*owner];
      if (other.site != next || other.mechanism == Mechanism::kShort || !ledger_.is_open(*owner))
        return std::nullopt;
      auto pair = jump_over(plan, next);
      if (!pair) return std::nullopt;
      ledger_.close(*owner);
      settled_.emplace_back(*owner, finish({}, std::move(pair->next), "jump", other.reason));
      return std::move(pair->placement);
    }
    auto window = evictable(next, kPatchBytes);
    if (!window) return std::nullopt;
    auto pair = jump_over(plan, next);
    if (!pair) return std::nullopt;
    evict(std::move(*window), std::move(pair->next), plan.site);
    return std::move(pair->placement);
  }

  struct Pair {
    Jump next;
    Placement placement;
  };

  /// A jump in the five bytes at `next` such that one at the site is possible.
  std::optional<Pair> jump_over(const SitePlan& plan, TargetAddr next) {
    auto pair = maker_.pair(plan.site, plan.written, next);
    if (pair) {
      return Pair{
          std::move(pair->second),
          finish({}, std::move(pair->first), "punned jump over a moved instruction", plan.reason)};
    }
    if (plan.written != 1) return std::nullopt;
    return hop_by_prefix(plan, next);
  }

  /// A prefix of the next instruction's jump is the distance of a hop.
  std::optional<Pair> hop_by_prefix(const SitePlan& plan, TargetAddr next) {
    for (const uint8_t first : JumpMaker::first_bytes()) {
      const auto reach = reach_by(plan.site, first, 0);
      if (!reach) continue;
      for (const HostArea& area : host_areas(*reach)) {
        if (reach->first < area.start || reach->first >= area.end) continue;
        const Mark mark = this->mark();
        auto jump = maker_.jump(next, kPatchBytes, {.first_byte = first});
        if (!jump) continue;
        Reach by_jump = *reach;
        by_jump.level = static_cast<uint8_t>(jump->edit.level + 1);
        auto placement =
            hop_to(plan, by_jump, reach->first, room_at(reach->first, area.end), area.level);
        if (placement) return Pair{std::move(*jump), std::move(*placement)};
        roll_back(mark);
      }
    }
    return std::nullopt;
  }

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

}  // namespace

Placements place_short_sites(const ModuleCode& module,
                             std::span<const SitePlan* const> sites,
                             StoneSpace& space,
                             const PlanRules& rules) {
  const bool any = std::ranges::any_of(
      sites, [](const SitePlan* s) { return s->mechanism == Mechanism::kShort; });
  if (!any) return {};
  Ground ground(module, sites, rules);
  return Placer(ground, sites, space).run();
}

std::vector<std::expected<Placement, Refusal>> place_each_alone(const ModuleCode& module,
                                                                std::span<const SitePlan> sites,
                                                                const StoneSpace& space,
                                                                const PlanRules& rules) {
  std::vector<const SitePlan*> all;
  for (const SitePlan& site : sites) all.push_back(&site);
  Ground ground(module, all, rules);
  std::vector<std::expected<Placement, Refusal>> out;
  for (const SitePlan* const site : all) {
    StoneSpace own = space;
    Placements one = Placer(ground, {&site, 1}, own).run();
    if (one.refused.empty())
      out.emplace_back(std::move(one.placed.at(0)));
    else
      out.emplace_back(std::unexpected(std::move(one.refused.at(0))));
  }
  return out;
}

}  // namespace spile::patch
