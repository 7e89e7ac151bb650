#include "user_engine/site_report.h"

#include <algorithm>
#include <filesystem>

namespace spile::user_engine {

using bundle::Bundle;
using engine::SiteReport;

SiteReport refusal_report(const ModuleImage& image,
                          TargetAddr address,
                          int probe,
                          pid_t pid,
                          const patch::Refusal& refusal) {
  SiteReport report;
  report.pid = pid;
  report.probe = probe;
  report.location =
      fmt::format("{}:{}", std::filesystem::path(image.module().path).filename().string(),
                  image.name_of(address));
  report.address = address.value;
  report.refused = true;
  report.mechanism = std::string(to_string(refusal.kind));
  report.reason = refusal.instruction.empty() ? refusal.reason
                                              : fmt::format("{} (at {}: {})", refusal.reason,
                                                            refusal.address, refusal.instruction);
  auto bytes = image.original(address, 16);
  report.before.assign(bytes.begin(), bytes.end());
  return report;
}

std::vector<SiteReport> ProcessPlan::refuse_returns(int index,
                                                    pid_t pid,
                                                    const patch::Refusal& refusal) {
  PlannedReturns& taken = returns[static_cast<size_t>(index)];
  if (std::exchange(taken.refused, true)) return {};
  for (PlannedSite& site : sites) {
    for (auto& list : site.actions)
      std::erase_if(list, [&](const Action& action) { return action.returns == index; });
  }
  std::vector<SiteReport> reports;
  for (int probe : taken.probes)
    reports.push_back(refusal_report(*taken.image, taken.function, probe, pid, refusal));
  return reports;
}

SiteReport describe(const PlannedReturns& returns, pid_t pid) {
  SiteReport report;
  report.pid = pid;
  report.probe = returns.probes.front();
  report.location =
      fmt::format("{}:{}", std::filesystem::path(returns.image->module().path).filename().string(),
                  returns.image->name_of(returns.function));
  report.address = returns.function.value;
  report.mechanism = returns.plain ? "returns" : "returns of noted calls";
  report.reason = fmt::format("{}; {} place{} patched", returns.how, returns.places,
                              returns.places == 1 ? "" : "s");
  return report;
}

std::vector<SiteReport> describe(const PlannedSite& site, pid_t pid, const Bundle& bundle) {
  std::vector<SiteReport> reports;
  for (size_t i = 0; i < site.plan.probed.size(); i++) {
    auto probe = std::ranges::find(site.actions[i], Action::Kind::kProbe, &Action::kind);
    if (probe == site.actions[i].end()) continue;
    SiteReport report;
    TargetAddr at = site.plan.site + site.plan.probed[i].offset;
    report.pid = pid;
    report.probe = probe->probe;
    std::string function = site.image->name_of(at);
    report.location = fmt::format(
        "{}:{}", std::filesystem::path(site.image->module().path).filename().string(),
        function.empty() ? bundle.probes.at(static_cast<size_t>(report.probe)).symbol : function);
    report.address = at.value;
    report.mechanism = std::string(to_string(site.plan.mechanism));
    report.reason = at == site.plan.site
                        ? site.plan.reason
                        : fmt::format("in the window at {}: {}", site.plan.site, site.plan.reason);
    if (site.image->is_from_memory())
      report.reason += "; its file is gone and out of reach: names and code are those in memory";
    report.before.assign(site.plan.window.begin() + site.plan.probed[i].offset,
                         site.plan.window.end());
    reports.push_back(std::move(report));
  }
  return reports;
}

}  // namespace spile::user_engine
