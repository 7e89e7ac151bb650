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

std::set<ModuleIdentity> find_returned(const Attachment& attachment,
                                       const std::set<ModuleIdentity>& modules) {
  std::set<ModuleIdentity> returned;
  for (const ModuleIdentity& module : modules) {
    bool any = false, all = true;
    std::set<TargetAddr> places;  // one planned twice has come back before without its sites
    for (const PatchedSite& site : attachment.unloaded) {
      if (!is_of(site, module)) continue;
      any = true;
      all =
          all && is_self_contained(attachment, site) && places.insert(site.edits.back().at).second;
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
    auto done = target::with_tracer_thread([&]() -> Result<void> {
      SPILE_TRY(auto process, target::StoppedProcess::stop(target));
      return patcher.commit_again(process);
    });
    if (done || done.error().code != ErrorCode::kBusy || attempt == kMaxAttempts) return done;
    std::this_thread::sleep_for(std::chrono::milliseconds(2 * attempt));
  }
}

}  // namespace

Result<std::set<ModuleIdentity>> rearm(Attachment& attachment,
                                       const std::set<ModuleIdentity>& modules,
                                       const AttachContext& context) {
  const auto returned = find_returned(attachment, modules);
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
