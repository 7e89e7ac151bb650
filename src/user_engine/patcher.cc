#include "user_engine/patcher.h"

#include <unistd.h>

#include <algorithm>
#include <thread>

#include "abi/data_region.h"
#include "abi/pending.h"
#include "abi/private_stack.h"
#include "os/process.h"
#include "user_engine/detach.h"

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

constexpr int kMaxBatchAttempts = 4;

}  // namespace

/// Empty where there are none.
AddressRange Patcher::private_stacks() const {
  const auto& base = prepared_.addresses.stacks_base;
  return base ? AddressRange{*base, *base + abi::kPrivatePoolBytes} : AddressRange{};
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
    auto slot = slots.take(&site);
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
  sites.reserve(prepared_.built.size());
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
  attachment->sites.reserve(prepared_.built.size());
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
