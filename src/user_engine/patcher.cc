#include "user_engine/patcher.h"

#include <linux/seccomp.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <map>
#include <numeric>
#include <thread>

#include "abi/data_region.h"
#include "abi/pending.h"
#include "abi/private_stack.h"
#include "os/process.h"
#include "user_engine/detach.h"
#include "user_engine/hit_calls.h"
#include "user_engine/sentries.h"
#include "user_engine/target/threads_inside.h"
#include "x86/format.h"

namespace spile::user_engine {

using target::AddressRange;
using target::StoppedProcess;
using target::Target;

namespace {

/// What the site table says of a site: the first of its probes.
uint32_t first_probe(const PlannedSite& site) {
  for (const auto& list : site.actions) {
    for (const Action& action : list) {
      if (action.probe >= 0) return static_cast<uint32_t>(action.probe);
    }
  }
  return abi::kNoProbe;
}

constexpr std::string_view kCodeName = "spile-code", kDataName = "spile-data";
/// Bytes from an edit on that may be part of its jump: a prefixed jump of one own byte more.
constexpr size_t kJumpReachBytes = 8;
constexpr int kMaxBatchAttempts = 4;

bool is_in(const std::vector<RegionRange>& ranges, TargetAddr a) {
  return std::ranges::any_of(ranges, [&](const RegionRange& r) { return r.range.contains(a); });
}

uint64_t page_of(TargetAddr a) {
  return a.value / kPageBytes;
}

}  // namespace

/// The plan was made while the target ran: since then a library may have gone, or another tool may
/// have come. The bytes behind an edit may be part of its jump.
Result<void> Patcher::check_unchanged(const StoppedProcess& process,
                                      const Batch& batch,
                                      size_t written) const {
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
      if (readable == 0) {
        return fail(ErrorCode::kUnsafe,
                    "the code at {} has been unloaded since it was looked at: try again", at);
      }
      if (readable < own ||
          !std::ranges::equal(now.first(readable), std::span(expected).first(readable)))
        return fail(ErrorCode::kUnsafe,
                    "the code at {} has changed since it was looked at: unloaded, or patched by "
                    "another tool (it holds {}, not {})",
                    at, x86::hex(now.first(readable)),
                    x86::hex(std::span(expected).first(readable)));
    }
    first = i;
  }
  return {};
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

/// Empty where there are none.
AddressRange Patcher::private_stacks() const {
  const auto& base = prepared_.addresses.stacks_base;
  return base ? AddressRange{*base, *base + abi::kPrivatePoolBytes} : AddressRange{};
}

std::vector<target::RegionSpec> Patcher::region_specs() const {
  using Kind = target::RegionSpec::Kind;
  const AddressPlan& addresses = prepared_.addresses;
  std::vector<target::RegionSpec> specs;
  // Where the process runs before the code is written, it need not wait for the pages.
  bool later = needs_many_stops();
  const std::string code_name(extended_ != nullptr ? target::kLateCodeName : kCodeName);
  for (const CodeImage& code : prepared_.code) {
    specs.push_back({Kind::kCode, code_name, code.base, code.bytes.size(), !later, later});
  }
  if (addresses.trap_page) {
    specs.push_back({Kind::kCode, std::string(kCodeName), addresses.trap_page->start,
                     addresses.trap_page->size(), true});
  }
  if (!addresses.stone_pages.empty()) {
    target::RegionSpec stones{Kind::kCode, code_name, {}, 0, true};
    for (const AddressRange& page : addresses.stone_pages) stones.add_piece(page);
    specs.push_back(std::move(stones));
  }
  if (extended_ != nullptr) return specs;
  specs.push_back({Kind::kData, std::string(kDataName), addresses.data_base,
                   prepared_.layout.size_bytes, false});
  specs.push_back({Kind::kPrivate, {}, addresses.private_base, kPageBytes, true});
  if (addresses.pending_base) {
    target::RegionSpec pending{
        Kind::kPrivate, {}, *addresses.pending_base, abi::kPendingTableBytes, false};
    pending.kept_by_fork = true;
    specs.push_back(std::move(pending));
  }
  if (addresses.stacks_base) {
    target::RegionSpec stacks{
        Kind::kPrivate, {}, *addresses.stacks_base, abi::kPrivatePoolBytes, false};
    stacks.kept_by_fork = true;
    specs.push_back(std::move(stacks));
  }
  return specs;
}

