#include "user_engine/address_plan.h"

#include <algorithm>
#include <set>

#include "abi/pending.h"
#include "abi/private_stack.h"
#include "user_engine/stone_room.h"

namespace spile::user_engine {

using target::AddressRange;
using target::Target;

namespace {

constexpr uint64_t kReach = uint64_t{1} << 31;
/// Each page of stones, or row of pages, is a mapping in the target.
constexpr size_t kMaxStonePages = 4096;

/// Of code, for the instructions that are moved away beside a short site: more are rare.
constexpr uint64_t kEvictedBytesPerShortSite = 160;

uint64_t round_up(uint64_t value) {
  return (value + kPageBytes - 1) & ~(kPageBytes - 1);
}

/// Keeps a place that was just chosen from being chosen again.
void occupy(std::vector<os::MapEntry>& maps, TargetAddr start, uint64_t size_bytes) {
  os::MapEntry entry;
  entry.start = start;
  entry.end = start + size_bytes;
  auto at = std::ranges::upper_bound(maps, start, {}, &os::MapEntry::start);
  maps.insert(at, entry);
}

class Chooser {
 public:
  Chooser(const Target& target, const bundle::Bundle& bundle) : target_(target), bundle_(bundle) {}

  Result<AddressPlan> run(const std::vector<const PlannedSite*>& sites) {
    SPILE_TRY(maps_, target_.maps());
    SPILE_TRY(rules_, target::gap_rules(target_));
    // Code first: it needs much room in one piece, and stones are scattered over what is free.
    for (const PlannedSite* site : sites) add_to_neighbourhood(*site);
    for (Neighbourhood& n : plan_.neighbourhoods) SPILE_TRY_VOID(place_code(n));
    place_stones(sites);
    // A caller that sees refusals starts anew without those sites.
    if (!plan_.refused.empty()) return std::move(plan_);
    for (const PlannedSite& site : plan_.evicted) add_to_neighbourhood(site);
    for (Neighbourhood& n : plan_.neighbourhoods) {
      if (max_code_bytes(bundle_, n.sites) > n.max_code_bytes) SPILE_TRY_VOID(place_code(n));
    }
    return std::move(plan_);
  }

 private:
  void place_stones(const std::vector<const PlannedSite*>& sites) {
    std::map<const ModuleImage*, std::vector<const PlannedSite*>> by_module;
    for (const PlannedSite* site : sites) by_module[site->image].push_back(site);
    patch::StoneSpace space(stone_room(maps_, rules_), kMaxStonePages);
    for (auto& [image, list] : by_module) {
      bool any = std::ranges::any_of(
          list, [](const PlannedSite* s) { return s->plan.mechanism == patch::Mechanism::kShort; });
      if (any) place_module(*image, list, space);
    }
    for (const auto& range : space.pages()) {
      plan_.stone_pages.push_back({range.start, range.end});
      occupy(maps_, range.start, static_cast<uint64_t>(range.end - range.start));
    }
  }

  void place_module(const ModuleImage& image,
                    std::vector<const PlannedSite*>& list,
                    patch::StoneSpace& space) {
    std::ranges::sort(list, {}, [](const PlannedSite* s) { return s->plan.site; });
    std::vector<const patch::SitePlan*> plans;
    for (const PlannedSite* site : list) plans.push_back(&site->plan);
    auto placements = patch::place_short_sites(image.code(), plans, space);
    for (auto& [i, placement] : placements.placed)
      plan_.placements.emplace(list[i], std::move(placement));
    for (auto& [i, refusal] : placements.refused) plan_.refused.emplace_back(list[i], refusal);
    for (patch::Evicted& evicted : placements.evicted) {
      auto& site = plan_.evicted.emplace_back(PlannedSite{std::move(evicted.plan), &image, {}});
      plan_.placements.emplace(&site, std::move(evicted.placement));
    }
  }

  /// Sites whose modules lie within reach of one region share it: the program and its libraries
  /// usually make two.
  void add_to_neighbourhood(const PlannedSite& site) {
    const target::Module& m = site.image->module();
    AddressRange range{m.start, m.end};
    Neighbourhood* home = nullptr;
    for (Neighbourhood& n : plan_.neighbourhoods) {
      TargetAddr low = range.start, high = range.end;
      for (const AddressRange& other : n.modules) {
        low = std::min(low, other.start);
        high = std::max(high, other.end);
      }
      // Half of the reach is left for the region itself and for finding a gap.
      if (static_cast<uint64_t>(high - low) < kReach / 2) home = &n;
    }
    if (home == nullptr) home = &plan_.neighbourhoods.emplace_back();
    home->sites.push_back(&site);
    bool known = std::ranges::any_of(home->modules,
                                     [&](const AddressRange& r) { return r.start == range.start; });
    if (!known) home->modules.push_back(range);
  }

