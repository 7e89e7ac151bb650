// How probes come into a process: the second of spile's two stories, from top to bottom in
// attach_to().
//
// Everything that can be done while the target runs is done then: decoding, planning, compiling.
// The stop itself maps memory, copies finished bytes and writes the jumps. At every moment of it
// the tracer may be killed and the target runs on: before a jump is written its detour is complete,
// and the journal says what was changed.
#include <algorithm>
#include <set>
#include <thread>

#include "user_engine/attachment.h"
#include "user_engine/detach.h"
#include "user_engine/loader.h"
#include "user_engine/patcher.h"
#include "user_engine/prepare.h"
#include "user_engine/target/spawn.h"
#include "user_engine/target/stopped.h"
#include "x86/decode.h"

namespace spile::user_engine {

using engine::SiteReport;
using target::StoppedProcess;
using target::Target;

namespace {

constexpr int kMaxAttempts = 8, kMaxSlowAttempts = 3;

/// The sites of one process: those still wanted, those given up and why.
class Sites {
 public:
  Sites(const Target& target, const bundle::Bundle& bundle, ProcessPlan plan)
      : target_(target), bundle_(bundle), plan_(std::make_shared<ProcessPlan>(std::move(plan))) {}

  std::vector<const PlannedSite*> wanted() const {
    std::vector<const PlannedSite*> sites;
    for (const PlannedSite& site : plan_->sites) {
      if (!dropped_.contains(&site)) sites.push_back(&site);
    }
    return sites;
  }
  void refuse(const PlannedSite& site, const std::string& reason);
  void refuse_returns(int returns, const patch::Refusal& refusal);
  /// Sites that threads stand in the way of, and stay: as short sites where that fits, else left
  /// out for good.
  void give_up(const std::set<const PlannedSite*>& blocked);
  Error all_refused() const;
  void hand_over(Attachment& attachment) const {
    attachment.plan = plan_;
    attachment.refused = all_refusals();
  }

 private:
  void give_up_head(const PlannedSite& site, size_t head);
  std::vector<SiteReport> all_refusals() const {
    auto all = plan_->refused;
    all.insert(all.end(), refused_.begin(), refused_.end());
    return all;
  }

