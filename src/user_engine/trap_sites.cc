#include "user_engine/trap_sites.h"

#include <algorithm>
#include <map>

#include "user_engine/traps.h"

namespace spile::user_engine {

namespace {

/// Who defines one of these runs code of its own with all signals blocked.
constexpr std::string_view kBlockSignals[] = {"raise",        "abort",          "posix_spawn",
                                              "posix_spawnp", "pthread_create", "__libc_fork"};
constexpr std::string_view kLibraries[] = {"libc.so",  "libc-2.", "libc.musl", "libpthread",
                                           "ld-linux", "ld-musl", "ld-2."};

bool defines_a_c_library(const ModuleImage& image) {
  return std::ranges::any_of(
      kBlockSignals, [&](std::string_view name) { return !image.symbols().find(name).empty(); });
}

/// Bytes that belong to sites.
class Windows {
 public:
  explicit Windows(std::span<const target::AddressRange> taken) {
    for (const target::AddressRange& range : taken) ends_[range.start] = {range.end, false};
  }

  /// False: they are another site's. The same trap again is no other.
  bool take(const patch::SitePlan& trap) {
    auto after = ends_.lower_bound(trap.window_end());
    if (after != ends_.begin()) {
      const auto& [start, owner] = *std::prev(after);
      if (owner.end > trap.site) return owner.is_trap && start == trap.site;
    }
    ends_[trap.site] = {trap.window_end(), true};
    return true;
  }

 private:
  struct Owner {
    TargetAddr end;
    bool is_trap = false;
  };
  std::map<TargetAddr, Owner> ends_;
};

struct Head {
  const PlannedSite* site;
  size_t index;
  const std::string* reason;
};

std::vector<target::AddressRange> windows_of(std::span<const PlannedSite* const> sites,
                                             const ModuleImage* image) {
  std::vector<target::AddressRange> windows;
  for (const PlannedSite* site : sites) {
    if (site->image == image) windows.push_back(bytes_taken(site->plan));
  }
  return windows;
}

}  // namespace

bool is_c_library(std::string_view path) {
  const std::string_view name = path.substr(path.rfind('/') + 1);
  return std::ranges::any_of(kLibraries,
                             [&](std::string_view known) { return name.starts_with(known); });
}

/// First what holds for the module, then what holds for the process and takes longer to find out.
std::optional<std::string> TrapPlanner::why_not_in(const ModuleImage& image) {
  if (image.is_go()) return "Go's runtime handles SIGTRAP itself";
  if (is_c_library(image.module().path) || defines_a_c_library(image))
    return "this is code of the C library (or stands in for it), which runs with all signals "
           "blocked now and then";
  if (!asked_) {
    asked_ = true;
    why_not_ = why_no_traps(*target_);
    auto modules = target_->modules();
    has_c_library_ = modules && std::ranges::any_of(*modules, [](const target::Module& m) {
                       return is_c_library(m.path);
                     });
  }
  if (why_not_) return why_not_;
  if (!has_c_library_)
    return "no C library is seen in the process: it may be part of the program, and runs with all "
           "signals blocked now and then";
  return std::nullopt;
}

patch::Outcome TrapPlanner::decide(const Refused& place,
                                   patch::Outcome trap,
                                   const std::optional<std::string>& why_not) const {
  patch::Refusal refusal = place.refusal;
  if (!trap) return std::unexpected(std::move(refusal));
  if (why_not) {
    if (allowed()) refusal.reason += fmt::format("; nor an int3 (--allow-trap): {}", *why_not);
    return std::unexpected(std::move(refusal));
  }
  if (allowed()) return trap;
  refusal.reason += "; an int3 would do, see --allow-trap";
  return std::unexpected(std::move(refusal));
}

std::vector<patch::Outcome> TrapPlanner::instead(const ModuleImage& image,
                                                 std::span<const Refused> places,
                                                 std::span<const target::AddressRange> taken,
                                                 const std::optional<std::string>& unwatched) {
  if (places.empty()) return {};
  std::vector<TargetAddr> addresses;
  for (const Refused& place : places) addresses.push_back(place.address);
  auto traps = patch::plan_traps(image.code(), addresses);
  const bool any = std::ranges::any_of(traps, [](const auto& t) { return t.has_value(); });
  auto why_not = any ? why_not_in(image) : std::nullopt;
  if (any && !why_not) why_not = unwatched;
  Windows windows(taken);
  std::vector<patch::Outcome> outcomes;
  for (size_t i = 0; i < places.size(); i++) {
    if (traps[i] && !windows.take(*traps[i])) traps[i] = std::unexpected(places[i].refusal);
    outcomes.push_back(decide(places[i], std::move(traps[i]), why_not));
  }
  return outcomes;
}

TrapPlanner::Swapped TrapPlanner::swap(std::span<const RefusedSite> refused,
                                       std::span<const PlannedSite* const> staying,
                                       const std::optional<std::string>& unwatched) {
  Swapped swapped;
  std::map<const ModuleImage*, std::vector<Head>> by_module;
  for (const RefusedSite& r : refused) {
    for (size_t i = 0; i < r.site->actions.size(); i++) {
      if (!r.site->actions[i].empty()) by_module[r.site->image].push_back({r.site, i, &r.reason});
    }
  }
  for (const auto& [image, heads] : by_module) {
    std::vector<Refused> places;
    for (const Head& head : heads) {
      patch::Refusal refusal;
      refusal.address = head.site->plan.site + head.site->plan.probed[head.index].offset;
      refusal.reason = *head.reason;
      places.push_back({refusal.address, refusal});
    }
    // What has failed as an int3 does not get better by trying again.
    auto traps = instead(*image, places, windows_of(staying, image), unwatched);
    for (size_t i = 0; i < heads.size(); i++) {
      const PlannedSite& site = *heads[i].site;
      const auto& actions = site.actions[heads[i].index];
      const bool was_trap = site.plan.mechanism == patch::Mechanism::kTrap;
      if (traps[i] && !was_trap) {
        swapped.traps.push_back({std::move(*traps[i]), image, {actions}});
        continue;
      }
      PlannedSite lost{site.plan, image, {actions}};
      lost.plan.probed = {site.plan.probed[heads[i].index]};
      const bool says_more = !traps[i] && !was_trap;
      swapped.refused.emplace_back(std::move(lost),
                                   says_more ? traps[i].error().reason : *heads[i].reason);
    }
  }
  return swapped;
}

}  // namespace spile::user_engine
