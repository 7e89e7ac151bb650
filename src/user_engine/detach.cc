#include "user_engine/detach.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <cstring>
#include <filesystem>
#include <map>
#include <set>
#include <thread>

#include "base/fd.h"
#include "os/process.h"
#include "user_engine/target/inject.h"
#include "user_engine/target/stopped.h"
#include "user_engine/target/threads_inside.h"
#include "x86/format.h"

namespace spile::user_engine {

using target::AddressRange;
using target::StoppedProcess;
using target::Target;

namespace {

constexpr uint64_t kPageBytes = 4096;
constexpr auto kSlowStop = std::chrono::milliseconds(100);
constexpr int kSlowStops =
    3;  ///< a thread that cannot be stopped (vfork, dead disk) is asked this often
constexpr int kStops =
    60;  ///< times a process is stopped again until its threads have left our code
constexpr uint64_t kMaxRegionBytes = uint64_t{1} << 33;

/// A jump of ours and what was there before.
struct Jump {
  TargetAddr address;
  std::vector<uint8_t> original, patched;
  const x86::RelocatedCode* displaced =
      nullptr;  ///< null for an adopter: threads in the copy are waited for
};

/// What is to be undone in one process. The same for its forked children.
struct Job {
  std::vector<Jump> jumps;            ///< by address
  std::vector<AddressRange> code;     ///< where a thread may be
  std::vector<AddressRange> unmap;    ///< in this order: the journal's own region last
  std::optional<TargetAddr> journal;  ///< its address in the target
  uint64_t tracer_start_time = 0;     ///< clock ticks since boot; 0: not known
  bool adopted = false;               ///< left by another tracer
  std::set<uint64_t> inodes;          ///< of an adopted job's memory files
  std::vector<os::MapEntry>
      mappings;  ///< our memory files in the process: a forked child has exactly these
};

uint64_t page_of(TargetAddr a) {
  return a.value / kPageBytes;
}

bool in_any(const std::vector<AddressRange>& ranges, TargetAddr a) {
  return std::ranges::any_of(ranges, [&](const AddressRange& r) { return r.contains(a); });
}

/// One stop of one process: what has been done and what still stands in the way.
class Undo {
 public:
  Undo(const Target& target, const Job& job, DetachReport& report)
      : target_(target), job_(job), report_(report) {}

  Result<void> run();
  /// For a process in which no thread has run since it was patched.
  Result<void> in_stop(StoppedProcess& process);

 private:
  Result<bool> once(bool last);
  Result<std::vector<AddressRange>> ranges_to_unmap();
  Result<void> restore();
  Result<void> unmap(StoppedProcess& process, const std::vector<AddressRange>& ranges);
  Result<void> set_state(abi::JournalState state);
  Result<void> restore_bytes();
  Result<void> move_threads(StoppedProcess& process);
  std::vector<pid_t> threads_inside(const StoppedProcess& process) const;

