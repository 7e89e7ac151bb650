#include "user_engine/wanted_sites.h"

#include <algorithm>

#include "user_engine/sentries.h"

namespace spile::user_engine {

using engine::SiteReport;

namespace {

bool is_trap(const PlannedSite* site) {
  return site->plan.mechanism == patch::Mechanism::kTrap;
}

}  // namespace

std::vector<const PlannedSite*> WantedSites::wanted() const {
  std::vector<const PlannedSite*> sites;
  for (const PlannedSite& site : plan_->sites) {
    if (!dropped_.contains(&site)) sites.push_back(&site);
  }
  // Nobody need be watched where there is no int3.
  if (std::ranges::none_of(sites, is_trap))
    std::erase_if(sites, [&](const PlannedSite* s) { return s->has_sentry(bundle_, true); });
  // Nor awaited where nothing is set, and nothing will come.
  if (plan_->absent.empty() && std::ranges::all_of(sites, &PlannedSite::only_awaits)) sites.clear();
  return sites;
}

void WantedSites::refuse(const PlannedSite& site, const std::string& reason) {
  if (site.has_sentry(bundle_, false)) leave_unwatched(site, reason);
  if (site.only_awaits()) plan_->unawaited = reason;
  for (SiteReport& report : describe(site, target_.pid(), bundle_)) {
    report.refused = true;
    report.reason = reason;
    refused_.push_back(std::move(report));
  }
  patch::Refusal refusal;
  refusal.kind = patch::RefusalKind::kReserved;
  refusal.address = site.plan.site;
  refusal.reason = fmt::format("a place of it, {}, cannot be patched: {}",
                               site.image->name_of(site.plan.site), reason);
  for (const int returns : returns_at(site)) refuse_returns(returns, refusal);
}

/// Without all of the hidden probes there may be no int3.
void WantedSites::leave_unwatched(const PlannedSite& site, const std::string& reason) {
  refuse_traps(fmt::format("{} of the C library cannot be watched ({})",
                           site.image->name_of(site.plan.site), reason));
}

void WantedSites::refuse_traps(const std::string& reason) {
  if (plan_->unwatched) return;
  plan_->unwatched = reason;
  for (const PlannedSite& other : plan_->sites) {
    if (is_trap(&other) && dropped_.insert(&other).second)
      refuse(other, fmt::format("no jump fits, nor an int3 (--allow-trap): {}", reason));
  }
}

/// A return probe has all of its places or none: else some returns would be told and others not.
void WantedSites::refuse_returns(int returns, const patch::Refusal& refusal) {
  auto reports = plan_->refuse_returns(returns, target_.pid(), refusal);
  refused_.insert(refused_.end(), reports.begin(), reports.end());
  for (const PlannedSite& site : plan_->sites) {
    if (!site.has_actions()) dropped_.insert(&site);
  }
}

/// A head of a blocked window becomes a short site of its own.
void WantedSites::give_up_head(const PlannedSite& site, size_t head) {
  if (site.actions[head].empty()) return;
  auto alone =
      patch::plan_short(site.image->code(), site.plan.site + site.plan.probed[head].offset);
  if (alone) {
    plan_->sites.push_back({std::move(*alone), site.image, {site.actions[head]}});
    return;
  }
  PlannedSite lost{site.plan, site.image, {site.actions[head]}};
  lost.plan.probed = {site.plan.probed[head]};
  refuse(lost, fmt::format("a thread stays inside the instructions to be replaced, and the first "
                           "alone cannot be: {}",
                           alone.error().reason));
}

void WantedSites::give_up(const std::set<const PlannedSite*>& blocked) {
  for (const PlannedSite* site : blocked) {
    dropped_.insert(site);
    if (site->plan.mechanism == patch::Mechanism::kShort) {
      refuse(*site,
             "a thread stays inside the instructions to be replaced (or was interrupted there by a "
             "signal, or its stack cannot be searched for that)");
      continue;
    }
    for (size_t i = 0; i < site->plan.probed.size(); i++) give_up_head(*site, i);
  }
}

void WantedSites::give_way(const std::vector<std::pair<const PlannedSite*, std::string>>& refused) {
  std::vector<TrapPlanner::RefusedSite> list;
  for (const auto& [site, reason] : refused) {
    dropped_.insert(site);
    list.push_back({site, reason});
  }
  auto swapped = traps_.swap(list, wanted(), plan_->unwatched);
  for (PlannedSite& trap : swapped.traps) plan_->sites.push_back(std::move(trap));
  for (const auto& [lost, reason] : swapped.refused) refuse(lost, reason);
}

void WantedSites::await_probe(int probe) {
  const bool is_asked_for = probe >= 0 && bundle_.probes[static_cast<size_t>(probe)].entry_of < 0;
  if (is_asked_for && std::ranges::find(plan_->absent, probe) == plan_->absent.end())
    plan_->absent.push_back(probe);
}

/// A return probe of a library that has gone is awaited with it; one that only had a place there is
/// refused.
void WantedSites::await_returns(int returns,
                                const std::set<ModuleIdentity>& gone,
                                const PlannedSite& place) {
  const PlannedReturns& planned = plan_->returns[static_cast<size_t>(returns)];
  patch::Refusal refusal;
  refusal.kind = patch::RefusalKind::kReserved;
  refusal.address = place.plan.site;
  refusal.reason =
      fmt::format("a place of it was in {}, which has been unloaded", place.image->module().path);
  if (!gone.contains(identity_of(planned.image->module()))) return refuse_returns(returns, refusal);
  plan_->refuse_returns(returns, target_.pid(), refusal);
  for (const int probe : planned.probes) await_probe(probe);
}

void WantedSites::await(const std::set<const PlannedSite*>& unloaded) {
  if (unloaded.empty()) return;
  std::set<ModuleIdentity> gone;
  for (const PlannedSite* site : unloaded) gone.insert(identity_of(site->image->module()));
  for (const PlannedSite& site : plan_->sites) {
    const bool has_gone = gone.contains(identity_of(site.image->module()));
    if (!has_gone || !dropped_.insert(&site).second) continue;
    for (const std::vector<Action>& actions : site.actions) {
      for (const Action& action : actions) await_probe(action.probe);
    }
    for (const int returns : returns_at(site)) await_returns(returns, gone, site);
  }
  for (const PlannedSite& site : plan_->sites) {
    if (!site.has_actions()) dropped_.insert(&site);
  }
  for (const ModuleIdentity& module : gone) plan_->modules.erase(module);
}

std::vector<SiteReport> WantedSites::all_refusals() const {
  auto all = plan_->refused;
  all.insert(all.end(), refused_.begin(), refused_.end());
  std::erase_if(all, [&](const SiteReport& r) {
    return r.probe >= 0 && is_sentry(bundle_.probes[static_cast<size_t>(r.probe)]);
  });
  return all;
}

Error WantedSites::all_refused() const {
  if (!target_.memory().alive()) {
    return {ErrorCode::kTargetGone,
            fmt::format("process {} has ended or called exec meanwhile", target_.pid())};
  }
  std::string text = "no probe could be placed safely:";
  auto all = all_refusals();
  constexpr size_t kShown = 10;
  for (const SiteReport& r : std::span(all).first(std::min(all.size(), kShown)))
    text += fmt::format("\n  {}: {}", engine::place_of(r), r.reason);
  if (all.size() > kShown) text += fmt::format("\n  and {} more", all.size() - kShown);
  return {ErrorCode::kUnsafe, text};
}

// ---- what is not there yet
// ---------------------------------------------------------------------------------------

namespace {
/// An entry of the site table an edit: a short site may take several.
constexpr size_t kEditsPerLaterProbe = 8, kMoreLaterEdits = 256;
}  // namespace

PrepareOptions WantedSites::room_for_later() const {
  PrepareOptions options;
  const auto leaves = [](const PlannedSite* site) {
    return std::ranges::any_of(site->actions, [](const std::vector<Action>& list) {
      return std::ranges::find(list, Action::Kind::kLeave, &Action::kind) != list.end();
    });
  };
  // Where calls stray to is found when they do (strays.h).
  if (std::ranges::any_of(wanted(), leaves)) options.later_edits = kMoreLaterEdits;
  if (!target_.loads_libraries()) return options;
  // What is loaded now may be loaded a second time, or elsewhere.
  options.later_edits +=
      kEditsPerLaterProbe * plan_->absent.size() + wanted().size() + kMoreLaterEdits;
  options.later_calls = std::ranges::any_of(plan_->absent, [&](int probe) {
    return bundle_.probes[static_cast<size_t>(probe)].kind == bundle::ProbeKind::kUretprobe;
  });
  return options;
}

/// For the user. `may_wait`: no filter of the process is in the way of that.
std::vector<std::string> WantedSites::awaited(bool may_wait) const {
  std::set<std::string> files;
  for (int probe : plan_->absent) files.insert(bundle_.probes[static_cast<size_t>(probe)].path);
  const auto why_not =
      may_wait ? plan_->unawaited : std::optional<std::string>("a seccomp filter may forbid futex");
  const std::string from =
      why_not ? fmt::format(
                    "calls are counted from some 20 ms later on (its loader does not wait for "
                    "the probes: {})",
                    *why_not)
              : "it waits until the probes are set";
  std::vector<std::string> told;
  for (const std::string& file : files)
    told.push_back(fmt::format("process {} ({}) does not have {} loaded; when it loads it, {}",
                               target_.pid(), target_.name(), file, from));
  return told;
}

void WantedSites::hand_over(Attachment& attachment, bool may_wait) const {
  attachment.plan = plan_;
  attachment.refused = all_refusals();
  attachment.modules = plan_->modules;
  attachment.tracked = plan_->tracked;
  attachment.awaits = std::ranges::any_of(wanted(), &PlannedSite::only_awaits);
  std::ranges::move(awaited(may_wait), std::back_inserter(attachment.warnings));
}

void WantedSites::hand_over_more(Attachment& attachment) const {
  std::ranges::move(all_refusals(), std::back_inserter(attachment.refused));
}

}  // namespace spile::user_engine
