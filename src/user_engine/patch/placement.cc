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

#include "user_engine/patch/placer.h"

namespace spile::patch {

Placements Placer::run() {
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

Placer::Maybe Placer::place(const SitePlan& plan) {
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

Placer::Mark Placer::mark() const {
  return {maker_.mark(), evicted_.size(), settled_.size(), moved_areas_.size()};
}
void Placer::roll_back(const Mark& mark) {
  maker_.roll_back(mark.made);
  evicted_.resize(mark.evicted);
  settled_.resize(mark.settled);
  moved_areas_.resize(mark.areas);
}

Refusal Placer::refusal(const SitePlan& plan) {
  const bool crosses_page = plan.site.value % kPageBytes + kPatchBytes > kPageBytes;
  return {
      RefusalKind::kTooShort,
      plan.site,
      {},
      fmt::format("{}, and {}", plan.reason,
                  crosses_page ? "a jump of five would end on the next page, which the program "
                                 "may unmap; none within the page has a free place to lead to"
                               : "every jump that could be made of them leads to addresses that "
                                 "are taken")};
}

Placer::Maybe Placer::pun_to_used_page(const SitePlan& plan) {
  return pun_with(plan, Pages::kInUse);
}
Placer::Maybe Placer::pun(const SitePlan& plan) {
  return pun_with(plan, Pages::kAny);
}

Placer::Maybe Placer::pun_with(const SitePlan& plan, Pages pages) {
  auto jump =
      maker_.jump(plan.site, plan.written, {.pages = pages, .crosses_page = needs_next_page(plan)});
  if (!jump) return std::nullopt;
  const char* how = jump->prefixes == 0 ? "punned jump" : "punned jump behind prefixes";
  return finish({}, std::move(*jump), how, plan.reason);
}

/// Whether the program itself runs from the site into the next page, come what may: then a jump
/// that relies on its bytes needs nothing that the program does not need.
bool Placer::needs_next_page(const SitePlan& plan) {
  const uint64_t left = kPageBytes - plan.site.value % kPageBytes;
  if (left >= kPatchBytes || plan.window.size() < left) return false;
  for (const uint8_t head : plan.heads) {
    if (head >= left) break;
    const auto insn = x86::decode_shape(std::span(plan.window).subspan(head));
    const bool goes_on = insn && (insn->kind == x86::Kind::kPlain || insn->kind == x86::Kind::kNop);
    if (!goes_on) return false;
  }
  return plan.window.size() > left || plan.falls_through;
}

Placement Placer::finish(std::vector<Edit> before, Jump jump, std::string how, std::string why) {
  Placement placement{std::move(before), std::move(jump.relies_on), jump.stone, std::move(how),
                      std::move(why)};
  placement.edits.push_back(std::move(jump.edit));
  return placement;
}

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