/// An attachment's site table and journal were made when it began.
Result<void> Patcher::check_room() const {
  if (extended_ == nullptr) return {};
  if (prepared_.writes.size() > extended_->slots.room())
    return fail(ErrorCode::kUnsupported,
                "{} places are to be changed, and the site table has room for {} more: start the "
                "trace anew",
                prepared_.writes.size(), extended_->slots.room());
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
        fmt::format("process {} runs under a seccomp filter that may forbid futex: a thread that "
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

Result<void> Patcher::map_regions(StoppedProcess& process) {
  SPILE_TRY(auto memories, target::map_shared(process, region_specs()));
  mapped_ = true;
  code_.clear();
  for (target::RemoteMemory& memory : memories) {
    if (memory.spec.kind == target::RegionSpec::Kind::kCode) code_.push_back(std::move(memory));
    if (memory.spec.kind == target::RegionSpec::Kind::kData) data_ = std::move(memory.local);
  }
  // Now, while nothing can change: later the target may be gone, and its children still have them.
  SPILE_TRY(auto maps, target_.maps());
  mappings_ = target::our_mappings(maps);
  if (extended_ != nullptr)
    std::erase_if(mappings_, [&](const os::MapEntry& m) { return !is_in(ranges(), m.start); });
  return {};
}

/// Fresh memory is zero, as most of the image is.
Result<void> Patcher::fill_data() {
  if (extended_ != nullptr) return {};
  static constexpr std::array<uint8_t, kPageBytes> kZeroes{};
  auto from = prepared_.image.bytes();
  auto to = data_.bytes();
  for (size_t at = 0; at < from.size(); at += kPageBytes) {
    if (std::memcmp(&from[at], kZeroes.data(), kPageBytes) != 0)
      std::memcpy(&to[at], &from[at], kPageBytes);
  }
  SPILE_TRY(region_, shm::Region::view(to, prepared_.layout));
  context_.clock->publish(region_.time_page());
  return {};
}

abi::RtConsts Patcher::constants(const CodeImage& code) const {
  abi::RtConsts consts =
      shm::consts_for(prepared_.layout, prepared_.addresses.data_base.value, code.base.value);
  consts.saved_offset = code.saved_offset;
  consts.saved_count = code.saved_count;
  if (may_read_tsc()) consts.flags |= abi::kTscIsClock;
  if (tid_offset_) {
    consts.tid_source = abi::TidSource::kFsField;
    consts.tid_fs_offset = static_cast<int32_t>(*tid_offset_);
  }
  if (stack_offset_) consts.stack_fs_offset = static_cast<int32_t>(*stack_offset_);
  consts.allowed_calls = allowed_calls_;
  if (auto status = os::read_status(target_.pid());
      status && status->innermost_tid != target_.pid()) {
    consts.tgid_inside = static_cast<uint32_t>(status->innermost_tid);
    consts.tgid_outside = static_cast<uint32_t>(target_.pid());
  }
  consts.wipe_on_fork = prepared_.addresses.private_base.value;
  if (prepared_.addresses.pending_base)
    consts.pending_table = prepared_.addresses.pending_base->value;
  if (prepared_.addresses.stacks_base) {
    consts.private_pool = prepared_.addresses.stacks_base->value;
    consts.private_first = consts.private_pool + abi::private_control_offset(0);
    consts.private_end = consts.private_first + abi::kPrivatePoolBytes;
  }
  consts.main_stack_begin = prepared_.main_stack.begin;
  consts.main_stack_end = prepared_.main_stack.end;
  consts.safe_range_count = static_cast<uint32_t>(prepared_.safe_ranges.size());
  std::ranges::copy(prepared_.safe_ranges, consts.safe_ranges);
  return consts;
}

Result<void> Patcher::fill_code() {
  for (size_t i = 0; i < prepared_.code.size(); i++) {
    const CodeImage& code = prepared_.code[i];
    SPILE_TRY_VOID(target::allocate_pages(code_[i]));
    std::span<uint8_t> memory = code_[i].local.bytes();
    std::memcpy(memory.data(), code.bytes.data(), code.bytes.size());
    SPILE_TRY(uint64_t bodies, shm::write_code_prefix(memory, prepared_.layout, constants(code)));
    SPILE_CHECK(bodies <= abi::bodies_offset(prepared_.layout.maps.size()));
  }
  fill_trap_page();
  fill_stones();
  keep_views();
  return {};
}

/// Our writable views stay for switching probes, the only ones there are and will be: the files are
/// sealed. That of the stones goes.
void Patcher::keep_views() {
  if (extended_ != nullptr) {
    for (size_t i = 0; i < prepared_.code.size(); i++)
      extended_->switches.add(prepared_.code[i], std::move(code_[i].local));
    code_.clear();
    return;
  }
  switches_ = Switches(context_.bundle->probes.size());
  // Entries are noted for returns all the time: else a return after a pause would find the entry of
  // an earlier call at the same place of the stack.
  for (size_t i = 0; i < context_.bundle->probes.size(); i++) {
    if (context_.bundle->probes[i].entry_of >= 0) switches_.keep_on(i);
  }
  for (size_t i = 0; i < prepared_.code.size(); i++)
    switches_.add(prepared_.code[i], std::move(code_[i].local));
  code_.clear();
  if (!context_.paused) return;
  std::vector<int> all;
  for (size_t i = 0; i < context_.bundle->probes.size(); i++) {
    if (!is_sentry(context_.bundle->probes[i])) all.push_back(static_cast<int>(i));
  }
  switches_.set(all, false);
}

void Patcher::fill_trap_page() {
  if (!prepared_.addresses.trap_page) return;
  std::ranges::copy(prepared_.trap_page, code_[prepared_.code.size()].local.bytes().begin());
}

void Patcher::fill_stones() {
  const AddressPlan& addresses = prepared_.addresses;
  if (addresses.stone_pages.empty()) return;
  std::span<uint8_t> memory = code_.back().local.bytes();
  std::ranges::fill(memory, uint8_t{0xcc});
  std::vector<size_t> offsets;  // of each range of pages in the file
  size_t total = 0;
  for (const AddressRange& range : addresses.stone_pages) {
    offsets.push_back(total);
    total += range.size();
  }
  for (const BuiltSite* built : prepared_.built) {
    auto placed = addresses.placements.find(built->site);
    if (placed == addresses.placements.end()) continue;
    TargetAddr stone = placed->second.stone;
    auto after = std::ranges::upper_bound(addresses.stone_pages, stone, {}, &AddressRange::start);
    SPILE_CHECK(after != addresses.stone_pages.begin() && std::prev(after)->contains(stone));
    auto i = static_cast<size_t>(std::prev(after) - addresses.stone_pages.begin());
    auto bytes = patch::stone_bytes(stone, built->detour);
    std::ranges::copy(
        bytes, &memory[offsets[i] + static_cast<size_t>(stone - addresses.stone_pages[i].start)]);
  }
}

void Patcher::set_state(abi::JournalState state) {
  // Of an attachment that is there already: each entry speaks for itself.
  if (extended_ != nullptr) return;
  __atomic_store_n(reinterpret_cast<uint32_t*>(&region_.journal_untrusted().state),
                   static_cast<uint32_t>(state), __ATOMIC_RELEASE);
}

/// Whose the mappings are: another spile that finds them leaves them alone.
void Patcher::begin_journal() {
  if (extended_ != nullptr) return;
  abi::Journal& journal = region_.journal_untrusted();
  journal.magic = abi::kJournalMagic;
  journal.version = abi::kJournalVersion;
  journal.tracer_pid = static_cast<uint32_t>(getpid());
  journal.target_pid = static_cast<uint32_t>(target_.pid());
  if (auto stat = os::read_stat(getpid(), getpid())) journal.tracer_start_time = stat->start_time;
  journal.target_start_time = target_.start_time();
  journal.region_count = 0;
  for (const CodeImage& code : prepared_.code) {
    if (journal.region_count + 4 < abi::kMaxRegions) {
      journal.regions[journal.region_count++] = {code.base.value, code.bytes.size(), 0,
                                                 abi::RegionKind::kCode, 0};
    }
  }
  journal.regions[journal.region_count++] = {prepared_.addresses.data_base.value,
                                             prepared_.layout.size_bytes, 0, abi::RegionKind::kData,
                                             0};
  journal.regions[journal.region_count++] = {prepared_.addresses.private_base.value, kPageBytes, 0,
                                             abi::RegionKind::kPerThread, 0};
  if (prepared_.addresses.pending_base) {
    journal.regions[journal.region_count++] = {prepared_.addresses.pending_base->value,
                                               abi::kPendingTableBytes, 0,
                                               abi::RegionKind::kPending, 0};
  }
  if (prepared_.addresses.stacks_base) {
    journal.regions[journal.region_count++] = {prepared_.addresses.stacks_base->value,
                                               abi::kPrivatePoolBytes, 0,
                                               abi::RegionKind::kStackPool, 0};
  }
  set_state(abi::JournalState::kMapped);
  journaled_ = true;
}

/// Before the first code byte changes, everything that undoing it takes is in the journal.
void Patcher::write_journal_ahead() {
  auto entries = region().sites_untrusted();
  SiteSlots& slots = extended_ != nullptr ? extended_->slots : slots_;
  if (extended_ == nullptr) slots = SiteSlots(static_cast<uint32_t>(entries.size()));
  slot_of_write_.clear();
  for (size_t i = 0; i < prepared_.writes.size(); i++) {
    const patch::Edit& edit = *prepared_.writes[i].edit;
    const PlannedSite& site = *prepared_.writes[i].site->site;
    abi::SiteEntry entry = {};
    entry.address = edit.at.value;
    entry.file_offset = site.image->file_offset(edit.at).value;
    entry.detour = prepared_.writes[i].site->detour.value;
    entry.cookie = first_probe(site);
    entry.length = static_cast<uint8_t>(edit.after.size());
    entry.level = edit.level;
    entry.is_site = &edit == &prepared_.writes[i].site->edits.back() ? 1 : 0;
    std::ranges::copy(edit.before, entry.original);
    std::ranges::copy(edit.after, entry.patched);
    entry.state = abi::SiteState::kPlanned;
    auto slot = slots.take();
    SPILE_CHECK(slot.has_value());
    slot_of_write_.push_back(*slot);
    entries[*slot] = entry;
  }
  abi::Journal& journal = region().journal_untrusted();
  __atomic_store_n(&journal.site_count, slots.used(), __ATOMIC_RELEASE);
  list_semaphores(prepared_.semaphores, journal, first_semaphore_);
  set_state(abi::JournalState::kPatching);
}

/// A thread that is stopped inside a window continues in the copy. The jump is not there yet, so
/// both ways are right and a tracer that dies here has done no harm.
Result<void> Patcher::move_threads(StoppedProcess& process, const Batch& batch) {
  for (size_t i = 0; i < process.threads().size(); i++) {
    const target::StoppedThread& thread = process.threads()[i];
    const BuiltSite* site = site_around(batch, thread);
    if (site == nullptr) continue;
    SPILE_TRY(TargetAddr moved, rip_after(*site, thread));
    if (moved.value == thread.registers.rip) continue;
    os::Registers registers = thread.registers;
    registers.rip = moved.value;
    SPILE_TRY_VOID(process.set_registers(i, registers));
  }
  return {};
}

/// One write a page: the edits of one level on one page change together.
Result<void> Patcher::write_jumps(const StoppedProcess& process, const Batch& batch) {
  const size_t end = batch.first + batch.count;
  for (size_t first = batch.first; first < end;) {
    size_t last = first;
    while (last + 1 < end &&
           prepared_.writes[last + 1].edit->level == prepared_.writes[first].edit->level &&
           page_of(prepared_.writes[last + 1].edit->at) ==
               page_of(prepared_.writes[first].edit->at))
      last++;
    SPILE_TRY_VOID(write_page(process, first, last));
    first = last + 1;
  }
  return {};
}

Result<void> Patcher::write_page(const StoppedProcess& process, size_t first, size_t last) {
  TargetAddr start = prepared_.writes[first].edit->at;
  const patch::Edit& end = *prepared_.writes[last].edit;
  std::vector<uint8_t> bytes(static_cast<size_t>(end.at - start) + end.after.size());
  SPILE_TRY_VOID(process.memory().read(start, bytes));
  for (size_t i = first; i <= last; i++)
    std::ranges::copy(prepared_.writes[i].edit->after,
                      bytes.begin() + (prepared_.writes[i].edit->at - start));
  auto written = process.memory().write(start, bytes);
  if (!written) return forward(written, "write {} jumps at {}", last - first + 1, start);
  if (slot_of_write_.empty()) return {};  // again: it says so already
  auto entries = region().sites_untrusted();
  for (size_t i = first; i <= last; i++) {
    __atomic_store_n(reinterpret_cast<uint8_t*>(&entries[slot_of_write_[i]].state),
                     static_cast<uint8_t>(abi::SiteState::kPatched), __ATOMIC_RELEASE);
  }
  return {};
}

void Patcher::note_stop(const StoppedProcess& process) {
  stopped_ns_ = std::max(stopped_ns_, static_cast<uint64_t>(process.stopped_for().count()));
}

/// Before the first byte changes: from here on whoever meets an int3 finds the handler.
Result<void> Patcher::take_sigtrap(StoppedProcess& process) {
  if (!prepared_.addresses.trap_page || has_sigtrap_) return {};
  auto taken = user_engine::take_sigtrap(process, prepared_.addresses.trap_page->start,
                                         prepared_.addresses.data_base + abi::kScratchOffset);
  if (!taken && taken.error().code == ErrorCode::kBusy) no_traps_ = taken.error().message;
  has_sigtrap_ = taken.has_value();
  return taken;
}

Result<void> Patcher::patch(StoppedProcess& process, const Batch& batch) {
  SPILE_TRY_VOID(take_sigtrap(process));
  SPILE_TRY_VOID(move_threads(process, batch));
  return write_jumps(process, batch);
}

/// With the last jumps: what goes up while a place is not probed yet would only cost.
Result<void> Patcher::raise_semaphores(const StoppedProcess& process) {
  abi::Journal& journal = region().journal_untrusted();
  auto raised = user_engine::raise_semaphores(process.memory(), journal, first_semaphore_);
  prepared_.semaphores = listed_semaphores(journal);
  return raised;
}

Result<void> Patcher::commit(StoppedProcess& process) {
  for (const Batch& batch : prepared_.batches) {
    SPILE_TRY_VOID(check_unchanged(process, batch, 0));
    SPILE_TRY_VOID(find_blocked_sites(process, batch));
  }
  SPILE_TRY_VOID(check_room());
  SPILE_TRY_VOID(check_calls(process));
  if (prepared_.addresses.trap_page) {
    auto possible = check_traps_possible(process);
    if (!possible) no_traps_ = possible.error().message;
    SPILE_TRY_VOID(std::move(possible));
  }
  SPILE_TRY_VOID(map_regions(process));
  // Beyond this point the target has mappings of ours, and nothing in it uses them.
  SPILE_TRY_VOID(fill_data());
  SPILE_TRY_VOID(fill_code());
  if (context_.before_patch) SPILE_TRY_VOID(context_.before_patch());
  begin_journal();
  write_journal_ahead();
  // Beyond this point every change can be undone by whoever finds the journal.
  for (const Batch& batch : prepared_.batches) SPILE_TRY_VOID(patch(process, batch));
  SPILE_TRY_VOID(raise_semaphores(process));
  set_state(abi::JournalState::kAttached);
  note_stop(process);
  return {};
}

Result<void> Patcher::commit_again(StoppedProcess& process) {
  for (const Batch& batch : prepared_.batches) {
    SPILE_TRY_VOID(check_unchanged(process, batch, 0));
    SPILE_TRY_VOID(find_blocked_sites(process, batch));
  }
  Result<void> done;
  for (const Batch& batch : prepared_.batches) {
    if (done) done = move_threads(process, batch);
    if (done) done = write_jumps(process, batch);
  }
  if (!done) {
    auto undone = undo_in_stop(process, patched_sites(), {}, {});
    if (!undone) return forward(undone, "after: {}", done.error().message);
    return done;
  }
  extended_->stopped_ns =
      std::max(extended_->stopped_ns, static_cast<uint64_t>(process.stopped_for().count()));
  return {};
}

Result<void> Patcher::commit_first_of_many(StoppedProcess& process) {
  SPILE_TRY_VOID(check_room());
  SPILE_TRY_VOID(check_calls(process));
  SPILE_TRY_VOID(map_regions(process));
  SPILE_TRY_VOID(fill_data());
  begin_journal();
  note_stop(process);
  return {};
}

/// Threads that are in the way of a batch may be elsewhere a moment later.
Result<void> Patcher::patch_in_stop_of_its_own(const Batch& batch) {
  for (int attempt = 1;; attempt++) {
    blocked_.clear();
    auto done = target::with_tracer_thread([&]() -> Result<void> {
      SPILE_TRY(auto process, StoppedProcess::stop(target_));
      SPILE_TRY_VOID(check_unchanged(process, batch, batch.first));
      SPILE_TRY_VOID(find_blocked_sites(process, batch));
      SPILE_TRY_VOID(patch(process, batch));
      if (&batch == &prepared_.batches.back()) SPILE_TRY_VOID(raise_semaphores(process));
      note_stop(process);
      return {};
    });
    if (done || done.error().code != ErrorCode::kBusy || attempt == kMaxBatchAttempts) return done;
    std::this_thread::sleep_for(std::chrono::milliseconds(2 * attempt));
  }
}

Result<void> Patcher::commit_rest() {
  SPILE_TRY_VOID(fill_code());
  if (context_.before_patch) SPILE_TRY_VOID(context_.before_patch());
  write_journal_ahead();
  for (const Batch& batch : prepared_.batches) SPILE_TRY_VOID(patch_in_stop_of_its_own(batch));
  set_state(abi::JournalState::kAttached);
  return {};
}

void Patcher::roll_back(StoppedProcess& process) {
  if (!std::exchange(mapped_, false)) return;
  bool undone = undo_in_stop(process, patched_sites(), prepared_.semaphores, ranges()).has_value();
  forget_regions(undone);
}

/// The process has run with some of our jumps in it.
void Patcher::roll_back_running() {
  if (!std::exchange(mapped_, false)) return;
  bool undone =
      undo_running(target_, patched_sites(), prepared_.semaphores, ranges(), mappings_).has_value();
  forget_regions(undone);
}

void Patcher::forget_regions(bool undone) {
  if (extended_ != nullptr) {
    // What could not be undone stays the attachment's: its end tries again.
    if (!undone) return join();
    give_back_slots();
    code_.clear();
    return;
  }
  // Where that failed, whoever comes next may take it out: nobody lives who needs it.
  if (!undone && journaled_)
    __atomic_store_n(&region_.journal_untrusted().tracer_pid, 0, __ATOMIC_RELEASE);
  journaled_ = false;
  region_ = {};
  data_.reset();
  code_.clear();
  switches_ = Switches();
}

void Patcher::give_back_slots() {
  auto entries = region().sites_untrusted();
  for (uint32_t slot : slot_of_write_) {
    entries[slot].state = abi::SiteState::kEmpty;
    extended_->slots.give_back(slot);
  }
  slot_of_write_.clear();
}

std::vector<PatchedSite> Patcher::patched_sites() const {
  std::vector<PatchedSite> sites;
  for (const BuiltSite* b : prepared_.built)
    sites.push_back({b->site, b->detour, b->segments, b->edits, b->stack_bytes});
  return sites;
}

/// In the order in which they are taken out: the data region last, for as long as anything is there
/// the journal is too.
std::vector<RegionRange> Patcher::ranges() const {
  const AddressPlan& addresses = prepared_.addresses;
  std::vector<RegionRange> ranges;
  for (const CodeImage& code : prepared_.code)
    ranges.push_back({abi::RegionKind::kCode, {code.base, code.base + code.bytes.size()}});
  for (const AddressRange& page : addresses.stone_pages)
    ranges.push_back({abi::RegionKind::kCode, page});
  if (addresses.trap_page) ranges.push_back({abi::RegionKind::kCode, *addresses.trap_page});
  if (extended_ != nullptr) return ranges;
  if (addresses.pending_base) {
    ranges.push_back(
        {abi::RegionKind::kPending,
         {*addresses.pending_base, *addresses.pending_base + abi::kPendingTableBytes}});
  }
  if (addresses.stacks_base) ranges.push_back({abi::RegionKind::kStackPool, private_stacks()});
  ranges.push_back(
      {abi::RegionKind::kPerThread, {addresses.private_base, addresses.private_base + kPageBytes}});
  ranges.push_back({abi::RegionKind::kData,
                    {addresses.data_base, addresses.data_base + prepared_.layout.size_bytes}});
  return ranges;
}

std::unique_ptr<Attachment> Patcher::finish() {
  auto attachment = std::make_unique<Attachment>();
  attachment->pid = target_.pid();
  attachment->ranges = ranges();
  attachment->semaphores = std::move(prepared_.semaphores);
  for (BuiltSite* b : prepared_.built) {
    attachment->sites.push_back(
        {b->site, b->detour, std::move(b->segments), std::move(b->edits), b->stack_bytes});
  }
  attachment->addresses = std::move(prepared_.addresses);
  attachment->mappings = std::move(mappings_);
  attachment->data = std::move(data_);
  attachment->region = std::move(region_);
  attachment->switches = std::move(switches_);
  attachment->stopped_ns = stopped_ns_;
  attachment->warnings = std::move(warnings_);
  attachment->slots = std::move(slots_);
  return attachment;
}

void Patcher::join() {
  Attachment& to = *extended_;
  joined_ = true;
  // Before those that were there: the data region is taken out last.
  auto mine = ranges();
  to.ranges.insert(to.ranges.begin(), mine.begin(), mine.end());
  if (!prepared_.semaphores.empty())
    to.semaphores = listed_semaphores(region().journal_untrusted());
  for (BuiltSite* b : prepared_.built) {
    to.sites.push_back(
        {b->site, b->detour, std::move(b->segments), std::move(b->edits), b->stack_bytes});
  }
  to.additions.back().addresses = std::move(prepared_.addresses);
  std::ranges::move(mappings_, std::back_inserter(to.late_mappings));
  std::ranges::move(warnings_, std::back_inserter(to.warnings));
  to.stopped_ns = std::max(to.stopped_ns, stopped_ns_);
}

}  // namespace spile::user_engine
