// What a script would do to a process, without touching it: `spile sites`, `spile dump --stage
// jit`.
#include <algorithm>
#include <map>

#include "user_engine/address_plan.h"
#include "user_engine/code_image.h"
#include "user_engine/jit/print.h"
#include "user_engine/sentries.h"
#include "user_engine/shm/region.h"
#include "user_engine/user_engine.h"
#include "user_engine/wanted_sites.h"
#include "x86/format.h"

namespace spile::user_engine {

using bundle::Bundle;

Result<std::vector<engine::SiteReport>> plan_sites(pid_t pid, const Bundle& script, TrapUse traps) {
  const PlanOptions options{traps};
  Bundle bundle = script;
  if (options.allow_trap()) {
    SPILE_TRY([[maybe_unused]] const int map, add_sentries(bundle));
  }
  SPILE_TRY(auto target, target::Target::open(pid));
  SPILE_TRY(auto plan, plan_process(target, bundle, options));
  WantedSites sites(target, bundle, std::move(plan), options);
  AddressPlan addresses;
  do {
    SPILE_TRY(addresses, plan_addresses(target, bundle, sites.wanted()));
    std::vector<std::pair<const PlannedSite*, std::string>> refused;
    for (const auto& [site, refusal] : addresses.refused)
      refused.emplace_back(site, refusal.reason);
    sites.give_way(refused);
  } while (!addresses.refused.empty());
  std::vector<engine::SiteReport> reports;
  for (const PlannedSite* site : sites.wanted()) {
    auto placed = addresses.placements.find(site);
    for (engine::SiteReport& report : describe(*site, pid, bundle)) {
      if (is_sentry(bundle.probes[static_cast<size_t>(report.probe)])) continue;
      if (placed != addresses.placements.end()) {
        report.mechanism = placed->second.how;
        report.reason = placed->second.why;
      }
      reports.push_back(std::move(report));
    }
  }
  for (const PlannedReturns& returns : sites.plan().returns) {
    if (!returns.refused) reports.push_back(describe(returns, pid));
  }
  std::ranges::sort(reports, {}, &engine::SiteReport::address);
  auto refusals = sites.all_refusals();
  reports.insert(reports.end(), refusals.begin(), refusals.end());
  return reports;
}

Result<std::string> dump_code(pid_t pid, const Bundle& bundle) {
  SPILE_TRY(auto target, target::Target::open(pid));
  SPILE_TRY(auto plan, plan_process(target, bundle));
  SPILE_TRY(auto analyses, check_programs(bundle));
  SPILE_TRY(auto layout, shm::plan_region(bundle, {}));
  std::string text;
  for (const PlannedSite& site : plan.sites) {
    // Each as if it were alone, in a region right below its module: what is printed depends on
    // nothing else.
    CodeRequest request;
    request.base =
        TargetAddr((site.image->module().start.value - (uint64_t{64} << 20)) & ~uint64_t{4095});
    request.bundle = &bundle;
    request.analyses = analyses;
    for (size_t i = 0; i < layout.maps.size(); i++)
      request.maps.push_back(
          shm::map_descriptor(layout, i, request.base.value - layout.size_bytes));
    request.sites = {&site};
    // How its jump is made does not matter here.
    std::map<const PlannedSite*, patch::Placement> placements = {{&site, {}}};
    request.placements = &placements;
    request.cpu_stats = request.base - layout.size_bytes + abi::kStatsOffset;
    request.cpu_mask = layout.cpu_slots - 1;
    request.has_private_stacks = true;
    SPILE_TRY(auto image, build_code(request));
    for (const auto& report : describe(site, pid, bundle))
      text += fmt::format("{} at {:#x}:\n", report.location, report.address);
    size_t start = abi::bodies_offset(bundle.maps.size());
    size_t end = image.bytes.size();
    while (end > start && image.bytes[end - 1] == 0xcc) end--;
    text +=
        x86::format_code(std::span(image.bytes).subspan(start, end - start), request.base + start);
    text += "\n";
  }
  return text;
}

}  // namespace spile::user_engine
