#include "user_engine/late.h"

#include <link.h>

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <filesystem>

#include "os/process.h"
#include "user_engine/detach.h"
#include "user_engine/loader.h"
#include "user_engine/loader_watch.h"
#include "user_engine/rearm.h"
#include "user_engine/target/stopped.h"

namespace spile::user_engine {

namespace {

constexpr auto kLookEvery = std::chrono::milliseconds(10);
/// A look takes at most one part in so many of the tracer's time.
constexpr int kShareOfTime = 50;
/// Each takes a mapping and some memory until the end of the trace.
constexpr size_t kMaxExtensions = 64;

/// The lines of maps that are files' code: what is loaded. Others change all the time.
std::string lines_of_code(const std::string& maps) {
  std::string code;
  for (size_t at = 0; at < maps.size();) {
    const size_t end = std::min(maps.find('\n', at), maps.size());
    const std::string_view line(maps.data() + at, end - at);
    const size_t permissions = line.find(' ');
    const bool is_code = permissions != std::string_view::npos && line.size() > permissions + 3 &&
                         line[permissions + 3] == 'x';
    if (is_code && line.find(" /") != std::string_view::npos &&
        line.find("/memfd:spile-") == std::string_view::npos)
      code.append(line).append("\n");
    at = end + 1;
  }
  return code;
}

bool is_mapped(const std::vector<os::MapEntry>& maps, const PatchedSite& site) {
  const target::Module& module = site.planned->image->module();
  const TargetAddr at = site.planned->plan.site;
  return std::ranges::any_of(maps, [&](const os::MapEntry& m) {
    return m.contains(at) && m.inode == module.inode && m.device == module.device;
  });
}

/// Where our jump was the file's bytes are again.
bool is_original(const target::Target& target, const PatchedSite& site) {
  const patch::Edit& edit = site.edits.back();
  std::vector<uint8_t> now(edit.before.size());
  return target.memory().read(edit.at, now) && std::ranges::equal(now, edit.before);
}

/// The modules of an attachment's sites that are not there any more, or are there anew: one site
/// tells, since all go together.
std::set<ModuleIdentity> find_unloaded(const Attachment& attachment,
                                       const std::vector<os::MapEntry>& maps) {
  std::set<ModuleIdentity> looked_at, unloaded;
  for (const PatchedSite& site : attachment.sites) {
    const ModuleIdentity module = identity_of(site.planned->image->module());
    if (!looked_at.insert(module).second) continue;
    if (!is_mapped(maps, site) || is_original(*attachment.target, site)) unloaded.insert(module);
  }
  return unloaded;
}

/// The counters have gone with the library's data.
void forget_semaphores(Attachment& attachment, TargetAddr site) {
  abi::Journal& journal = attachment.region.journal_untrusted();
  for (size_t i = 0; i < attachment.semaphores.size(); i++) {
    if (attachment.semaphores[i].site != site) continue;
    attachment.semaphores[i].state = abi::SemaphoreState::kLowered;
    journal.semaphores[i].state = abi::SemaphoreState::kLowered;
  }
}

/// Before anybody runs what has its place now: calls that go there are counted again.
void forget_strays(const Attachment& attachment, const target::Module& module) {
  for (abi::StrayCell& cell : attachment.region.strays_untrusted()) {
    const uint64_t key = __atomic_load_n(&cell.key, __ATOMIC_ACQUIRE);
    if (module.contains(TargetAddr(key >> abi::kStrayNumberBits)) &&
        std::atomic_ref(cell.state).load(std::memory_order_acquire) == abi::StrayState::kWatched)
      std::atomic_ref(cell.state).store(abi::StrayState::kForgotten, std::memory_order_release);
  }
}

std::optional<std::string> code_of(const target::Target& target) {
  auto tid = target.live_thread();
  auto text = tid ? os::read_file(fmt::format("/proc/{}/maps", *tid)) : Result<std::string>();
  if (!tid || !text) return std::nullopt;
  return lines_of_code(*text);
}

/// Where the loader says whether it is done with what it was about.
std::optional<TargetAddr> state_of_loader(const target::Target& target) {
  auto modules = target.modules();
  if (!modules) return std::nullopt;
  const target::Module* loader = find_loader(target, *modules);
  if (loader == nullptr) return std::nullopt;
  auto symbols = loader_symbols(*loader);
  if (!symbols || !symbols->r_debug) return std::nullopt;
  return loader->bias.to_target(*symbols->r_debug) + offsetof(r_debug, r_state);
}

std::string name_of(const ModuleIdentity& identity, const std::vector<target::Module>& modules) {
  for (const target::Module& m : modules) {
    if (identity_of(m) == identity) return m.path;
  }
  return "a library";
}

}  // namespace

// ---- entries of the site table
// -----------------------------------------------------------------------------------

std::optional<uint32_t> SiteSlots::take(const PlannedSite* owner) {
  if (free_.empty()) {
    if (used_ == capacity_) return std::nullopt;
    owners_.push_back(owner);
    return used_++;
  }
  const uint32_t slot = free_.back();
  free_.pop_back();
  owners_[slot] = owner;
  return slot;
}

void SiteSlots::give_back(uint32_t slot) {
  owners_[slot] = nullptr;
  free_.push_back(slot);
}

std::vector<uint32_t> SiteSlots::of(const std::set<const PlannedSite*>& owners) const {
  std::vector<uint32_t> slots;
  for (uint32_t slot = 0; slot < used_; slot++) {
    if (owners.contains(owners_[slot])) slots.push_back(slot);
  }
  return slots;
}

// ---- what nobody has any more
// ------------------------------------------------------------------------------------

namespace {

size_t edits_of(const std::vector<PatchedSite>& sites) {
  size_t count = 0;
  for (const PatchedSite& site : sites) count += site.edits.size();
  return count;
}

/// None of our jump is left at a site, whatever is there now.
bool is_gone(const target::Target& target, const PatchedSite& site) {
  return std::ranges::all_of(site.edits, [&](const patch::Edit& edit) {
    std::vector<uint8_t> now(edit.after.size());
    now.resize(target.memory().read_some(edit.at, now));
    return now.empty() || !std::ranges::equal(now, std::span(edit.after).first(now.size()));
  });
}

/// A child that forks while the list is read may have its own behind our back: asked twice.
bool has_forked_children(const Attachment& attachment) {
  return !forked_children(attachment).empty() || !forked_children(attachment).empty();
}

/// The counters behind the last that is in use.
void forget_lowered_semaphores(Attachment& attachment) {
  auto& all = attachment.semaphores;
  while (!all.empty() && all.back().state == abi::SemaphoreState::kLowered) all.pop_back();
  __atomic_store_n(&attachment.region.journal_untrusted().semaphore_count,
                   static_cast<uint32_t>(all.size()), __ATOMIC_RELEASE);
}

}  // namespace

void forget_unloaded(Attachment& attachment) {
  // The process first: a child that it forks from here on has nothing that it has not. A library's
  // sites go together: one may jump by way of bytes that another has changed, and where the library
  // comes back all are written again or none.
  std::set<ModuleIdentity> stay;
  for (const PatchedSite& site : attachment.unloaded) {
    if (!is_gone(*attachment.target, site)) stay.insert(identity_of(site.planned->image->module()));
  }
  const auto gone = std::ranges::partition(attachment.unloaded, [&](const PatchedSite& site) {
    return stay.contains(identity_of(site.planned->image->module()));
  });
  if (gone.empty() || has_forked_children(attachment)) return;
  std::set<const PlannedSite*> forgotten;
  for (const PatchedSite& site : gone) forgotten.insert(site.planned);
  auto entries = attachment.region.sites_untrusted();
  for (const uint32_t slot : attachment.slots.of(forgotten)) {
    __atomic_store_n(reinterpret_cast<uint8_t*>(&entries[slot].state),
                     static_cast<uint8_t>(abi::SiteState::kEmpty), __ATOMIC_RELEASE);
    attachment.slots.give_back(slot);
  }
  attachment.unloaded.erase(gone.begin(), gone.end());
  forget_lowered_semaphores(attachment);
}

// ---- looking
// -----------------------------------------------------------------------------------------------------

void set_aside_unloaded(Attachment& attachment) {
  auto maps = attachment.target->maps();
  if (!maps || maps->empty()) return;
  const auto unloaded = find_unloaded(attachment, *maps);
  if (unloaded.empty()) return;
  std::vector<PatchedSite> stay;
  for (PatchedSite& site : attachment.sites) {
    bool is_gone = unloaded.contains(identity_of(site.planned->image->module()));
    if (is_gone) forget_semaphores(attachment, site.edits.back().at);
    if (is_gone && site.planned->notes_calls())
      forget_strays(attachment, site.planned->image->module());
    (is_gone ? attachment.unloaded : stay).push_back(std::move(site));
  }
  attachment.sites = std::move(stay);
  for (const ModuleIdentity& module : unloaded) attachment.modules.erase(module);
}

/// Where a file is awaited, or one that a probe is in may be unloaded. The program, its C library
/// and its loader stay.
bool LateLibraries::may_change(const Attachment& attachment) const {
  if (!attachment.plan->absent.empty()) return true;
  return std::ranges::any_of(attachment.sites, [](const PatchedSite& site) {
    const target::Module& m = site.planned->image->module();
    const std::string name = std::filesystem::path(m.path).filename();
    return !m.main_program && !m.vdso && !name.starts_with("libc.so") && !name.starts_with("ld-");
  });
}

void LateLibraries::look(Attachment& attachment, const AttachContext& context) {
  if (attachment.awaits) answer(attachment, context);
  const auto began = Clock::now();
  if (began < next_ || began < rest_until_ || !attachment.target->alive()) return;
  if (!is_worth_it_) is_worth_it_ = may_change(attachment);
  if (!*is_worth_it_) return;
  auto code = code_of(*attachment.target);
  if (!code) return;
  bool has_settled = false;
  // A library that came back to its place changes no line.
  if (*code != code_ || any_came_back(attachment)) {
    if (settled_) came_after_ = looked_;
    set_aside_unloaded(attachment);
    choose_witnesses(attachment);
    code_ = std::move(*code);
    settled_ = false;
  } else {
    // The same for a whole look: its loader has come past its code.
    has_settled = !std::exchange(settled_, true);
  }
  looked_ = began;
  const auto took = Clock::now() - began;
  if (has_settled) {
    // Not counted: kMaxExtensions bounds it, and what the process loads next is not to wait.
    follow(attachment, context, false);
    choose_witnesses(attachment);
  } else if (settled_) {
    try_again(attachment, context);
  }
  next_ = Clock::now() + std::max<Clock::duration>(kLookEvery, took * kShareOfTime);
}

// ---- threads that wait
// --------------------------------------------------------------------------------------

/// A thread waits in the loader, of the process or of a child that it forked: of a child nothing is
/// looked at, it only must not wait.
void LateLibraries::answer(Attachment& attachment, const AttachContext& context) {
  if (tell_waits_in_vain(attachment)) open_gate(attachment.region);
  const auto request = pending_request(attachment.region);
  if (!request) return;
  {
    const SignOfLife at_work(attachment.region);
    if (Clock::now() >= rest_until_ && attachment.target->alive() && is_at_rest(attachment))
      look_now(attachment, context);
  }
  answer_request(attachment.region, *request);
}

bool LateLibraries::tell_waits_in_vain(const Attachment& attachment) {
  const uint32_t now =
      __atomic_load_n(&attachment.region.loader_gate_untrusted().in_vain, __ATOMIC_ACQUIRE);
  if (now == in_vain_) return false;
  warnings_.push_back(fmt::format(
      "process {}: {} times a thread that had loaded or unloaded a library did not wait "
      "longer for its probes: calls of a library with probes may have been missed",
      attachment.pid, now - in_vain_));
  in_vain_ = now;
  return true;
}

void LateLibraries::end(const Attachment& attachment) {
  tell_waits_in_vain(attachment);
  if (auto missed = what_is_missed(attachment.pid)) warnings_.push_back(std::move(*missed));
}

/// A stop that one thread does not let happen holds all others until it is given up.
void LateLibraries::rest_after(Clock::time_point began) {
  constexpr int kRests = 10;
  const auto held = Clock::now() - began;
  if (target::is_slow_stop(held)) rest_until_ = Clock::now() + kRests * held;
}

/// The loader also tells when it begins. What it is about then comes with the next call.
bool LateLibraries::is_at_rest(const Attachment& attachment) {
  if (!loader_state_) loader_state_ = state_of_loader(*attachment.target);
  if (!*loader_state_) return true;
  auto state = attachment.target->memory().read_value<uint32_t>(**loader_state_);
  return !state || *state == r_debug::RT_CONSISTENT;
}

/// The loader has just said that it is done, so there is no need to look twice.
void LateLibraries::look_now(Attachment& attachment, const AttachContext& context) {
  auto code = code_of(*attachment.target);
  if (!code || (*code == code_ && settled_ && !any_came_back(attachment))) return;
  set_aside_unloaded(attachment);
  code_ = std::move(*code);
  settled_ = true;
  looked_ = came_after_ = Clock::now();
  follow(attachment, context, true);
  choose_witnesses(attachment);
  // Time to relocate, for what could not be set yet.
  next_ = Clock::now() + kLookEvery;
}

void LateLibraries::choose_witnesses(const Attachment& attachment) {
  std::set<ModuleIdentity> seen;
  witnesses_.clear();
  for (const PatchedSite& site : attachment.sites) {
    if (seen.insert(identity_of(site.planned->image->module())).second)
      witnesses_.push_back({site.edits.back().at, site.edits.back().before});
  }
}

bool LateLibraries::any_came_back(const Attachment& attachment) const {
  return std::ranges::any_of(witnesses_, [&](const Witness& witness) {
    std::vector<uint8_t> now(witness.before.size());
    return attachment.target->memory().read(witness.at, now) &&
           std::ranges::equal(now, witness.before);
  });
}

void LateLibraries::follow(Attachment& attachment, const AttachContext& context, bool is_early) {
  const auto began = Clock::now();
  auto modules = attachment.target->modules();
  if (!modules) return;
  std::set<ModuleIdentity> all, fresh;
  for (const target::Module& m : *modules) all.insert(identity_of(m));
  std::ranges::set_difference(all, attachment.modules, std::inserter(fresh, fresh.end()));
  attachment.modules = all;
  forget_retries(all);
  std::set<ModuleIdentity> whole = fresh;
  for (const ModuleIdentity& module : incomplete_) whole.erase(module);
  Result<std::set<ModuleIdentity>> back = std::set<ModuleIdentity>();
  if (!whole.empty()) back = rearm(attachment, whole, context);
  // What does not fit as it was is planned anew.
  if (!back && back.error().code == ErrorCode::kUnsafe) back = std::set<ModuleIdentity>();
  if (back) {
    if (!back->empty()) note_late(is_early);
    for (const ModuleIdentity& module : *back) fresh.erase(module);
    if (fresh.empty()) return;
    back = follow_new(attachment, fresh, context, is_early);
  }
  if (back || back.error().code == ErrorCode::kTargetGone) return;
  if (back.error().code == ErrorCode::kBusy) {
    // Somebody stood in the way: at the next look again.
    rest_after(began);
    if (is_early)
      warnings_.push_back(fmt::format(
          "process {}: {} was loaded while {}: its calls until the next look may have been missed",
          attachment.pid, name_of(*fresh.begin(), *modules), back.error().message));
    for (const ModuleIdentity& module : fresh) attachment.modules.erase(module);
    settled_ = false;
    return;
  }
  warnings_.push_back(fmt::format("process {}: {}, loaded later, is not probed: {}", attachment.pid,
                                  name_of(*fresh.begin(), *modules), back.error().message));
}

/// Those that were not here before.
Result<std::set<ModuleIdentity>> LateLibraries::follow_new(Attachment& attachment,
                                                           const std::set<ModuleIdentity>& fresh,
                                                           const AttachContext& context,
                                                           bool is_early) {
  if (extensions_ >= kMaxExtensions) {
    if (std::exchange(gave_up_, true)) return fresh;
    warnings_.push_back(
        fmt::format("process {}: {} times a library was loaded to a new place; "
                    "those loaded from now on are not probed",
                    attachment.pid, kMaxExtensions));
    return fresh;
  }
  // What a library had, it has again when it comes back.
  if (edits_of(attachment.unloaded) >= attachment.slots.room()) forget_unloaded(attachment);
  const size_t refused = attachment.refused.size();
  auto done = extend(attachment, fresh, context, {is_early, nullptr});
  tell_refusals(attachment, refused);
  if (!done) return std::unexpected(std::move(done.error()));
  extensions_ += done->any ? 1 : 0;
  if (done->any) note_late(is_early);
  if (!done->refused.empty()) retries_.push_back({fresh, std::move(done->refused)});
  return fresh;
}

/// A library that went before all of its probes were tried is planned anew when it comes back.
void LateLibraries::forget_retries(const std::set<ModuleIdentity>& loaded) {
  for (Retry& retry : retries_) {
    std::set<ModuleIdentity> stay;
    for (const ModuleIdentity& module : retry.modules)
      (loaded.contains(module) ? stay : incomplete_).insert(module);
    retry.modules = std::move(stay);
  }
  std::erase_if(retries_, [](const Retry& retry) { return retry.modules.empty(); });
}

void LateLibraries::try_again(Attachment& attachment, const AttachContext& context) {
  if (retries_.empty()) return;
  const auto began = Clock::now();
  Retry retry = std::move(retries_.front());
  retries_.erase(retries_.begin());
  const size_t refused = attachment.refused.size();
  auto done = extend(attachment, retry.modules, context, {false, &retry.probes});
  tell_refusals(attachment, refused);
  if (done && done->any) {
    extensions_++;
    note_late(false);
  }
  if (done || done.error().code == ErrorCode::kTargetGone) return;
  if (done.error().code == ErrorCode::kBusy) {
    rest_after(began);
    retries_.push_back(std::move(retry));
    return;
  }
  auto modules = attachment.target->modules();
  if (!modules) return;
  warnings_.push_back(fmt::format("process {}: probes of {}, loaded later, are not set: {}",
                                  attachment.pid, name_of(*retry.modules.begin(), *modules),
                                  done.error().message));
}

/// That calls went before the probes. Where a thread waited none did.
void LateLibraries::note_late(bool is_early) {
  if (is_early) return;
  late_loads_++;
  longest_ = std::max(longest_, Clock::now() - came_after_);
}

std::optional<std::string> LateLibraries::what_is_missed(pid_t pid) const {
  if (late_loads_ == 0) return std::nullopt;
  const auto ms = std::chrono::ceil<std::chrono::milliseconds>(longest_);
  return fmt::format(
      "process {}: {} a library was loaded while it was traced, and probed up to {} ms later: "
      "its calls before that are in no figure",
      pid, late_loads_ == 1 ? "once" : fmt::format("{} times", late_loads_), ms.count());
}

void LateLibraries::tell_refusals(const Attachment& attachment, size_t first) {
  constexpr size_t kShown = 10;
  for (size_t i = first; i < std::min(attachment.refused.size(), first + kShown); i++) {
    const engine::SiteReport& site = attachment.refused[i];
    warnings_.push_back(fmt::format("not probed: {}: {}", engine::place_of(site), site.reason));
  }
}

}  // namespace spile::user_engine
