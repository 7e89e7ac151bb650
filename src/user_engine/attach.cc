// How probes come into a process: the second of spile's two stories, from top to bottom in
// attach_to().
//
// Everything that can be done while the target runs is done then: decoding, planning, compiling.
// The stop itself maps memory, copies finished bytes and writes the jumps. At every moment of it
// the tracer may be killed and the target runs on: before a jump is written its detour is complete,
// and the journal says what was changed.
#include <algorithm>
#include <thread>

#include "user_engine/attachment.h"
#include "user_engine/detach.h"
#include "user_engine/loader.h"
#include "user_engine/patcher.h"
#include "user_engine/prepare.h"
#include "user_engine/sentries.h"
#include "user_engine/target/spawn.h"
#include "user_engine/target/stopped.h"
#include "user_engine/wanted_sites.h"
#include "x86/decode.h"

namespace spile::user_engine {

using engine::SiteReport;
using target::StoppedProcess;
using target::Target;

namespace {

constexpr int kMaxAttempts = 8, kMaxSlowAttempts = 3;

/// Prepares without the sites for which there turns out to be no way: others may have counted on
/// their bytes, so everything is chosen anew.
Result<Prepared> prepare_what_fits(const Target& target,
                                   const AttachContext& context,
                                   WantedSites& sites,
                                   const PrepareOptions& options) {
  for (;;) {
    auto wanted = sites.wanted();
    if (sites.is_hopeless() || (wanted.empty() && options.home != nullptr))
      return std::unexpected(sites.all_refused());
    SPILE_TRY(auto prepared, prepare(target, context, wanted, options));
    if (prepared.refused.empty()) return prepared;
    sites.give_way(prepared.refused);
  }
}

/// What a dead tracer left is taken out first; what a live one holds is not touched.
Result<void> make_way(const Target& target) {
  constexpr auto kRetryEvery = std::chrono::milliseconds(5);
  for (int i = 1;; i++) {
    SPILE_TRY(auto maps, target.maps());
    if (target::our_mappings(maps).empty()) return {};
    SPILE_TRY_VOID(refuse_live_owner(target));
    auto report = detach_leftovers(target.pid());
    if (report) return {};
    // Busy: somebody else is at the same work, or about to attach. Who it is, and whether anything
    // is left, shows soon.
    if (report.error().code != ErrorCode::kBusy || i == kMaxAttempts) {
      return forward(report, "take out what an earlier spile left in process {}", target.pid());
    }
    std::this_thread::sleep_for(kRetryEvery);
  }
}

/// Between two tries. Errors: busy, where the user does not want to wait any longer.
Result<void> wait_for_next_try(const AttachContext& context, std::chrono::nanoseconds time) {
  constexpr std::chrono::nanoseconds kStep = std::chrono::milliseconds(10);
  for (; time > std::chrono::nanoseconds::zero(); time -= kStep) {
    if (context.interrupted && context.interrupted())
      return fail(ErrorCode::kBusy, "interrupted while waiting; nothing of the process is changed");
    std::this_thread::sleep_for(std::min(time, kStep));
  }
  return {};
}

/// In the stop: nobody came between make_way() and us. Who did is found by the next make_way().
Result<void> expect_nobody(const Target& target) {
  SPILE_TRY(auto maps, target.maps());
  if (target::our_mappings(maps).empty()) return {};
  return fail(ErrorCode::kBusy, "another spile has come first");
}

/// A site that another spile has just patched, a process that it holds at the moment: its name says
/// more than these.
std::unexpected<Error> name_owner(const Target& target, Error error) {
  auto alone = refuse_live_owner(target);
  if (!alone && alone.error().code == ErrorCode::kBusy)
    return std::unexpected(std::move(alone.error()));
  return std::unexpected(std::move(error));
}

/// `expect`: what must hold of the process in the stop. What fails is undone in the same stop.
template <typename Expect>
Result<void> commit_in_stop(const Target& target, Patcher& patcher, const Expect& expect) {
  return target::with_tracer_thread([&]() -> Result<void> {
    SPILE_TRY(auto process, StoppedProcess::stop(target));
    SPILE_TRY_VOID(expect());
    auto committed = patcher.needs_many_stops() ? patcher.commit_first_of_many(process)
                                                : patcher.commit(process);
    if (!committed) patcher.roll_back(process);
    return committed;
  });
}

/// The batches behind the first stop, if there are any.
Result<void> commit_rest(Patcher& patcher) {
  if (!patcher.needs_many_stops()) return {};
  auto done = patcher.commit_rest();
  if (!done) patcher.roll_back_running();
  return done;
}

/// The jump at a site as memory has it: part of it may be bytes that stayed.
std::vector<uint8_t> jump_of(const PatchedSite& site) {
  const patch::Edit& edit = site.edits.back();
  auto original = site.planned->image->original(edit.at, x86::kMaxInsnBytes);
  std::vector<uint8_t> bytes(original.begin(), original.end());
  bytes.resize(std::max(bytes.size(), edit.after.size()));
  std::ranges::copy(edit.after, bytes.begin());
  if (auto jump = x86::decode(bytes)) bytes.resize(jump->length);
  return bytes;
}

}  // namespace

const patch::Placement* placement_of(const Attachment& attachment, const PlannedSite& site) {
  auto placed = attachment.addresses.placements.find(&site);
  if (placed != attachment.addresses.placements.end()) return &placed->second;
  for (const Addition& addition : attachment.additions) {
    auto later = addition.addresses.placements.find(&site);
    if (later != addition.addresses.placements.end()) return &later->second;
  }
  return nullptr;
}

std::vector<SiteReport> site_reports(const Attachment& attachment, const bundle::Bundle& bundle) {
  std::vector<SiteReport> reports;
  for (const PatchedSite& site : attachment.sites) {
    const patch::Placement* placed = placement_of(attachment, *site.planned);
    for (SiteReport& report : describe(*site.planned, attachment.pid, bundle)) {
      if (placed != nullptr) {
        report.mechanism = placed->how;
        report.reason = placed->why;
      }
      if (is_sentry(bundle.probes[static_cast<size_t>(report.probe)])) continue;
      if (report.address == site.planned->plan.site.value) report.after = jump_of(site);
      reports.push_back(std::move(report));
    }
  }
  std::vector<const ProcessPlan*> plans{attachment.plan.get()};
  for (const Addition& addition : attachment.additions) plans.push_back(addition.plan.get());
  for (const ProcessPlan* plan : plans) {
    for (const PlannedReturns& returns : plan->returns) {
      if (!returns.refused) reports.push_back(describe(returns, attachment.pid));
    }
  }
  reports.insert(reports.end(), attachment.refused.begin(), attachment.refused.end());
  return reports;
}

Result<std::unique_ptr<Attachment>> attach(pid_t pid, const AttachContext& context) {
  // Who is it, and may we? Nothing is stopped yet.
  SPILE_TRY(auto opened, Target::open(pid));
  auto target = std::make_unique<Target>(std::move(opened));
  SPILE_TRY_VOID(make_way(*target));
  if (context.on_process) context.on_process(pid);

  // Which bytes would change, and what is in the way? A place that is not surely safe is refused
  // here.
  SPILE_TRY(auto plan, plan_process(*target, *context.bundle, context.plan));
  WantedSites sites(*target, *context.bundle, std::move(plan), context.plan);
  if (sites.is_hopeless()) return name_owner(*target, sites.all_refused());

  for (int attempt = 1;; attempt++) {
    // Addresses are chosen, programs compiled and detours made for exactly these addresses; BEGIN
    // runs.
    SPILE_TRY(auto prepared, prepare_what_fits(*target, context, sites, sites.room_for_later()));
    Patcher patcher(*target, context, std::move(prepared));

    // The stop: look, map, fill, journal, move threads, write jumps, go. Where that would take too
    // long, the first stop only maps, and the jumps are written batch by batch.
    auto began = std::chrono::steady_clock::now();
    auto done = commit_in_stop(*target, patcher, [&] { return expect_nobody(*target); });
    auto held = std::chrono::steady_clock::now() - began;
    if (done) done = commit_rest(patcher);
    if (done) {
      auto attachment = patcher.finish();
      sites.hand_over(*attachment, patcher.may_wait());
      attachment->target = std::move(target);
      return attachment;
    }
    // A thread stood in the way, the place was taken, a library was unloaded, or somebody holds the
    // process. What
    // roll_back() had to leave is taken out like that of a dead tracer; what a living one holds is
    // not. A stop that timed out (a thread in vfork, a dead disk) held the others all the while:
    // few tries, long pauses.
    bool is_slow = target::is_slow_stop(held);
    bool again = done.error().code == ErrorCode::kBusy &&
                 attempt < (is_slow ? kMaxSlowAttempts : kMaxAttempts);
    auto free = make_way(*target);
    if (!again)
      return name_owner(
          *target, std::move(done.error())
                       .context(fmt::format("attach to process {} ({})", pid, target->name())));
    SPILE_TRY_VOID(std::move(free));
    sites.await(patcher.unloaded());
    if (attempt >= kMaxAttempts / 2) {
      sites.give_up(patcher.blocked());
      if (patcher.no_traps()) sites.refuse_traps(*patcher.no_traps());
    }
    auto pause = is_slow
                     ? held * 5
                     : std::chrono::steady_clock::duration(std::chrono::milliseconds(2 * attempt));
    auto waited = wait_for_next_try(context, pause);
    if (!waited) return forward(waited, "attach to process {} ({})", pid, target->name());
  }
}

namespace {

Home home_of(const Attachment& attachment) {
  return {attachment.region.layout(), attachment.addresses.data_base,
          attachment.addresses.private_base, attachment.addresses.pending_base};
}

/// In the stop: what the new sites are to share is still there.
Result<void> expect_ours(const Target& target, const Attachment& attachment) {
  SPILE_TRY(auto maps, target.maps());
  const auto ours = target::our_mappings(maps);
  bool there = std::ranges::any_of(ours, [&](const os::MapEntry& m) {
    return m.start == attachment.addresses.data_base &&
           std::ranges::find(attachment.mappings, m.inode, &os::MapEntry::inode) !=
               attachment.mappings.end();
  });
  if (there) return {};
  return fail(ErrorCode::kUnsafe, "our shared memory is gone from process {}", target.pid());
}

}  // namespace

namespace {

/// Sites that join an attachment.
Result<void> commit_more(Attachment& attachment, WantedSites& sites, const AttachContext& context) {
  const Target& target = *attachment.target;
  const Home home = home_of(attachment);
  PrepareOptions options;
  options.home = &home;
  for (int attempt = 1;; attempt++) {
    SPILE_TRY(auto prepared, prepare_what_fits(target, context, sites, options));
    attachment.additions.push_back({sites.shared_plan(), {}});
    Patcher patcher(target, context, std::move(prepared), &attachment);
    const auto began = std::chrono::steady_clock::now();
    auto done = commit_in_stop(target, patcher, [&] { return expect_ours(target, attachment); });
    if (done) done = commit_rest(patcher);
    if (done) {
      patcher.join();
      sites.hand_over_more(attachment);
      return {};
    }
    if (!patcher.has_joined()) attachment.additions.pop_back();
    if (done.error().code != ErrorCode::kBusy || attempt == kMaxAttempts / 2 ||
        target::is_slow_stop(std::chrono::steady_clock::now() - began))
      return std::unexpected(std::move(done.error()));
    if (attempt >= kMaxAttempts / 4) sites.give_up(patcher.blocked());
    std::this_thread::sleep_for(std::chrono::milliseconds(2 * attempt));
  }
}

/// What is refused before the loader has bound a module may be possible afterwards: IFUNCs are
/// chosen then, pointers filled in. A probe that has a place elsewhere is not tried again.
std::set<int> take_refused(ProcessPlan& plan) {
  std::set<int> placed, refused;
  for (const PlannedSite& site : plan.sites) {
    for (const std::vector<Action>& actions : site.actions) {
      for (const Action& action : actions) placed.insert(action.probe);
    }
  }
  std::erase_if(plan.refused, [&](const SiteReport& report) {
    if (placed.contains(report.probe)) return false;
    refused.insert(report.probe);
    return true;
  });
  return refused;
}

}  // namespace

Result<Extended> extend(Attachment& attachment,
                        const std::set<ModuleIdentity>& modules,
                        const AttachContext& context,
                        const ExtendOptions& extend_options) {
  const Target& target = *attachment.target;
  // No int3 in what comes later.
  const PlanOptions how;
  SPILE_TRY(auto plan, plan_process(target, *context.bundle, how,
                                    {&modules, attachment.tracked, extend_options.probes}));
  const uint32_t tracked = plan.tracked;
  Extended extended;
  if (extend_options.is_early) extended.refused = take_refused(plan);
  const size_t refused_before = plan.refused.size();
  WantedSites sites(target, *context.bundle, std::move(plan), how);
  if (sites.wanted().empty() && refused_before == 0) return extended;
  SPILE_TRY_VOID(commit_more(attachment, sites, context));
  attachment.tracked = tracked;
  extended.any = true;
  return extended;
}

Result<std::vector<const PlannedReturns*>> watch_strays(Attachment& attachment,
                                                        const std::vector<Stray>& strays,
                                                        const AttachContext& context) {
  SPILE_TRY(auto plan, plan_strays(*attachment.target, *context.bundle, strays));
  WantedSites sites(*attachment.target, *context.bundle, std::move(plan), {});
  const auto shared = sites.shared_plan();
  std::vector<const PlannedReturns*> watched(strays.size());
  const size_t refused = attachment.refused.size();
  auto done = sites.wanted().empty() ? fail(ErrorCode::kUnsafe, "nothing can be watched")
                                     : commit_more(attachment, sites, context);
  attachment.refused.resize(refused);  // calls that are counted are no refused probes
  if (!done && done.error().code == ErrorCode::kUnsafe) return watched;
  SPILE_TRY_VOID(std::move(done));
  for (size_t i = 0; i < strays.size(); i++) {
    if (!shared->returns[i].refused) watched[i] = &shared->returns[i];
  }
  return watched;
}

Result<std::unique_ptr<Attachment>> attach_command(const std::vector<std::string>& command,
                                                   const AttachContext& context) {
  return target::with_tracer_thread([&]() -> Result<std::unique_ptr<Attachment>> {
    // Started and stopped: libraries are mapped, no constructor has run.
    SPILE_TRY(auto child, target::Child::spawn(command, loader_symbols));
    if (context.on_process) context.on_process(child.target().pid());
    SPILE_TRY(auto plan, plan_process(child.target(), *context.bundle, context.plan));
    WantedSites sites(child.target(), *context.bundle, std::move(plan), context.plan);
    SPILE_TRY(auto prepared,
              prepare_what_fits(child.target(), context, sites, sites.room_for_later()));
    Patcher patcher(child.target(), context, std::move(prepared));
    {
      SPILE_TRY(auto process, child.take_stopped());
      auto done = patcher.commit(process);
      // A child that could not be traced is not let loose: it ends with `child`.
      if (!done) return forward(done, "attach to {}", command.front());
    }
    // The child runs now and may end at any moment: nothing below may need it alive.
    child.release();
    auto attachment = patcher.finish();
    sites.hand_over(*attachment, patcher.may_wait());
    attachment->target = child.take_target();
    return attachment;
  });
}

}  // namespace spile::user_engine