  const Target& target_;
  const Job& job_;
  DetachReport& report_;
  bool restored_ = false;
  bool refused_ = false;  ///< a living tracer holds the process: asking again will not help
};

Result<void> Undo::set_state(abi::JournalState state) {
  if (!job_.journal) return {};
  auto value = static_cast<uint32_t>(state);
  return target_.memory().write(*job_.journal + abi::kJournalOffset + offsetof(abi::Journal, state),
                                {reinterpret_cast<const uint8_t*>(&value), sizeof value});
}

/// The jumps of a page go in one write.
Result<void> Undo::restore_bytes() {
  for (size_t first = 0; first < job_.jumps.size();) {
    size_t last = first;
    while (last + 1 < job_.jumps.size() &&
           page_of(job_.jumps[last + 1].address) == page_of(job_.jumps[first].address))
      last++;
    TargetAddr start = job_.jumps[first].address;
    std::vector<uint8_t> bytes(static_cast<size_t>(job_.jumps[last].address - start) +
                               job_.jumps[last].patched.size());
    auto readable = target_.memory().read(start, bytes);
    bool changed = false;
    for (size_t i = first; readable && i <= last; i++) {
      const Jump& jump = job_.jumps[i];
      std::span<uint8_t> here(bytes.data() + (jump.address - start), jump.patched.size());
      if (std::ranges::equal(here, jump.patched)) {
        std::ranges::copy(jump.original, here.begin());
        changed = true;
        report_.restored++;
      } else if (!std::ranges::equal(here, jump.original)) {
        report_.notes.push_back(
            fmt::format("process {}: the code at {} was changed by somebody else meanwhile ({}) "
                        "and is left alone",
                        target_.pid(), jump.address, x86::hex(here)));
      }
    }
    // Unreadable: the library has been unloaded, and its jumps with it.
    if (changed) {
      auto written = target_.memory().write(start, bytes);
      if (!written) return forward(written, "restore the code at {}", start);
    }
    first = last + 1;
  }
  return {};
}

/// Threads in a displaced copy go on in the original, which is back in its place.
Result<void> Undo::move_threads(StoppedProcess& process) {
  for (size_t i = 0; i < process.threads().size(); i++) {
    os::Registers registers = process.threads()[i].registers;
    TargetAddr rip(registers.rip);
    if (!in_any(job_.code, rip)) continue;
    for (const Jump& jump : job_.jumps) {
      if (jump.displaced == nullptr) continue;
      auto resume = patch::rip_after_detach(*jump.displaced, rip);
      if (!resume) continue;
      registers.rip = resume->original.value;
      registers.rsp += resume->pop_bytes;
      SPILE_TRY_VOID(process.set_registers(i, registers));
      break;
    }
  }
  return {};
}

std::vector<pid_t> Undo::threads_inside(const StoppedProcess& process) const {
  std::set<pid_t> inside;
  for (const auto& found : target::threads_at(process, job_.code))
    inside.insert(process.threads()[found.thread].tid);
  auto interrupted = target::live_contexts(process, job_.code);
  for (const auto& found : interrupted.found) inside.insert(process.threads()[found.thread].tid);
  for (size_t thread : interrupted.incomplete) inside.insert(process.threads()[thread].tid);
  return {inside.begin(), inside.end()};
}

/// An adopter comes back stop after stop. Between two stops another may have finished the job, the
/// target may have mapped something of its own there, and a new tracer may have attached, even at
/// the same addresses.
Result<std::vector<AddressRange>> Undo::ranges_to_unmap() {
  if (!job_.adopted) return job_.unmap;
  auto free = refuse_live_owner(target_);
  if (!free) {
    refused_ = true;
    return std::unexpected(std::move(free.error()));
  }
  SPILE_TRY(auto maps, target_.maps());
  std::vector<AddressRange> ranges;
  for (const AddressRange& range : job_.unmap) {
    bool is_there = std::ranges::any_of(target::our_mappings(maps), [&](const os::MapEntry& m) {
      // A per-thread page is known by the data region behind it.
      return job_.inodes.contains(m.inode) &&
             (m.contains(range.start) || (range.size() == kPageBytes && m.start == range.end));
    });
    if (is_there) ranges.push_back(range);
  }
  return ranges;
}

Result<void> Undo::restore() {
  if (restored_) return {};
  SPILE_TRY_VOID(set_state(abi::JournalState::kDetaching));
  SPILE_TRY_VOID(restore_bytes());
  SPILE_TRY_VOID(set_state(abi::JournalState::kDetached));
  restored_ = true;
  return {};
}

Result<void> Undo::unmap(StoppedProcess& process, const std::vector<AddressRange>& ranges) {
  for (const AddressRange& range : ranges) {
    auto gone = target::unmap(process, std::span(&range, 1));
    if (!gone) return forward(gone, "unmap {}-{}", range.start, range.end);
  }
  return {};
}

Result<void> Undo::in_stop(StoppedProcess& process) {
  SPILE_TRY_VOID(restore());
  SPILE_TRY_VOID(move_threads(process));
  return unmap(process, job_.unmap);
}

/// True when nothing of ours is left.
Result<bool> Undo::once(bool last) {
  SPILE_TRY(auto process, StoppedProcess::stop(target_));
  SPILE_TRY(auto ranges, ranges_to_unmap());
  if (!ranges.empty()) {
    SPILE_TRY_VOID(restore());
    SPILE_TRY_VOID(move_threads(process));
  }
  auto inside = ranges.empty() ? std::vector<pid_t>() : threads_inside(process);
  if (!inside.empty()) {
    if (last) {
      report_.notes.push_back(
          fmt::format("process {}: thread {} may still return into our code (a signal handler that "
                      "has not come back, or a stack that cannot be searched); "
                      "the code stays mapped, nothing jumps to it any more; spile detach -p {} "
                      "removes it later",
                      target_.pid(), inside.front(), target_.pid()));
    }
    return false;
  }
  SPILE_TRY_VOID(unmap(process, ranges));
  SPILE_TRY_VOID(target::clean_leftover_stubs(process));
  // A thread that a killed tracer left in its stub is still on its way home.
  return std::ranges::none_of(target::find_leftover_stubs(process), &target::LeftoverStub::running);
}

Result<void> Undo::run() {
  for (int i = 1; i <= kStops; i++) {
    auto began = std::chrono::steady_clock::now();
    auto done = target::with_tracer_thread([&] { return once(i == kStops); });
    if (!done && done.error().code == ErrorCode::kTargetGone) return {};
    if (!done && (done.error().code != ErrorCode::kBusy || refused_ || i == kStops))
      return forward(done, "detach from process {}", target_.pid());
    if (done && *done) return {};
    // A stop that timed out has held the other threads all the while: they get ten times as long
    // before the next.
    auto held = std::chrono::steady_clock::now() - began;
    if (!done && held > kSlowStop && i >= kSlowStops)
      return forward(done, "detach from process {}", target_.pid());
    std::this_thread::sleep_for(std::max<std::chrono::nanoseconds>(
        std::chrono::milliseconds(std::min(i, 20)), done ? held * 0 : held * 10));
  }
  return {};
}

/// Inodes of our memory files in a process.
std::set<uint64_t> our_inodes(const std::vector<os::MapEntry>& maps) {
  std::set<uint64_t> inodes;
  for (const os::MapEntry& entry : target::our_mappings(maps)) inodes.insert(entry.inode);
  return inodes;
}

/// A child that was forked while its parent was traced has the same files at the same addresses.
/// Anything else that happens to map one of them is none of our business: what a hostile process
/// says of itself must not reach another.
bool has_all(const std::vector<os::MapEntry>& maps, const std::vector<os::MapEntry>& wanted) {
  bool has_code = false;
  for (const os::MapEntry& w : wanted) {
    auto same = std::ranges::find_if(
        maps, [&](const os::MapEntry& m) { return m.start == w.start && m.end == w.end; });
    if (same == maps.end() || same->inode != w.inode || same->device != w.device ||
        same->exec != w.exec || same->offset != w.offset)
      return false;
    has_code |= w.exec;
  }
  return has_code;
}

/// Other processes that share one of these memory files: children forked while the target was
/// traced, so none that is older than the tracer.
std::vector<pid_t> forked_children(const Job& job, const std::set<pid_t>& known) {
  std::vector<pid_t> found;
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator("/proc", error)) {
    std::string name = entry.path().filename();
    pid_t pid = 0;
    auto [end, bad] = std::from_chars(name.data(), name.data() + name.size(), pid);
    if (bad != std::errc() || end != name.data() + name.size() || known.contains(pid)) continue;
    auto stat = os::read_stat(pid, pid);
    if (!stat || stat->kernel_thread() || stat->start_time < job.tracer_start_time) continue;
    auto maps = os::read_maps(pid);
    if (maps && has_all(*maps, job.mappings)) found.push_back(pid);
  }
  return found;
}

/// Undoes the job in a process and in every process that it forked meanwhile, until no new one
/// turns up.
Result<DetachReport> undo_everywhere(const Target& target, const Job& job) {
  DetachReport report;
  std::set<pid_t> known{target.pid(), getpid()};
  if (target.alive()) {
    SPILE_TRY_VOID(Undo(target, job, report).run());
    report.processes++;
  }
  for (int pass = 0; pass < 20 && !job.mappings.empty(); pass++) {
    auto children = forked_children(job, known);
    if (children.empty()) break;
    for (pid_t pid : children) {
      known.insert(pid);
      auto child = Target::open(pid);
      // Looked at again through the opened process: the number may be another's by now, or it has
      // called exec.
      auto maps = child ? child->maps() : Result<std::vector<os::MapEntry>>();
      if (child && (!maps || !has_all(*maps, job.mappings))) continue;
      if (!child && child.error().code == ErrorCode::kTargetGone) continue;
      if (!child) {
        report.notes.push_back(fmt::format("process {}, forked while traced, keeps its probes: {}",
                                           pid, child.error().message));
        continue;
      }
      auto undone = Undo(*child, job, report).run();
      if (undone)
        report.processes++;
      else
        report.notes.push_back(
            fmt::format("process {}, forked while traced: {}", pid, undone.error().message));
    }
  }
  return report;
}

Job job_of(const std::vector<PatchedSite>& sites, const std::vector<RegionRange>& ranges) {
  Job job;
  for (const PatchedSite& site : sites) {
    Jump jump;
    jump.address = site.planned.plan.site;
    jump.original.assign(site.planned.plan.before.begin(), site.planned.plan.before.end());
    jump.patched.assign(site.patched.begin(), site.patched.end());
    jump.displaced = &site.displaced;
    job.jumps.push_back(std::move(jump));
  }
  for (const RegionRange& region : ranges) {
    if (region.kind == abi::RegionKind::kCode) job.code.push_back(region.range);
    if (region.kind == abi::RegionKind::kData) job.journal = region.range.start;
    job.unmap.push_back(region.range);
  }
  return job;
}

}  // namespace

