#include "user_engine/rearm.h"

#include <algorithm>
#include <chrono>
#include <thread>

#include "user_engine/patcher.h"
#include "user_engine/prepare.h"
#include "user_engine/target/stopped.h"

namespace spile::user_engine {

namespace {

constexpr int kMaxAttempts = 4;

/// What is done there depends on nothing but the module itself.
bool is_self_contained(const Attachment& attachment, const PatchedSite& site) {
  if (site.planned->plan.mechanism == patch::Mechanism::kTrap || site.planned->notes_calls())
    return false;
  return std::ranges::none_of(attachment.semaphores, [&](const Semaphore& semaphore) {
    return semaphore.site == site.edits.back().at;
  });
}

bool is_of(const PatchedSite& site, const ModuleIdentity& module) {
  return identity_of(site.planned->image->module()) == module;
}

/// A file may have been written anew in its place: then the plan is of another library.
bool is_same_build(const PatchedSite& site, const std::vector<target::Module>& loaded) {
  const target::Module& planned = site.planned->image->module();
  return !planned.build_id.empty() && std::ranges::any_of(loaded, [&](const target::Module& m) {
    return identity_of(m) == identity_of(planned) && m.build_id == planned.build_id;
  });
}

std::set<ModuleIdentity> find_returned(const Attachment& attachment,
                                       const std::set<ModuleIdentity>& modules,
                                       const std::vector<target::Module>& loaded) {
  std::set<ModuleIdentity> returned;
  for (const ModuleIdentity& module : modules) {
    bool any = false, all = true;
    std::set<TargetAddr> places;  // one planned twice has come back before without its sites
    const ModuleImage* same_build = nullptr;  // more builds than one may have been here
    for (const PatchedSite& site : attachment.unloaded) {
      if (!is_of(site, module)) continue;
      any = true;
      all =
          all && is_self_contained(attachment, site) && places.insert(site.edits.back().at).second;
      const ModuleImage* image = site.planned->image;
      if (all && image != same_build) all = is_same_build(site, loaded);
      same_build = image;
    }
    if (any && all) returned.insert(module);
  }
  return returned;
}

Prepared prepare_again(const Attachment& attachment, const std::set<ModuleIdentity>& modules) {
  Prepared prepared;
  CodeImage& code = prepared.code.emplace_back();
  for (const PatchedSite& site : attachment.unloaded) {
    if (modules.contains(identity_of(site.planned->image->module())))
      code.sites.push_back(
          {site.planned, site.detour, site.segments, site.edits, site.stack_bytes});
  }
  prepared.addresses.stacks_base = attachment.addresses.stacks_base;
  order_writes(prepared);
  return prepared;
}

Result<void> write_again(Attachment& attachment,
                         const std::set<ModuleIdentity>& modules,
                         const AttachContext& context) {
  const target::Target& target = *attachment.target;
  for (int attempt = 1;; attempt++) {
    Patcher patcher(target, context, prepare_again(attachment, modules), &attachment);
    const auto began = std::chrono::steady_clock::now();
    auto done = target::with_tracer_thread([&]() -> Result<void> {
      SPILE_TRY(auto process, target::StoppedProcess::stop(target));
      return patcher.commit_again(process);
    });
    if (done || done.error().code != ErrorCode::kBusy || attempt == kMaxAttempts ||
        target::is_slow_stop(std::chrono::steady_clock::now() - began))
      return done;
    std::this_thread::sleep_for(std::chrono::milliseconds(2 * attempt));
  }
}

}  // namespace

Result<std::set<ModuleIdentity>> rearm(Attachment& attachment,
                                       const std::set<ModuleIdentity>& modules,
                                       const AttachContext& context) {
  SPILE_TRY(auto loaded, attachment.target->modules());
  const auto returned = find_returned(attachment, modules, loaded);
  if (returned.empty()) return returned;
  SPILE_TRY_VOID(write_again(attachment, returned, context));
  std::vector<PatchedSite> others;
  for (PatchedSite& site : attachment.unloaded) {
    const bool is_back = returned.contains(identity_of(site.planned->image->module()));
    (is_back ? attachment.sites : others).push_back(std::move(site));
  }
  attachment.unloaded = std::move(others);
  return returned;
}

}  // namespace spile::user_engine
