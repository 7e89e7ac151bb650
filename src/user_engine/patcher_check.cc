// What a stop looks at before it changes anything.
#include <linux/seccomp.h>

#include <algorithm>
#include <map>

#include "os/process.h"
#include "user_engine/hit_calls.h"
#include "user_engine/patcher.h"
#include "user_engine/target/threads_inside.h"
#include "x86/format.h"

namespace spile::user_engine {

using target::StoppedProcess;

namespace {

/// Bytes from an edit on that may be part of its jump: a prefixed jump of one own byte more.
constexpr size_t kJumpReachBytes = 8;

}  // namespace

/// The plan was made while the target ran: since then a library may have gone, or another tool may
/// have come. The bytes behind an edit may be part of its jump.
Result<void> Patcher::check_unchanged(const StoppedProcess& process,
                                      const Batch& batch,
                                      size_t written) {
  auto writes = prepared_.writes_of(batch);
  std::vector<uint8_t> page;
  for (size_t first = 0; first < writes.size();) {
    TargetAddr start = writes[first].edit->at;
    page.resize(2 * kPageBytes);
    page.resize(process.memory().read_some(start, page));
    size_t i = first;
    for (; i < writes.size() && page_of(writes[i].edit->at) == page_of(start) &&
           writes[i].edit->at >= start;
         i++) {
      TargetAddr at = writes[i].edit->at;
      size_t own = writes[i].edit->before.size();
      auto expected = expected_at(writes[i], written);
      auto now = std::span(page).subspan(std::min(page.size(), static_cast<size_t>(at - start)));
      // Behind the own bytes the mapping may end.
      size_t readable = std::min(expected.size(), now.size());
      const bool is_same =
          readable >= own &&
          std::ranges::equal(now.first(readable), std::span(expected).first(readable));
      if (!is_same) SPILE_TRY_VOID(find_unloaded(batch, i));
      if (!is_same)
        return fail(ErrorCode::kUnsafe,
                    "the code at {} has changed since it was looked at: patched by another tool "
                    "(it holds {}, not {})",
                    at, x86::hex(now.first(readable)),
                    x86::hex(std::span(expected).first(readable)));
    }
    first = i;
  }
  return {};
}

/// Where memory is not as planned at one edit: whether its library has gone. Errors: busy, it has
/// (unloaded() says which of the batch have).
Result<void> Patcher::find_unloaded(const Batch& batch, size_t changed) {
  SPILE_TRY(auto maps, target_.maps());
  std::map<const ModuleImage*, bool> is_there;
  for (const Write& write : prepared_.writes_of(batch)) {
    const PlannedSite* site = write.site->site;
    const target::Module& module = site->image->module();
    auto [entry, is_new] = is_there.try_emplace(site->image);
    if (is_new) {
      entry->second = std::ranges::any_of(maps, [&](const os::MapEntry& m) {
        return m.contains(write.edit->at) && m.inode == module.inode && m.device == module.device;
      });
    }
    if (!entry->second) unloaded_.insert(site);
  }
  const ModuleImage* image = prepared_.writes_of(batch)[changed].site->site->image;
  if (is_there.at(image)) return {};
  return fail(ErrorCode::kBusy, "{} has been unloaded since it was looked at",
              image->module().path);
}

/// What memory must hold at an edit and behind it, when the first `written` edits have been made.
std::vector<uint8_t> Patcher::expected_at(const Write& write, size_t written) const {
  const patch::SitePlan& plan = write.site->site->plan;
  TargetAddr at = write.edit->at;
  size_t size = std::max(write.edit->before.size(), kJumpReachBytes);
  if (at == plan.site) size = std::max(size, plan.window.size());
  auto original = write.site->site->image->original(at, size);
  std::vector<uint8_t> bytes(original.begin(), original.end());
  if (written == 0) return bytes;
  const auto& by_address = prepared_.by_address;
  auto edit_at = [&](uint32_t i) { return prepared_.writes[i].edit->at; };
  auto other = std::ranges::lower_bound(by_address, at - abi::kMaxSiteBytes, {}, edit_at);
  for (; other != by_address.end() && edit_at(*other) < at + bytes.size(); ++other) {
    const patch::Edit& edit = *prepared_.writes[*other].edit;
    for (size_t k = 0; *other < written && k < edit.after.size(); k++) {
      auto offset = static_cast<uint64_t>(edit.at + k - at);
      if (offset < bytes.size()) bytes[offset] = edit.after[k];
    }
  }
  return bytes;
}

/// The site whose window may hold the thread's rip, or the system call instruction right before it:
/// that one decides where the call is restarted, also when another window begins at rip.
const BuiltSite* Patcher::site_around(const Batch& batch, const target::StoppedThread& thread) {
  TargetAddr rip(thread.registers.rip - (thread.in_user_code() ? 0 : 1));
  auto after = std::ranges::upper_bound(batch.sites, rip, {},
                                        [](const BuiltSite* s) { return s->site->plan.site; });
  if (after == batch.sites.begin()) return nullptr;
  const BuiltSite* site = *std::prev(after);
  uint64_t bytes = std::max(site->site->plan.window.size(), patch::kPatchBytes);
  return static_cast<uint64_t>(rip - site->site->plan.site) <= bytes ? site : nullptr;
}

Result<TargetAddr> Patcher::rip_after(const BuiltSite& site,
                                      const target::StoppedThread& thread) const {
  bool in_syscall = static_cast<int64_t>(thread.registers.orig_rax) >= 0;
  return patch::rip_after_attach(site.site->plan, site.segments, TargetAddr(thread.registers.rip),
                                 in_syscall);
}

/// Threads that stand where no displaced instruction begins, and those that were interrupted inside
/// a window and will come back there when their signal handler returns.
Result<void> Patcher::find_blocked_sites(const StoppedProcess& process, const Batch& batch) {
  for (const target::StoppedThread& thread : process.threads()) {
    const BuiltSite* site = site_around(batch, thread);
    if (site != nullptr && !rip_after(*site, thread)) blocked_.insert(site->site);
  }
  std::map<TargetAddr, const PlannedSite*> heads;
  for (const BuiltSite* built : batch.sites) {
    const PlannedSite* site = built->site;
    for (uint8_t head : site->plan.heads) {
      if (head > 0 && head < site->plan.written) heads.emplace(site->plan.site + head, site);
    }
  }
  if (!heads.empty()) {
    auto interrupted = target::live_contexts(
        process, [&](TargetAddr a) { return heads.contains(a); }, private_stacks());
    for (const target::LiveContext& context : interrupted.found)
      blocked_.insert(heads.at(context.rip));
    if (!interrupted.incomplete.empty()) {
      for (const auto& [head, site] : heads) blocked_.insert(site);
    }
  }
  if (blocked_.empty()) return {};
  return fail(ErrorCode::kBusy, "a thread is inside the code to be patched");
}

/// An attachment's site table and journal were made when it began.
Result<void> Patcher::check_room() const {
  if (extended_ == nullptr) return {};
  if (prepared_.writes.size() > extended_->slots.room())
    return fail(ErrorCode::kUnsupported,
                "{} places are to be changed, and the site table has room for {} more{}: start the "
                "trace anew",
                prepared_.writes.size(), extended_->slots.room(),
                extended_->unloaded.empty()
                    ? ""
                    : " (processes that it forked may still have libraries that it has unloaded)");
  if (first_semaphore_ + prepared_.semaphores.size() > abi::kMaxSemaphores)
    return fail(ErrorCode::kUnsupported, "more than {} counters of static tracepoints",
                abi::kMaxSemaphores);
  return {};
}

/// Strict mode takes the time-stamp counter away too: reading it ends the process.
bool Patcher::may_read_tsc() const {
  return shm::tsc_is_clock() && prepared_.seccomp_mode != SECCOMP_MODE_STRICT;
}

/// Under a seccomp filter a hit makes only the calls that it surely lets pass. A value that takes
/// another one would be wrong; a read that does fails and is counted.
Result<void> Patcher::check_calls(const StoppedProcess& process) {
  tid_offset_ = process.tid_offset();
  stack_offset_ = process.stack_offset();
  if (prepared_.seccomp_mode == 0) return {};
  allowed_calls_ = filtered_calls(process);
  const bool awaits = std::ranges::any_of(
      prepared_.built, [](const BuiltSite* built) { return built->site->only_awaits(); });
  if (awaits && (allowed_calls_ & abi::kCallFutex) == 0)
    warnings_.push_back(
        fmt::format("process {} runs under a seccomp filter that may forbid futex, or to restart "
                    "it: a thread that "
                    "loads a library does not wait for its probes, calls of the first 20 to 30 ms "
                    "are missed",
                    target_.pid()));
  const bool tid_is_known = tid_offset_.has_value();
  for (const NeededCall& needed : calls_needed(*context_.bundle, tid_is_known, may_read_tsc())) {
    if ((allowed_calls_ & needed.call) != 0) continue;
    if (needed.call == abi::kCallProcessVmReadv) {
      warnings_.push_back(
          fmt::format("process {} runs under a seccomp filter that may forbid {}: {} can read only "
                      "the stack of "
                      "the main thread and read-only data; other reads fail and are counted",
                      target_.pid(), needed.name, needed.who));
      continue;
    }
    return fail(
        ErrorCode::kDenied,
        "a hit would need the system call {} for {}, and the process runs under a seccomp "
        "filter that forbids it, or that cannot be read without CAP_SYS_ADMIN: leave {} out "
        "of the script{}",
        needed.name, needed.who, needed.who,
        os::has_capability(os::kCapSysAdmin) ? "" : ", or run as root");
  }
  return {};
}

}  // namespace spile::user_engine