Result<DetachReport> detach(Attachment& attachment) {
  Job job = job_of(attachment.sites, attachment.ranges);
  job.mappings = attachment.mappings;
  if (auto self = os::read_stat(getpid(), getpid())) job.tracer_start_time = self->start_time;
  return undo_everywhere(*attachment.target, job);
}

Result<void> undo_in_stop(StoppedProcess& process,
                          const std::vector<PatchedSite>& sites,
                          const std::vector<RegionRange>& ranges) {
  Job job = job_of(sites, ranges);
  DetachReport report;
  return Undo(process.target(), job, report).in_stop(process);
}

// ---- what others left
// ----------------------------------------------------------------------------------------------

namespace {

/// The regions of ours that a process has, joined where the kernel shows one region as several
/// lines.
struct Found {
  std::vector<AddressRange> code, data;
  std::vector<os::MapEntry> maps;
};

Result<Found> find_regions(const Target& target) {
  Found found;
  SPILE_TRY(found.maps, target.maps());
  for (const os::MapEntry& entry : target::our_mappings(found.maps)) {
    auto& list = entry.exec ? found.code : found.data;
    if (!list.empty() && list.back().end == entry.start)
      list.back().end = entry.end;
    else
      list.push_back({entry.start, entry.end});
  }
  return found;
}

/// The journal and the site table, copied out of the target and checked.
struct Adopted {
  TargetAddr address;
  abi::Journal journal;
  std::vector<abi::SiteEntry> sites;
};

Result<Adopted> read_journal(const Target& target, const AddressRange& data) {
  if (data.size() > kMaxRegionBytes || data.size() < 4 * kPageBytes)
    return fail(ErrorCode::kCorrupt, "a region of {} bytes", data.size());
  Adopted adopted;
  adopted.address = data.start;
  SPILE_TRY(auto header, target.memory().read_value<abi::DataHeader>(data.start));
  SPILE_TRY(adopted.journal,
            target.memory().read_value<abi::Journal>(data.start + abi::kJournalOffset));
  if (header.magic != abi::kDataMagic || header.version != abi::kAbiVersion)
    return fail(ErrorCode::kCorrupt, "no header");
  if (adopted.journal.magic != abi::kJournalMagic) return fail(ErrorCode::kNotFound, "no journal");
  uint64_t table_bytes = uint64_t{adopted.journal.site_count} * sizeof(abi::SiteEntry);
  if (header.sites_offset > data.size() || table_bytes > data.size() - header.sites_offset) {
    return fail(ErrorCode::kCorrupt, "a journal of {} sites", adopted.journal.site_count);
  }
  adopted.sites.resize(adopted.journal.site_count);
  SPILE_TRY_VOID(
      target.memory().read(data.start + header.sites_offset,
                           {reinterpret_cast<uint8_t*>(adopted.sites.data()), table_bytes}));
  return adopted;
}

/// The bytes that the file behind `address` has there.
std::vector<uint8_t> file_bytes(const Target& target,
                                const std::vector<os::MapEntry>& maps,
                                TargetAddr address,
                                size_t size) {
  for (const os::MapEntry& m : maps) {
    if (!m.contains(address) || m.path.empty()) continue;
    std::string path = fmt::format("/proc/{}/root{}", target.pid(), m.path);
    if (m.deleted)
      path = fmt::format("/proc/{}/map_files/{:x}-{:x}", target.pid(), m.start.value, m.end.value);
    Fd fd(open(path.c_str(), O_RDONLY | O_CLOEXEC));
    std::vector<uint8_t> bytes(size);
    auto offset = static_cast<off_t>(m.offset + static_cast<uint64_t>(address - m.start));
    if (fd && pread(fd.get(), bytes.data(), size, offset) == static_cast<ssize_t>(size))
      return bytes;
  }
  return {};
}

/// Nothing in the table is taken on trust: a jump is undone only if it leads into our code and the
/// saved bytes are those of the file.
std::optional<Jump> believe(const Target& target, const Found& found, const abi::SiteEntry& entry) {
  if (entry.length != patch::kPatchBytes || entry.patched[0] != 0xe9) return std::nullopt;
  int32_t distance = 0;
  std::memcpy(&distance, entry.patched + 1, sizeof distance);
  TargetAddr address(entry.address);
  TargetAddr to =
      address + patch::kPatchBytes + static_cast<uint64_t>(static_cast<int64_t>(distance));
  if (!in_any(found.code, to)) return std::nullopt;
  Jump jump;
  jump.address = address;
  jump.original.assign(entry.original, entry.original + entry.length);
  jump.patched.assign(entry.patched, entry.patched + entry.length);
  if (file_bytes(target, found.maps, address, entry.length) != jump.original) return std::nullopt;
  return jump;
}

/// The tracer had come further than its regions tell: the original bytes are back already.
bool is_restored(const Target& target, const abi::SiteEntry& entry) {
  if (entry.length > abi::kMaxSiteBytes) return false;
  std::vector<uint8_t> now(entry.length);
  return target.memory().read(TargetAddr(entry.address), now) &&
         std::equal(now.begin(), now.end(), entry.original);
}

Job job_of(const Target& target, const Found& found, DetachReport& report) {
  Job job;
  job.adopted = true;
  job.inodes = our_inodes(found.maps);
  job.code = found.code;
  job.unmap = found.code;
  job.mappings = target::our_mappings(found.maps);
  for (const AddressRange& data : found.data) {
    auto adopted = read_journal(target, data);
    // The page below a data region is its per-thread page.
    for (const os::MapEntry& m : found.maps) {
      bool is_ours = m.end == data.start && m.size() == kPageBytes && m.inode == 0 && m.read &&
                     m.write && !m.exec && !m.shared && m.path.empty();
      if (is_ours) job.unmap.push_back({m.start, m.end});
    }
    job.unmap.push_back(data);
    if (!adopted) continue;
    job.journal = data.start;
    // The target may write here, so it may hide its own children from the clean-up; nobody else's.
    job.tracer_start_time = adopted->journal.tracer_start_time;
    for (const abi::SiteEntry& entry : adopted->sites) {
      if (entry.state == abi::SiteState::kEmpty) continue;
      auto jump = believe(target, found, entry);
      if (jump)
        job.jumps.push_back(std::move(*jump));
      else if (!is_restored(target, entry))
        report.notes.push_back(fmt::format(
            "process {}: the journal's entry for {:#x} does not hold up and is not used",
            target.pid(), entry.address));
    }
  }
  std::ranges::sort(job.jumps, {}, &Jump::address);
  return job;
}

/// A jump into our code that no journal entry explains.
std::optional<TargetAddr> unknown_jump(std::span<const uint8_t> memory,
                                       TargetAddr start,
                                       const Found& found,
                                       const Job& job) {
  for (size_t i = 0; i + patch::kPatchBytes <= memory.size(); i++) {
    if (memory[i] != 0xe9) continue;
    int32_t distance = 0;
    std::memcpy(&distance, memory.data() + i + 1, sizeof distance);
    TargetAddr at = start + i;
    TargetAddr to = at + patch::kPatchBytes + static_cast<uint64_t>(static_cast<int64_t>(distance));
    bool known = std::ranges::any_of(job.jumps, [&](const Jump& j) { return j.address == at; });
    if (in_any(found.code, to) && !known) return at;
  }
  return std::nullopt;
}

/// Where a module may hold jumps: where its memory is not what its file has, and some bytes around,
/// since a punned jump shares bytes with the file. All of its code where there is no file to
/// compare with.
std::vector<AddressRange> changed_code(const Target& target, const target::Module& module) {
  std::vector<AddressRange> ranges;
  if (auto differences = target.compare_text(module)) {
    for (const target::TextDifference& d : *differences) {
      ranges.push_back({d.start - (patch::kPatchBytes - 1),
                        d.start + d.memory.size() + (patch::kPatchBytes - 1)});
    }
    return ranges;
  }
  for (const target::Segment& s : module.segments) {
    if (s.exec && !module.vdso) ranges.push_back({s.start, s.end});
  }
  return ranges;
}

/// Jumps into our code that the journal does not know: unmapping would kill the process.
Result<void> refuse_unknown_jumps(const Target& target, const Found& found, const Job& job) {
  SPILE_TRY(auto modules, target.modules());
  for (const target::Module& module : modules) {
    for (const AddressRange& range : changed_code(target, module)) {
      std::vector<uint8_t> memory(range.size());
      memory.resize(target.memory().read_some(range.start, memory));
      auto at = unknown_jump(memory, range.start, found, job);
      if (!at) continue;
      return fail(ErrorCode::kCorrupt,
                  "process {} jumps into our code at {}, and no journal says what was there; "
                  "nothing was changed",
                  target.pid(), *at);
    }
  }
  return {};
}

/// Waits until no thread is in a stub of a killed tracer: such a thread may still be mapping or
/// unmapping our regions.
Result<void> settle_stubs(const Target& target) {
  for (int i = 1; i <= kStops; i++) {
    auto settled = target::with_tracer_thread([&]() -> Result<bool> {
      SPILE_TRY(auto process, StoppedProcess::stop(target));
      SPILE_TRY_VOID(target::clean_leftover_stubs(process));
      return std::ranges::none_of(target::find_leftover_stubs(process),
                                  &target::LeftoverStub::running);
    });
    if (settled && *settled) return {};
    if (!settled && settled.error().code != ErrorCode::kBusy)
      return std::unexpected(std::move(settled.error()));
    std::this_thread::sleep_for(std::chrono::milliseconds(std::min(i, 20)));
  }
  return fail(ErrorCode::kBusy, "a thread of process {} stays in the code of a killed tracer",
              target.pid());
}

}  // namespace

