// What other tracers left in a process: found by our memory files, undone by the journal in them,
// of which nothing is taken on trust.
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <cstring>
#include <filesystem>
#include <map>
#include <set>
#include <thread>

#include "abi/code_region.h"
#include "abi/data_region.h"
#include "abi/pending.h"
#include "abi/private_stack.h"
#include "base/fd.h"
#include "os/process.h"
#include "user_engine/address_plan.h"
#include "user_engine/detach.h"
#include "user_engine/target/inject.h"
#include "user_engine/target/stopped.h"
#include "user_engine/target/threads_inside.h"
#include "user_engine/traps.h"
#include "user_engine/undo.h"
#include "x86/decode.h"

namespace spile::user_engine {

using target::AddressRange;
using target::StoppedProcess;
using target::Target;

namespace {

constexpr uint64_t kMaxRegionBytes = uint64_t{1} << 33;

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

/// What the code of a process was before us: by the files behind it, each opened once, or by what
/// the sealed code regions keep of modules without a file.
class Originals {
 public:
  Originals(const Target& target, const Found& found) {
    if (auto modules = target.modules()) modules_ = std::move(*modules);
    for (const os::MapEntry& map : target::our_mappings(found.maps)) {
      if (map.exec && map.offset == 0) read_saved(target, map);
    }
  }

  const target::Module* module_at(TargetAddr address) const {
    for (const target::Module& m : modules_) {
      if (m.segment_at(address) != nullptr) return &m;
    }
    return nullptr;
  }

  bool are(std::span<const uint8_t> bytes, TargetAddr address) {
    auto saved = saved_.find(address);
    if (saved != saved_.end() && std::ranges::equal(saved->second, bytes)) return true;
    return std::ranges::equal(bytes_at(address, bytes.size()), bytes);
  }

 private:
  /// The file's bytes; none where it cannot be opened.
  std::vector<uint8_t> bytes_at(TargetAddr address, size_t size) {
    const target::Module* module = module_at(address);
    // An image made of the memory holds our own jumps: it says nothing of what was there before.
    if (module == nullptr || module->host_path.empty() || module->image) return {};
    const target::Segment& segment = *module->segment_at(address);
    auto [file, is_new] = files_.try_emplace(module->start);
    if (is_new) file->second = Fd(open(module->host_path.c_str(), O_RDONLY | O_CLOEXEC));
    std::vector<uint8_t> bytes(size);
    auto offset =
        static_cast<off_t>(segment.offset.value + static_cast<uint64_t>(address - segment.start));
    if (!file->second ||
        pread(file->second.get(), bytes.data(), size, offset) != static_cast<ssize_t>(size))
      return {};
    return bytes;
  }

  void read_saved(const Target& target, const os::MapEntry& code) {
    auto consts = target.memory().read_value<abi::RtConsts>(code.start + abi::kConstsOffset);
    const bool is_ours = consts && consts->magic == abi::kConstsMagic &&
                         consts->version == abi::kAbiVersion &&
                         consts->code_base == code.start.value;
    if (!is_ours || consts->saved_offset > code.size() ||
        consts->saved_count > (code.size() - consts->saved_offset) / sizeof(abi::SavedBytes))
      return;
    for (uint32_t i = 0; i < consts->saved_count; i++) {
      auto saved = target.memory().read_value<abi::SavedBytes>(code.start + consts->saved_offset +
                                                               i * sizeof(abi::SavedBytes));
      if (saved && saved->length <= abi::kMaxSiteBytes)
        saved_[TargetAddr(saved->address)].assign(saved->original, saved->original + saved->length);
    }
  }