  const Target& target_;
  const bundle::Bundle& bundle_;
  std::shared_ptr<ProcessPlan> plan_;
  std::set<const PlannedSite*> dropped_;
  std::vector<SiteReport> refused_;
};

void Sites::refuse(const PlannedSite& site, const std::string& reason) {
  dropped_.insert(&site);
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

/// A return probe has all of its places or none: else some returns would be told and others not.
void Sites::refuse_returns(int returns, const patch::Refusal& refusal) {
  auto reports = plan_->refuse_returns(returns, target_.pid(), refusal);
  refused_.insert(refused_.end(), reports.begin(), reports.end());
  for (const PlannedSite& site : plan_->sites) {
    if (!site.has_actions()) dropped_.insert(&site);
  }
}

/// A head of a blocked window becomes a short site of its own.
void Sites::give_up_head(const PlannedSite& site, size_t head) {
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
  dropped_.erase(&lost);
}

void Sites::give_up(const std::set<const PlannedSite*>& blocked) {
  for (const PlannedSite* site : blocked) {
    if (site->plan.mechanism == patch::Mechanism::kShort) {
      refuse(*site,
             "a thread stays inside the instructions to be replaced (or was interrupted there by a "
             "signal, or its stack cannot be searched for that)");
      continue;
    }
    dropped_.insert(site);
    for (size_t i = 0; i < site->plan.probed.size(); i++) give_up_head(*site, i);
  }
}

Error Sites::all_refused() const {
  std::string text = "no probe could be placed safely:";
  auto all = all_refusals();
  constexpr size_t kShown = 10;
  for (const SiteReport& r : std::span(all).first(std::min(all.size(), kShown)))
    text += fmt::format("\n  {}: {}", engine::place_of(r), r.reason);
  if (all.size() > kShown) text += fmt::format("\n  and {} more", all.size() - kShown);
  return {ErrorCode::kUnsafe, text};
}

/// Prepares without the sites for which there turns out to be no way: others may have counted on
/// their bytes, so everything is chosen anew.
Result<Prepared> prepare_what_fits(const Target& target,
                                   const AttachContext& context,
                                   Sites& sites) {
  for (;;) {
    auto wanted = sites.wanted();
    if (wanted.empty()) return std::unexpected(sites.all_refused());
    SPILE_TRY(auto prepared, prepare(target, context, wanted));
    if (prepared.refused.empty()) return prepared;
    for (const auto& [site, reason] : prepared.refused) sites.refuse(*site, reason);
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

}  // namespace

namespace {

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

std::vector<SiteReport> site_reports(const Attachment& attachment, const bundle::Bundle& bundle) {
  std::vector<SiteReport> reports;
  for (const PatchedSite& site : attachment.sites) {
    auto placed = attachment.addresses.placements.find(site.planned);
    for (SiteReport& report : describe(*site.planned, attachment.pid, bundle)) {
      if (placed != attachment.addresses.placements.end()) {
        report.mechanism = placed->second.how;
        report.reason = placed->second.why;
      }
      if (report.address == site.planned->plan.site.value) report.after = jump_of(site);
      reports.push_back(std::move(report));
    }
  }
  for (const PlannedReturns& returns : attachment.plan->returns) {
    if (!returns.refused) reports.push_back(describe(returns, attachment.pid));
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
  SPILE_TRY(auto plan, plan_process(*target, *context.bundle));
  Sites sites(*target, *context.bundle, std::move(plan));
  if (sites.wanted().empty()) return name_owner(*target, sites.all_refused());

  for (int attempt = 1;; attempt++) {
    // Addresses are chosen, programs compiled and detours made for exactly these addresses; BEGIN
    // runs.
    SPILE_TRY(auto prepared, prepare_what_fits(*target, context, sites));
    Patcher patcher(*target, context, std::move(prepared));

    // The stop: look, map, fill, journal, move threads, write jumps, go. Where that would take too
    // long, the first stop only maps, and the jumps are written batch by batch.
    auto began = std::chrono::steady_clock::now();
    auto done = target::with_tracer_thread([&]() -> Result<void> {
      SPILE_TRY(auto process, StoppedProcess::stop(*target));
      SPILE_TRY_VOID(expect_nobody(*target));
      auto committed = patcher.needs_many_stops() ? patcher.commit_first_of_many(process)
                                                  : patcher.commit(process);
      if (!committed) patcher.roll_back(process);
      return committed;
    });
    auto held = std::chrono::steady_clock::now() - began;
    if (done && patcher.needs_many_stops()) {
      done = patcher.commit_rest();
      if (!done) patcher.roll_back_running();
    }
    if (done) {
      auto attachment = patcher.finish();
      sites.hand_over(*attachment);
      attachment->target = std::move(target);
      return attachment;
    }
    // A thread stood in the way, the place was taken, or somebody holds the process. What
    // roll_back() had to leave is taken out like that of a dead tracer; what a living one holds is
    // not. A stop that timed out (a thread in vfork, a dead disk) held the others all the while:
    // few tries, long pauses.
    bool is_slow = held > std::chrono::milliseconds(100);
    bool again = done.error().code == ErrorCode::kBusy &&
                 attempt < (is_slow ? kMaxSlowAttempts : kMaxAttempts);
    auto free = make_way(*target);
    if (!again)
      return name_owner(
          *target, std::move(done.error())
                       .context(fmt::format("attach to process {} ({})", pid, target->name())));
    SPILE_TRY_VOID(std::move(free));
    if (attempt >= kMaxAttempts / 2) sites.give_up(patcher.blocked());
    std::this_thread::sleep_for(
        is_slow ? held * 5
                : std::chrono::steady_clock::duration(std::chrono::milliseconds(2 * attempt)));
  }
}

Result<std::unique_ptr<Attachment>> attach_command(const std::vector<std::string>& command,
                                                   const AttachContext& context) {
  return target::with_tracer_thread([&]() -> Result<std::unique_ptr<Attachment>> {
    // Started and stopped: libraries are mapped, no constructor has run.
    SPILE_TRY(auto child, target::Child::spawn(command, loader_symbols));
    if (context.on_process) context.on_process(child.target().pid());
    SPILE_TRY(auto plan, plan_process(child.target(), *context.bundle));
    Sites sites(child.target(), *context.bundle, std::move(plan));
    SPILE_TRY(auto prepared, prepare_what_fits(child.target(), context, sites));
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
    sites.hand_over(*attachment);
    attachment->target = child.take_target();
    return attachment;
  });
}

}  // namespace spile::user_engine