Result<DetachReport> detach_leftovers(pid_t pid) {
  SPILE_TRY(auto target, Target::open(pid));
  SPILE_TRY_VOID(settle_stubs(target));
  SPILE_TRY(auto found, find_regions(target));
  DetachReport notes;
  Job job = job_of(target, found, notes);
  if (!found.code.empty()) SPILE_TRY_VOID(refuse_unknown_jumps(target, found, job));
  SPILE_TRY(auto report, undo_everywhere(target, job));
  report.notes.insert(report.notes.begin(), notes.notes.begin(), notes.notes.end());
  return report;
}

Result<std::optional<pid_t>> live_owner(const Target& target) {
  SPILE_TRY(auto found, find_regions(target));
  for (const AddressRange& data : found.data) {
    auto adopted = read_journal(target, data);
    if (!adopted) continue;
    auto pid = static_cast<pid_t>(adopted->journal.tracer_pid);
    if (pid <= 0) continue;
    auto stat = os::read_stat(pid, pid);
    // The same number and the same start: not a later process that got the number again.
    if (stat && stat->start_time == adopted->journal.tracer_start_time && stat->state != 'Z')
      return std::optional(pid);
  }
  return std::optional<pid_t>();
}

Result<void> refuse_live_owner(const Target& target) {
  SPILE_TRY(auto owner, live_owner(target));
  if (!owner) return {};
  return fail(ErrorCode::kBusy, "process {} ({}) is already traced by spile process {}",
              target.pid(), target.name(), *owner);
}

Result<std::vector<engine::SiteReport>> journal_sites(pid_t pid) {
  SPILE_TRY(auto target, Target::open(pid));
  SPILE_TRY(auto found, find_regions(target));
  std::vector<engine::SiteReport> reports;
  for (const AddressRange& data : found.data) {
    auto adopted = read_journal(target, data);
    if (!adopted) continue;
    for (const abi::SiteEntry& entry : adopted->sites) {
      if (entry.state == abi::SiteState::kEmpty || entry.length > abi::kMaxSiteBytes) continue;
      engine::SiteReport report;
      report.pid = pid;
      report.address = entry.address;
      report.before.assign(entry.original, entry.original + entry.length);
      report.after.resize(entry.length);
      if (!target.memory().read(TargetAddr(entry.address), report.after)) report.after.clear();
      bool is_there = std::equal(report.after.begin(), report.after.end(), entry.patched);
      report.mechanism = is_there ? "jump" : "not in place";
      for (const os::MapEntry& m : found.maps) {
        if (m.contains(TargetAddr(entry.address)))
          report.location = fmt::format("{}+{:#x}", m.path, entry.file_offset);
      }
      reports.push_back(std::move(report));
    }
  }
  return reports;
}

}  // namespace spile::user_engine
