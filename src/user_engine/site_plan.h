// Probes -> places in one process: which module, which address, which mechanism, or why not.
//
// Reads the process, neither stops nor changes it.
#pragma once

#include <deque>
#include <memory>
#include <vector>

#include "bundle/bundle.h"
#include "engine/engine.h"
#include "user_engine/module_code.h"
#include "user_engine/patch/plan.h"
#include "user_engine/target/process.h"

namespace spile::user_engine {

/// One window that will be patched, and the probes that fire in it.
struct PlannedSite {
  patch::SitePlan plan;
  const ModuleImage* image = nullptr;
  /// For each of plan.probed: indices into Bundle::probes, in the script's order.
  std::vector<std::vector<int>> probes;
};

struct ProcessPlan {
  std::vector<std::unique_ptr<ModuleImage>> images;  ///< only modules that have sites
  std::deque<PlannedSite> sites;                     ///< in no order; they stay where they are
  std::vector<engine::SiteReport> refused;
};

/// Errors:  not found   a probe's file is not mapped in the process, or it has no such function
///          those of reading the process and its files
/// A place that cannot be patched safely is no error: it is in `refused`.
Result<ProcessPlan> plan_process(const target::Target& target, const bundle::Bundle& bundle);

/// How the probed heads of a site are described to people: `spile sites`, -v. One report a head.
std::vector<engine::SiteReport> describe(const PlannedSite& site,
                                         pid_t pid,
                                         const bundle::Bundle& bundle);

/// The address of an IFUNC symbol is that of its resolver, which runs once, before main: not what
/// anybody wants to trace.
Error ifunc_refused(std::string_view file, std::string_view symbol);

}  // namespace spile::user_engine
