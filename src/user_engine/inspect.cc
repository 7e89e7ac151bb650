// What a script would do to a process, without touching it: `spile sites`, `spile dump --stage
// jit`.
#include <algorithm>
#include <map>

#include "user_engine/address_plan.h"
#include "user_engine/code_image.h"
#include "user_engine/jit/print.h"
#include "user_engine/shm/region.h"
#include "user_engine/user_engine.h"
#include "x86/format.h"

namespace spile::user_engine {

using bundle::Bundle;

Result<std::vector<engine::SiteReport>> plan_sites(pid_t pid, const Bundle& bundle) {
  SPILE_TRY(auto target, target::Target::open(pid));
  SPILE_TRY(auto plan, plan_process(target, bundle));
  std::vector<const PlannedSite*> sites;
  for (const PlannedSite& site : plan.sites) sites.push_back(&site);
  SPILE_TRY(auto addresses, plan_addresses(target, bundle, sites));
  std::map<const PlannedSite*, const patch::Refusal*> refused;
  for (const auto& [site, refusal] : addresses.refused) {
    refused.emplace(site, &refusal);
    for (const int returns : returns_at(*site)) {
      auto more = plan.refuse_returns(returns, pid, refusal);
      plan.refused.insert(plan.refused.end(), more.begin(), more.end());
    }
  }
  std::vector<engine::SiteReport> reports;
  for (const PlannedSite* site : sites) {
    auto placed = addresses.placements.find(site);
    for (engine::SiteReport& report : describe(*site, pid, bundle)) {
      if (placed != addresses.placements.end()) {
        report.mechanism = placed->second.how;
        report.reason = placed->second.why;
      }
      if (refused.contains(site)) {
        report.refused = true;
        report.reason = refused.at(site)->reason;
      }
      reports.push_back(std::move(report));
    }
  }
  for (const PlannedReturns& returns : plan.returns) {
    if (!returns.refused) reports.push_back(describe(returns, pid));
  }
  std::ranges::sort(reports, {}, &engine::SiteReport::address);
  reports.insert(reports.end(), plan.refused.begin(), plan.refused.end());
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