  std::vector<target::Module> modules_;
  std::map<TargetAddr, std::vector<uint8_t>> saved_;  ///< by address
  std::map<TargetAddr, Fd> files_;                    ///< by the module's start
};

bool leads_to_ours(const Target& target, const Found& found, TargetAddr at) {
  auto to = jump_target(target, at);
  if (to && !in_any(found.code, *to)) to = jump_target(target, *to);
  return to && in_any(found.code, *to);
}

/// Nothing in the table is taken on trust: bytes are put back only if they are a jump into our code
/// and the saved ones are those of the file.
std::optional<PatchedBytes> believe(const Target& target,
                                    const Found& found,
                                    Originals& originals,
                                    const abi::SiteEntry& entry) {
  if (entry.length == 0 || entry.length > abi::kMaxSiteBytes) return std::nullopt;
  PatchedBytes patch;
  patch.address = TargetAddr(entry.address);
  patch.original = {entry.original, entry.original + entry.length};
  patch.patched = {entry.patched, entry.patched + entry.length};
  patch.level = entry.level;
  patch.is_site = entry.is_site != 0;
  std::vector<uint8_t> now(entry.length);
  if (!target.memory().read(patch.address, now) || !std::ranges::equal(now, patch.patched))
    return std::nullopt;
  if (!leads_to_ours(target, found, patch.address)) return std::nullopt;
  if (!originals.are(patch.original, patch.address)) return std::nullopt;
  if (const target::Module* module = originals.module_at(patch.address))
    patch.inode = module->inode;
  return patch;
}

/// The tracer had come further than its regions tell: the original bytes are back already. Or the
/// library has been unloaded, and our bytes with it.
bool is_restored_or_gone(const Target& target, const abi::SiteEntry& entry) {
  if (entry.length > abi::kMaxSiteBytes) return false;
  std::vector<uint8_t> now(entry.length);
  return !target.memory().read(TargetAddr(entry.address), now) ||
         std::equal(now.begin(), now.end(), entry.original);
}

/// The page below a data region is its per-thread page; below that may be its pending table, and a
/// page further down its private stacks.
void add_private_memory(const Found& found, TargetAddr data, Job& job) {
  const auto below = [&](TargetAddr end, uint64_t size) -> const os::MapEntry* {
    for (const os::MapEntry& m : found.maps) {
      bool is_ours = m.end == end && m.size() == size && m.inode == 0 && m.read && m.write &&
                     !m.exec && !m.shared && m.path.empty();
      if (is_ours) return &m;
    }
    return nullptr;
  };
  const os::MapEntry* page = below(data, kPageBytes);
  if (page == nullptr) return;
  if (const auto* table = below(page->start, abi::kPendingTableBytes))
    job.unmap.push_back({table->start, table->end});
  // Somebody may have been killed when the table was gone and the stacks were not.
  for (const uint64_t table_bytes : {uint64_t{0}, abi::kPendingTableBytes}) {
    const TargetAddr end = page->start - table_bytes - kPageBytes;
    const auto* stacks = below(end, abi::kPrivatePoolBytes);
    if (stacks == nullptr) continue;
    job.stacks = {stacks->start, stacks->end};
    job.unmap.push_back(job.stacks);
  }
  job.unmap.push_back({page->start, page->end});
}

/// The trap page says where int3s of ours may be and what was there, and it cannot be forged.
void add_traps(const Target& target, const Found& found, Job& job) {
  for (const ListedTrap& trap : listed_traps(target, found.maps)) {
    job.traps.insert(trap.site);
    auto now = target.memory().read_value<uint8_t>(trap.site);
    if (now && *now == patch::kTrapByte)
      job.patches.push_back({trap.site, {trap.original}, {*now}, 0, true});
  }
}

bool is_trap(const abi::SiteEntry& entry) {
  return entry.length == 1 && entry.patched[0] == patch::kTrapByte;
}

Job job_of(const Target& target, const Found& found, DetachReport& report) {
  Job job;
  job.adopted = true;
  job.code = found.code;
  job.unmap = found.code;
  for (const os::MapEntry& m : target::our_mappings(found.maps)) {
    bool is_late = m.path == fmt::format("/memfd:{}", target::kLateCodeName);
    (is_late ? job.late : job.mappings).push_back(m);
  }
  Originals originals(target, found);
  std::set<TargetAddr> doubtful;  // places with no entry that holds up
  for (const AddressRange& data : found.data) {
    auto adopted = read_journal(target, data);
    add_private_memory(found, data.start, job);
    job.unmap.push_back(data);
    if (!adopted) continue;
    job.journal = data.start;
    // The target may write here, so it may hide its own children from the clean-up; nobody else's.
    job.tracer_start_time = adopted->journal.tracer_start_time;
    if (job.semaphores.empty()) job.semaphores = believed_semaphores(target, adopted->journal);
    for (const abi::SiteEntry& entry : adopted->sites) {
      if (entry.state == abi::SiteState::kEmpty || is_trap(entry)) continue;
      auto patch = believe(target, found, originals, entry);
      if (patch)
        job.patches.push_back(std::move(*patch));
      else if (!is_restored_or_gone(target, entry))
        doubtful.insert(TargetAddr(entry.address));
    }
  }
  for (const PatchedBytes& patch : job.patches) doubtful.erase(patch.address);
  for (TargetAddr address : doubtful) {
    report.notes.push_back(
        fmt::format("process {}: the journal's entry for {:#x} does not hold up and is not used",
                    target.pid(), address.value));
  }
  add_traps(target, found, job);
  if (!found.data.empty()) job.scratch = found.data.front().start + abi::kScratchOffset;
  job.sort();
  return job;
}

/// Whether `memory`, which is what lies at `start`, has the patch in place.
bool holds(std::span<const uint8_t> memory, TargetAddr start, const PatchedBytes& patch) {
  if (patch.address < start) return true;  // not to be seen as a whole
  const auto offset = static_cast<size_t>(patch.address - start);
  return offset + patch.patched.size() > memory.size() ||
         std::ranges::equal(memory.subspan(offset, patch.patched.size()), patch.patched);
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
    bool known = std::ranges::any_of(job.patches, [&](const PatchedBytes& p) {
      return at >= p.address && at < p.address + p.patched.size() && holds(memory, start, p);
    });
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
  job.check_child = [&](const Target& child) { return refuse_unknown_jumps(child, found, job); };
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
      const char* mechanism = is_trap(entry) ? "int3 with slot" : "jump";
      report.mechanism = is_there ? mechanism : "not in place";
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