  /// With room to spare for instructions that will be moved to make room for short sites.
  Result<void> place_code(Neighbourhood& n) {
    auto is_short = [](const PlannedSite* s) {
      return s->plan.mechanism == patch::Mechanism::kShort;
    };
    auto shorts = static_cast<uint64_t>(std::ranges::count_if(n.sites, is_short));
    n.max_code_bytes =
        round_up(max_code_bytes(bundle_, n.sites) + shorts * kEvictedBytesPerShortSite);
    auto gap = target::find_gap(maps_, rules_, n.modules, n.max_code_bytes);
    if (!gap)
      return forward(gap, "find room for {} KiB of code near {}", n.max_code_bytes / 1024,
                     n.sites.front()->image->module().path);
    n.base = *gap;
    occupy(maps_, n.base, n.max_code_bytes);
    return {};
  }

  const Target& target_;
  const bundle::Bundle& bundle_;
  std::vector<os::MapEntry> maps_;
  target::GapRules rules_;
  AddressPlan plan_;
};

}  // namespace

Result<AddressPlan> plan_addresses(const Target& target,
                                   const bundle::Bundle& bundle,
                                   const std::vector<const PlannedSite*>& sites) {
  return Chooser(target, bundle).run(sites);
}

namespace {

/// Of the plan so far, so that it is not chosen again; returns the first code region.
std::vector<AddressRange> occupy_all(const AddressPlan& plan, std::vector<os::MapEntry>& maps) {
  for (const AddressRange& r : plan.stone_pages) occupy(maps, r.start, r.size());
  std::vector<AddressRange> near;
  for (const Neighbourhood& n : plan.neighbourhoods) {
    occupy(maps, n.base, n.max_code_bytes);
    if (near.empty()) near.push_back({n.base, n.base + n.max_code_bytes});
  }
  if (plan.trap_page) occupy(maps, plan.trap_page->start, plan.trap_page->size());
  // Nothing to be near yet: with the program's code, rather than above its stack.
  if (near.empty()) {
    auto code = std::ranges::find_if(
        maps, [](const os::MapEntry& m) { return m.exec && m.path.starts_with('/'); });
    if (code != maps.end()) near.push_back({code->start, code->end});
  }
  return near;
}

}  // namespace

Result<void> place_traps(const Target& target, uint64_t size_bytes, AddressPlan& plan) {
  SPILE_TRY(auto maps, target.maps());
  SPILE_TRY(auto rules, target::gap_rules(target));
  const auto near = occupy_all(plan, maps);
  SPILE_TRY(const TargetAddr base, target::find_gap(maps, rules, near, size_bytes));
  plan.trap_page = AddressRange{base, base + size_bytes};
  return {};
}

Result<void> place_data(const Target& target,
                        uint64_t size_bytes,
                        DataNeighbours wanted,
                        AddressPlan& plan) {
  SPILE_TRY(auto maps, target.maps());
  SPILE_TRY(auto rules, target::gap_rules(target));
  const auto near = occupy_all(plan, maps);
  // The per-thread page lies right below the data region, the pending table right below that, the
  // private stacks a page further down (else the two would become one mapping): so an adopter
  // recognises them.
  const uint64_t pending_bytes = wanted.pending_table ? abi::kPendingTableBytes : 0;
  const uint64_t stacks_bytes = wanted.private_stacks ? abi::kPrivatePoolBytes + kPageBytes : 0;
  SPILE_TRY(auto base, target::find_gap(maps, rules, near,
                                        stacks_bytes + pending_bytes + size_bytes + kPageBytes));
  if (wanted.private_stacks) plan.stacks_base = base;
  if (wanted.pending_table) plan.pending_base = base + stacks_bytes;
  plan.private_base = base + stacks_bytes + pending_bytes;
  plan.data_base = plan.private_base + kPageBytes;
  return {};
}

}  // namespace spile::user_engine
