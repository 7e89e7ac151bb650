// How probes come into a process: the second of spile's two stories, from top to bottom in
// attach_to().
//
// Everything that can be done while the target runs is done then: decoding, planning, compiling.
// The stop itself maps memory, copies finished bytes and writes the jumps. At every moment of it
// the tracer may be killed and the target runs on: before a jump is written its detour is complete,
// and the journal says what was changed.
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <set>
#include <thread>

#include "os/process.h"
#include "user_engine/attachment.h"
#include "user_engine/detach.h"
#include "user_engine/loader.h"
#include "user_engine/shm/maps.h"
#include "user_engine/target/spawn.h"
#include "user_engine/target/stopped.h"
#include "user_engine/target/threads_inside.h"
#include "x86/format.h"

namespace spile::user_engine {

using engine::SiteReport;
using target::AddressRange;
using target::StoppedProcess;
using target::Target;

namespace {

constexpr int kMaxAttempts = 8, kMaxSlowAttempts = 3;
constexpr uint64_t kPageBytes = 4096;
constexpr uint64_t kReach = uint64_t{1} << 31;
constexpr std::string_view kCodeName = "spile-code", kDataName = "spile-data";

uint64_t page_of(TargetAddr a) {
  return a.value / kPageBytes;
}

/// A code region and the sites that it serves.
struct Neighbourhood {
  std::vector<const PlannedSite*> sites;
  std::vector<AddressRange> modules;
  TargetAddr base;
  CodeImage code;
};

/// A page or two at the one place (or one of the few) where a punned jump can lead; on it a jump to
/// the detour.
struct SteppingStone {
  TargetAddr at;    ///< where the punned jump leads
  TargetAddr base;  ///< page
  uint64_t size_bytes = 0;
};

/// Everything that the stop needs, made while the target runs.
struct Prepared {
  shm::RegionLayout layout;
  std::vector<Neighbourhood> neighbourhoods;
  std::map<const PlannedSite*, SteppingStone> stones;
  TargetAddr data_base, private_base;
  std::vector<abi::SafeRange> safe_ranges;
  int seccomp_mode = 0;
};

/// Each costs a mapping in the target: a last resort for single functions, not for thousands.
constexpr size_t kMaxSteppingStones = 64;
constexpr uint64_t kGuardBytes = 64 << 10, kBrkRoomBytes = uint64_t{1} << 30;
constexpr uint64_t kLowestAddress = 64 << 10, kHighestAddress = uint64_t{0x7fff} << 32;

/// Is [start, end) free, and not needed by the target later: not above its break, not below its
/// main stack?
bool is_free(const std::vector<os::MapEntry>& maps,
             const target::GapRules& rules,
             uint64_t start,
             uint64_t end) {
  if (start < kLowestAddress || end > kHighestAddress) return false;
  if (rules.start_brk != 0 && end > rules.start_brk && start < rules.start_brk + kBrkRoomBytes)
    return false;
  for (const os::MapEntry& m : maps) {
    bool is_stack = m.path == "[stack]";
    uint64_t low = m.start.value -
                   std::min(m.start.value, is_stack ? rules.stack_limit_bytes + kGuardBytes : 0);
    if (start < m.end.value && end > low) return false;
  }
  return true;
}

/// The first free place among those that a punned jump can reach.
std::optional<SteppingStone> find_stepping_stone(const std::vector<os::MapEntry>& maps,
                                                 const target::GapRules& rules,
                                                 const patch::SitePlan& plan) {
  auto reach = patch::pun_targets(plan);
  for (uint64_t at = reach.first.value;;) {
    uint64_t base = at & ~(kPageBytes - 1),
             end = (at + kSteppingStoneBytes + kPageBytes - 1) & ~(kPageBytes - 1);
    if (is_free(maps, rules, base, end))
      return SteppingStone{TargetAddr(at), TargetAddr(base), end - base};
    // The next page's first byte; a place that ends on the next page was tried with it.
    uint64_t next = base + kPageBytes;
    if (next > reach.last.value || next < at) return std::nullopt;
    at = next;
  }
}

/// Keeps a place that was just chosen from being chosen again.
void occupy(std::vector<os::MapEntry>& maps, TargetAddr start, uint64_t size_bytes) {
  os::MapEntry entry;
  entry.start = start;
  entry.end = start + size_bytes;
  auto at = std::ranges::upper_bound(maps, start, {}, &os::MapEntry::start);
  maps.insert(at, entry);
}

/// Read-only data of the program itself, of libc and of the loader: these are never unmapped, so a
/// probe may read them with a plain load.
std::vector<abi::SafeRange> safe_ranges(const Target& target) {
  std::vector<abi::SafeRange> ranges;
  auto modules = target.modules();
  if (!modules) return ranges;
  for (const target::Module& m : *modules) {
    bool stays = m.main_program || m.path.find("/libc.so") != std::string::npos ||
                 m.path.find("/ld-linux") != std::string::npos ||
                 m.path.find("/ld-musl") != std::string::npos;
    if (!stays || m.deleted) continue;
    for (const target::Segment& s : m.segments) {
      if (s.read && !s.write && ranges.size() < abi::kMaxSafeRanges)
        ranges.push_back({s.start.value, s.end.value});
    }
  }
  std::ranges::sort(ranges, {}, &abi::SafeRange::begin);
  return ranges;
}

class Attacher {
 public:
  Attacher(const Target& target, const AttachContext& context, std::shared_ptr<ProcessPlan> plan)
      : target_(target), context_(context), plan_(std::move(plan)) {}

  /// Chooses addresses and makes all code. The target runs.
  Result<void> prepare();
  /// Patches the stopped process. On error roll_back() puts back what has changed in it.
  Result<void> commit(StoppedProcess& process);
  /// After a failed commit, in the same stop. Only what this attacher has made is taken out:
  /// another spile may hold the process by now, at the very addresses that were meant for us.
  void roll_back(StoppedProcess& process);
  /// Sites that threads stand in the way of, and stay: a punned jump where that fits, else left out
  /// for good.
  void give_up_blocked_sites();

  std::unique_ptr<Attachment> finish(std::unique_ptr<Target> target);

  bool has_sites() const { return !active_sites().empty(); }
  /// What prepare() had to give up.
  const std::vector<SiteReport>& refused() const { return refused_; }

 private:
  std::vector<const PlannedSite*> active_sites() const;
  void make_neighbourhoods();
  Result<void> choose_addresses();
  Result<void> choose_stepping_stones(std::vector<os::MapEntry>& maps,
                                      const target::GapRules& rules);
  Result<void> build_code();
  Result<void> check_unchanged(const StoppedProcess& process) const;
  Result<void> find_blocked_sites(const StoppedProcess& process);
  const BuiltSite* site_around(const target::StoppedThread& thread) const;
  Result<TargetAddr> rip_after(const BuiltSite& site, const target::StoppedThread& thread) const;
  Result<void> map_regions(StoppedProcess& process);
  Result<void> fill_data();
  Result<void> fill_code(const StoppedProcess& process);
  abi::RtConsts constants(std::optional<int64_t> tid_offset, const Neighbourhood& n) const;
  void write_journal_ahead();
  Result<void> move_threads(StoppedProcess& process);
  Result<void> write_jumps(const StoppedProcess& process);
  void set_state(abi::JournalState state);
  void refuse(const PlannedSite& site, const std::string& reason);
  std::vector<PatchedSite> patched_sites() const;
  std::vector<RegionRange> ranges() const;

  const Target& target_;
  const AttachContext& context_;
  std::shared_ptr<ProcessPlan> plan_;
  std::set<const PlannedSite*> blocked_, dropped_;
  Prepared prepared_;
  Mapping data_;
  shm::Region region_;
  std::vector<Mapping> code_;
  std::vector<const BuiltSite*> built_;  // by address
  std::vector<SiteReport> refused_;
  std::vector<std::string> warnings_;
  uint64_t stopped_ns_ = 0;
  bool mapped_ = false, journaled_ = false;
  std::vector<os::MapEntry> mappings_;
};

std::vector<const PlannedSite*> Attacher::active_sites() const {
  std::vector<const PlannedSite*> sites;
  for (const PlannedSite& site : plan_->sites) {
    if (!dropped_.contains(&site)) sites.push_back(&site);
  }
  return sites;
}

void Attacher::refuse(const PlannedSite& site, const std::string& reason) {
  SiteReport report = describe(site, target_.pid(), *context_.bundle);
  report.refused = true;
  report.reason = reason;
  refused_.push_back(std::move(report));
  dropped_.insert(&site);
}

// ---- while the target runs
// -----------------------------------------------------------------------------------------

/// Sites whose modules lie within reach of one region share it: the program and its libraries
/// usually make two.
void Attacher::make_neighbourhoods() {
  prepared_.neighbourhoods.clear();
  for (const PlannedSite* site : active_sites()) {
    const target::Module& m = site->image->module();
    AddressRange range{m.start, m.end};
    Neighbourhood* home = nullptr;
    for (Neighbourhood& n : prepared_.neighbourhoods) {
      TargetAddr low = std::min(n.modules.front().start, range.start), high = range.end;
      for (const AddressRange& other : n.modules) {
        low = std::min(low, other.start);
        high = std::max(high, other.end);
      }
      // Half of the reach is left for the region itself and for finding a gap.
      if (static_cast<uint64_t>(high - low) < kReach / 2) home = &n;
    }
    if (home == nullptr) home = &prepared_.neighbourhoods.emplace_back();
    home->sites.push_back(site);
    bool known = std::ranges::any_of(home->modules,
                                     [&](const AddressRange& r) { return r.start == range.start; });
    if (!known) home->modules.push_back(range);
  }
}

Result<void> Attacher::choose_stepping_stones(std::vector<os::MapEntry>& maps,
                                              const target::GapRules& rules) {
  for (const PlannedSite* site : active_sites()) {
    if (site->plan.mechanism != patch::Mechanism::kPunned) continue;
    if (prepared_.stones.size() == kMaxSteppingStones) {
      refuse(*site, fmt::format("only a punned jump fits here, and {} others are in use already",
                                kMaxSteppingStones));
      continue;
    }
    auto stone = find_stepping_stone(maps, rules, site->plan);
    if (!stone) {
      refuse(*site,
             "only a punned jump fits here, and the addresses that it could lead to are taken");
      continue;
    }
    occupy(maps, stone->base, stone->size_bytes);
    prepared_.stones.emplace(site, *stone);
  }
  for (Neighbourhood& n : prepared_.neighbourhoods)
    std::erase_if(n.sites, [&](const PlannedSite* s) { return dropped_.contains(s); });
  std::erase_if(prepared_.neighbourhoods, [](const Neighbourhood& n) { return n.sites.empty(); });
  return {};
}

Result<void> Attacher::choose_addresses() {
  SPILE_TRY(auto maps, target_.maps());
  SPILE_TRY(auto rules, target::gap_rules(target_));
  std::vector<AddressRange> near_code;
  for (Neighbourhood& n : prepared_.neighbourhoods) {
    uint64_t size = max_code_bytes(*context_.bundle, n.sites);
    auto gap = target::find_gap(maps, rules, n.modules, size);
    if (!gap)
      return forward(gap, "find room for {} KiB of code near {}", size / 1024,
                     n.sites.front()->image->module().path);
    n.base = *gap;
    occupy(maps, n.base, size);
    if (near_code.empty()) near_code.push_back({n.base, n.base + size});
  }
  SPILE_TRY_VOID(choose_stepping_stones(maps, rules));
  // The per-thread page lies right below the data region: that is how an adopter recognises it.
  SPILE_TRY(TargetAddr data,
            target::find_gap(maps, rules, near_code, prepared_.layout.size_bytes + kPageBytes));
  prepared_.private_base = data;
  prepared_.data_base = data + kPageBytes;
  return {};
}

Result<void> Attacher::build_code() {
  for (Neighbourhood& n : prepared_.neighbourhoods) {
    CodeRequest request;
    request.base = n.base;
    request.bundle = context_.bundle;
    request.analyses = context_.analyses;
    for (size_t i = 0; i < prepared_.layout.maps.size(); i++) {
      request.maps.push_back(shm::map_descriptor(prepared_.layout, i, prepared_.data_base.value));
    }
    request.sites = n.sites;
    for (const auto& [site, stone] : prepared_.stones)
      request.stepping_stones.emplace(site, stone.at);
    bool has_rdpid =
        (shm::consts_for(prepared_.layout, prepared_.data_base.value, n.base.value).flags &
         abi::kHasRdpid) != 0;
    request.cpu = has_rdpid ? jit::CpuNumber::kRdpid : jit::CpuNumber::kLsl;
    request.cpu_stats = prepared_.data_base + abi::kStatsOffset;
    request.cpu_mask = prepared_.layout.cpu_slots - 1;
    request.count_hits = context_.count_hits;
    SPILE_TRY(n.code, user_engine::build_code(request));
    for (const auto& [site, reason] : n.code.refused) refuse(*site, reason);
  }
  return {};
}

Result<void> Attacher::prepare() {
  blocked_.clear();
  prepared_ = {};
  shm::RegionOptions options;
  options.site_capacity = static_cast<uint32_t>(std::max<size_t>(1, plan_->sites.size()));
  SPILE_TRY(prepared_.layout, shm::plan_region(*context_.bundle, options));
  make_neighbourhoods();
  SPILE_TRY_VOID(choose_addresses());
  SPILE_TRY_VOID(build_code());
  prepared_.safe_ranges = safe_ranges(target_);
  prepared_.seccomp_mode = target_.seccomp_mode();
  return {};
}

// ---- while it is stopped
// -------------------------------------------------------------------------------------------

/// The plan was made while the target ran: since then a library may have gone, or another tool may
/// have come.
Result<void> Attacher::check_unchanged(const StoppedProcess& process) const {
  std::vector<uint8_t> page;
  for (size_t first = 0; first < built_.size();) {
    TargetAddr start = built_[first]->site->plan.site;
    page.resize(2 * kPageBytes);
    page.resize(process.memory().read_some(start, page));
    size_t i = first;
    for (; i < built_.size() && page_of(built_[i]->site->plan.site) == page_of(start); i++) {
      const patch::SitePlan& plan = built_[i]->site->plan;
      auto offset = static_cast<size_t>(plan.site - start);
      bool same = page.size() >= offset + std::max(plan.window.size(), plan.before.size()) &&
                  std::equal(plan.before.begin(), plan.before.end(),
                             page.begin() + static_cast<ptrdiff_t>(offset)) &&
                  std::equal(plan.window.begin(), plan.window.end(),
                             page.begin() + static_cast<ptrdiff_t>(offset));
      if (!same)
        return fail(ErrorCode::kUnsafe,
                    "the code at {} has changed since it was looked at: unloaded, or patched by "
                    "another tool",
                    plan.site);
    }
    first = i;
  }
  return {};
}

/// The site whose window may hold the thread's rip, or the system call instruction right before it:
/// that one decides where the call is restarted, also when another window begins at rip.
const BuiltSite* Attacher::site_around(const target::StoppedThread& thread) const {
  TargetAddr rip(thread.registers.rip - (thread.in_user_code() ? 0 : 1));
  auto after = std::ranges::upper_bound(built_, rip, {},
                                        [](const BuiltSite* s) { return s->site->plan.site; });
  if (after == built_.begin()) return nullptr;
  const BuiltSite* site = *std::prev(after);
  uint64_t bytes = std::max(site->site->plan.window.size(), patch::kPatchBytes);
  return static_cast<uint64_t>(rip - site->site->plan.site) <= bytes ? site : nullptr;
}

Result<TargetAddr> Attacher::rip_after(const BuiltSite& site,
                                       const target::StoppedThread& thread) const {
  bool in_syscall = static_cast<int64_t>(thread.registers.orig_rax) >= 0;
  return patch::rip_after_attach(site.site->plan, site.displaced, TargetAddr(thread.registers.rip),
                                 in_syscall);
}

/// Threads that stand where no displaced instruction begins, and those that were interrupted inside
/// a window and will come back there when their signal handler returns.
Result<void> Attacher::find_blocked_sites(const StoppedProcess& process) {
  for (const target::StoppedThread& thread : process.threads()) {
    const BuiltSite* site = site_around(thread);
    if (site != nullptr && !rip_after(*site, thread)) blocked_.insert(site->site);
  }
  std::map<TargetAddr, const PlannedSite*> heads;
  for (const PlannedSite* site : active_sites()) {
    for (size_t i = 1; i < site->plan.heads.size(); i++)
      heads.emplace(site->plan.site + site->plan.heads[i], site);
  }
  if (!heads.empty()) {
    auto interrupted =
        target::live_contexts(process, [&](TargetAddr a) { return heads.contains(a); });
    for (const target::LiveContext& context : interrupted.found)
      blocked_.insert(heads.at(context.rip));
    if (!interrupted.incomplete.empty()) {
      for (const auto& [head, site] : heads) blocked_.insert(site);
    }
  }
  if (blocked_.empty()) return {};
  return fail(ErrorCode::kBusy, "a thread is inside the code to be patched");
}

Result<void> Attacher::map_regions(StoppedProcess& process) {
  std::vector<target::RegionSpec> specs;
  for (const Neighbourhood& n : prepared_.neighbourhoods) {
    specs.push_back({target::RegionSpec::Kind::kCode, std::string(kCodeName), n.base,
                     n.code.bytes.size(), true});
  }
  for (const auto& [site, stone] : prepared_.stones) {
    specs.push_back({target::RegionSpec::Kind::kCode, std::string(kCodeName), stone.base,
                     stone.size_bytes, true});
  }
  specs.push_back({target::RegionSpec::Kind::kData, std::string(kDataName), prepared_.data_base,
                   prepared_.layout.size_bytes, false});
  specs.push_back(
      {target::RegionSpec::Kind::kPrivate, {}, prepared_.private_base, kPageBytes, true});
  SPILE_TRY(auto memories, target::map_shared(process, specs));
  mapped_ = true;
  code_.clear();
  for (target::RemoteMemory& memory : memories) {
    if (memory.spec.kind == target::RegionSpec::Kind::kCode)
      code_.push_back(std::move(memory.local));
    if (memory.spec.kind == target::RegionSpec::Kind::kData) data_ = std::move(memory.local);
  }
  // Now, while nothing can change: later the target may be gone, and its children still have them.
  SPILE_TRY(auto maps, target_.maps());
  mappings_ = target::our_mappings(maps);
  return {};
}

Result<void> Attacher::fill_data() {
  SPILE_TRY(region_, shm::Region::format(data_.bytes(), prepared_.layout));
  context_.clock->publish(region_.time_page());
  if (context_.bundle->start_map >= 0) {
    timespec now = {};
    clock_gettime(CLOCK_MONOTONIC, &now);
    uint64_t ns =
        static_cast<uint64_t>(now.tv_sec) * 1'000'000'000 + static_cast<uint64_t>(now.tv_nsec);
    uint32_t index = 0;
    SPILE_TRY_VOID(shm::update(region_, static_cast<size_t>(context_.bundle->start_map),
                               {reinterpret_cast<const uint8_t*>(&index), 4},
                               {reinterpret_cast<const uint8_t*>(&ns), 8}));
  }
  return {};
}

abi::RtConsts Attacher::constants(std::optional<int64_t> tid_offset, const Neighbourhood& n) const {
  abi::RtConsts consts = shm::consts_for(prepared_.layout, prepared_.data_base.value, n.base.value);
  if (tid_offset) {
    consts.tid_source = abi::TidSource::kFsField;
    consts.tid_fs_offset = static_cast<int32_t>(*tid_offset);
  }
  if (prepared_.seccomp_mode != 0) consts.allowed_calls = 0;
  if (auto status = os::read_status(target_.pid());
      status && status->innermost_tid != target_.pid()) {
    consts.tgid_inside = static_cast<uint32_t>(status->innermost_tid);
    consts.tgid_outside = static_cast<uint32_t>(target_.pid());
  }
  consts.wipe_on_fork = prepared_.private_base.value;
  consts.safe_range_count = static_cast<uint32_t>(prepared_.safe_ranges.size());
  std::ranges::copy(prepared_.safe_ranges, consts.safe_ranges);
  return consts;
}

Result<void> Attacher::fill_code(const StoppedProcess& process) {
  const auto tid_offset = process.tid_offset();
  for (size_t i = 0; i < prepared_.neighbourhoods.size(); i++) {
    const Neighbourhood& n = prepared_.neighbourhoods[i];
    std::span<uint8_t> memory = code_[i].bytes();
    std::memcpy(memory.data(), n.code.bytes.data(), n.code.bytes.size());
    SPILE_TRY(uint64_t bodies,
              shm::write_code_prefix(memory, prepared_.layout, constants(tid_offset, n)));
    SPILE_CHECK(bodies <= abi::bodies_offset(prepared_.layout.maps.size()));
    // Our writable view goes: from here on nobody can change this code.
    code_[i].reset();
  }
  size_t next = prepared_.neighbourhoods.size();
  for (const auto& [site, stone] : prepared_.stones) {
    Mapping& page = code_[next++];
    std::memset(page.data(), 0xcc, page.size());
    auto built = std::ranges::find(built_, site, &BuiltSite::site);
    // Refused meanwhile (its detour would need too much stack): nothing will jump there.
    if (built != built_.end()) {
      auto code = stepping_stone((*built)->detour);
      std::memcpy(page.data() + (stone.at - stone.base), code.data(), code.size());
    }
    page.reset();
  }
  return {};
}

void Attacher::set_state(abi::JournalState state) {
  __atomic_store_n(reinterpret_cast<uint32_t*>(&region_.journal_untrusted().state),
                   static_cast<uint32_t>(state), __ATOMIC_RELEASE);
}

/// Before the first code byte changes, everything that undoing it takes is in the journal.
void Attacher::write_journal_ahead() {
  abi::Journal& journal = region_.journal_untrusted();
  journal.magic = abi::kJournalMagic;
  journal.version = abi::kJournalVersion;
  journal.tracer_pid = static_cast<uint32_t>(getpid());
  journal.target_pid = static_cast<uint32_t>(target_.pid());
  if (auto stat = os::read_stat(getpid(), getpid())) journal.tracer_start_time = stat->start_time;
  journal.target_start_time = target_.start_time();
  journal.region_count = 0;
  for (const Neighbourhood& n : prepared_.neighbourhoods) {
    if (journal.region_count + 2 < abi::kMaxRegions) {
      journal.regions[journal.region_count++] = {n.base.value, n.code.bytes.size(), 0,
                                                 abi::RegionKind::kCode, 0};
    }
  }
  journal.regions[journal.region_count++] = {prepared_.data_base.value, prepared_.layout.size_bytes,
                                             0, abi::RegionKind::kData, 0};
  journal.regions[journal.region_count++] = {prepared_.private_base.value, kPageBytes, 0,
                                             abi::RegionKind::kPerThread, 0};
  set_state(abi::JournalState::kMapped);
  journaled_ = true;

  auto entries = region_.sites_untrusted();
  for (size_t i = 0; i < built_.size(); i++) {
    const BuiltSite& site = *built_[i];
    abi::SiteEntry entry = {};
    entry.address = site.site->plan.site.value;
    entry.file_offset = site.site->image->file_offset(site.site->plan.site).value;
    entry.detour = site.detour.value;
    entry.cookie = static_cast<uint32_t>(site.site->probes.front());
    entry.length = patch::kPatchBytes;
    std::ranges::copy(site.site->plan.before, entry.original);
    std::ranges::copy(site.patched, entry.patched);
    entry.state = abi::SiteState::kPlanned;
    entries[i] = entry;
  }
  journal.site_count = static_cast<uint32_t>(built_.size());
  set_state(abi::JournalState::kPatching);
}

/// A thread that is stopped inside a window continues in the copy. The jump is not there yet, so
/// both ways are right and a tracer that dies here has done no harm.
Result<void> Attacher::move_threads(StoppedProcess& process) {
  for (size_t i = 0; i < process.threads().size(); i++) {
    const target::StoppedThread& thread = process.threads()[i];
    const BuiltSite* site = site_around(thread);
    if (site == nullptr) continue;
    SPILE_TRY(TargetAddr moved, rip_after(*site, thread));
    if (moved.value == thread.registers.rip) continue;
    os::Registers registers = thread.registers;
    registers.rip = moved.value;
    SPILE_TRY_VOID(process.set_registers(i, registers));
  }
  return {};
}

/// One write a page: the sites of a page change together.
Result<void> Attacher::write_jumps(const StoppedProcess& process) {
  auto entries = region_.sites_untrusted();
  for (size_t first = 0; first < built_.size();) {
    size_t last = first;
    while (last + 1 < built_.size() &&
           page_of(built_[last + 1]->site->plan.site) == page_of(built_[first]->site->plan.site))
      last++;
    TargetAddr start = built_[first]->site->plan.site;
    std::vector<uint8_t> bytes(static_cast<size_t>(built_[last]->site->plan.site - start) +
                               patch::kPatchBytes);
    SPILE_TRY_VOID(process.memory().read(start, bytes));
    for (size_t i = first; i <= last; i++) {
      std::ranges::copy(built_[i]->patched, bytes.begin() + (built_[i]->site->plan.site - start));
    }
    auto written = process.memory().write(start, bytes);
    if (!written) return forward(written, "write {} jumps at {}", last - first + 1, start);
    for (size_t i = first; i <= last; i++) {
      __atomic_store_n(reinterpret_cast<uint8_t*>(&entries[i].state),
                       static_cast<uint8_t>(abi::SiteState::kPatched), __ATOMIC_RELEASE);
    }
    first = last + 1;
  }
  return {};
}

Result<void> Attacher::commit(StoppedProcess& process) {
  built_.clear();
  for (const Neighbourhood& n : prepared_.neighbourhoods) {
    for (const BuiltSite& site : n.code.sites) built_.push_back(&site);
  }
  std::ranges::sort(built_, {}, [](const BuiltSite* s) { return s->site->plan.site; });

  SPILE_TRY_VOID(check_unchanged(process));
  SPILE_TRY_VOID(find_blocked_sites(process));
  SPILE_TRY_VOID(map_regions(process));
  // Beyond this point the target has mappings of ours, and nothing in it uses them.
  SPILE_TRY_VOID(fill_data());
  SPILE_TRY_VOID(fill_code(process));
  if (context_.before_patch) SPILE_TRY_VOID(context_.before_patch(region_));
  write_journal_ahead();
  // Beyond this point every change can be undone by whoever finds the journal.
  SPILE_TRY_VOID(move_threads(process));
  SPILE_TRY_VOID(write_jumps(process));
  set_state(abi::JournalState::kAttached);
  stopped_ns_ = static_cast<uint64_t>(process.stopped_for().count());
  return {};
}

void Attacher::roll_back(StoppedProcess& process) {
  if (!std::exchange(mapped_, false)) return;
  bool undone = undo_in_stop(process, patched_sites(), ranges()).has_value();
  // Where that failed, whoever comes next may take it out: nobody lives who needs it.
  if (!undone && journaled_)
    __atomic_store_n(&region_.journal_untrusted().tracer_pid, 0, __ATOMIC_RELEASE);
  journaled_ = false;
  region_ = {};
  data_.reset();
  code_.clear();
}

void Attacher::give_up_blocked_sites() {
  for (PlannedSite& site : plan_->sites) {
    if (!blocked_.contains(&site)) continue;
    auto pun = patch::plan_pun(site.image->code(), site.plan.site);
    if (pun && site.plan.mechanism != patch::Mechanism::kPunned) {
      site.plan = std::move(*pun);
    } else {
      refuse(site,
             "a thread stays inside the instructions to be replaced (or was interrupted there by a "
             "signal, "
             "or its stack cannot be searched for that)");
    }
  }
  blocked_.clear();
}

std::vector<PatchedSite> Attacher::patched_sites() const {
  std::vector<PatchedSite> sites;
  for (const BuiltSite* b : built_)
    sites.push_back({*b->site, b->detour, b->displaced, b->patched, b->stack_bytes});
  return sites;
}

/// In the order in which they are taken out: the data region last, for as long as anything is there
/// the journal is too.
std::vector<RegionRange> Attacher::ranges() const {
  std::vector<RegionRange> ranges;
  for (const Neighbourhood& n : prepared_.neighbourhoods)
    ranges.push_back({abi::RegionKind::kCode, {n.base, n.base + n.code.bytes.size()}});
  for (const auto& [site, stone] : prepared_.stones) {
    ranges.push_back({abi::RegionKind::kCode, {stone.base, stone.base + stone.size_bytes}});
  }
  ranges.push_back(
      {abi::RegionKind::kPerThread, {prepared_.private_base, prepared_.private_base + kPageBytes}});
  ranges.push_back({abi::RegionKind::kData,
                    {prepared_.data_base, prepared_.data_base + prepared_.layout.size_bytes}});
  return ranges;
}

std::unique_ptr<Attachment> Attacher::finish(std::unique_ptr<Target> target) {
  auto attachment = std::make_unique<Attachment>();
  attachment->pid = target_.pid();
  attachment->target = std::move(target);
  attachment->sites = patched_sites();
  for (const BuiltSite* b : built_) {
    SiteReport report = describe(*b->site, attachment->pid, *context_.bundle);
    report.after = report.before;
    report.after.resize(std::max(report.after.size(), patch::kPatchBytes));
    std::ranges::copy(b->patched, report.after.begin());
    attachment->reports.push_back(std::move(report));
  }
  for (auto* list : {&plan_->refused, &refused_}) {
    attachment->reports.insert(attachment->reports.end(), list->begin(), list->end());
  }
  attachment->ranges = ranges();
  attachment->mappings = std::move(mappings_);
  attachment->data = std::move(data_);
  attachment->region = std::move(region_);
  attachment->stopped_ns = stopped_ns_;
  attachment->plan = std::move(*plan_);
  return attachment;
}

// ---- the story
// -----------------------------------------------------------------------------------------------------

Error all_refused(const ProcessPlan& plan, const std::vector<SiteReport>& more) {
  std::string text = "no probe could be placed safely:";
  size_t shown = 0;
  for (const auto* list : {&plan.refused, &more}) {
    for (const SiteReport& r : *list) {
      if (shown++ < 10) text += fmt::format("\n  {} at {:#x}: {}", r.location, r.address, r.reason);
    }
  }
  if (shown > 10) text += fmt::format("\n  and {} more", shown - 10);
  return {ErrorCode::kUnsafe, text};
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

Result<std::unique_ptr<Attachment>> attach(pid_t pid, const AttachContext& context) {
  // Who is it, and may we? Nothing is stopped yet.
  SPILE_TRY(auto opened, Target::open(pid));
  auto target = std::make_unique<Target>(std::move(opened));
  SPILE_TRY_VOID(make_way(*target));

  // Which bytes would change, and what is in the way? A place that is not surely safe is refused
  // here.
  SPILE_TRY(auto planned, plan_process(*target, *context.bundle));
  auto plan = std::make_shared<ProcessPlan>(std::move(planned));
  Attacher attacher(*target, context, plan);
  if (!attacher.has_sites()) return name_owner(*target, all_refused(*plan, {}));

  for (int attempt = 1;; attempt++) {
    // Addresses are chosen, programs compiled and detours made for exactly these addresses.
    SPILE_TRY_VOID(attacher.prepare());
    if (!attacher.has_sites()) return std::unexpected(all_refused(*plan, attacher.refused()));

    // The stop: map, fill, journal, move threads, write jumps, go.
    auto began = std::chrono::steady_clock::now();
    auto done = target::with_tracer_thread([&]() -> Result<void> {
      SPILE_TRY(auto process, StoppedProcess::stop(*target));
      SPILE_TRY_VOID(expect_nobody(*target));
      auto committed = attacher.commit(process);
      if (!committed) attacher.roll_back(process);
      return committed;
    });
    if (done) break;
    // A thread stood in the way, the place was taken, or somebody holds the process. What
    // roll_back() had to leave is taken out like that of a dead tracer; what a living one holds is
    // not. A stop that timed out (a thread in vfork, a dead disk) held the others all the while:
    // few tries, long pauses.
    auto held = std::chrono::steady_clock::now() - began;
    bool is_slow = held > std::chrono::milliseconds(100);
    bool again = done.error().code == ErrorCode::kBusy &&
                 attempt < (is_slow ? kMaxSlowAttempts : kMaxAttempts);
    auto free = make_way(*target);
    if (!again)
      return name_owner(
          *target, std::move(done.error())
                       .context(fmt::format("attach to process {} ({})", pid, target->name())));
    SPILE_TRY_VOID(std::move(free));
    if (attempt >= kMaxAttempts / 2) attacher.give_up_blocked_sites();
    if (!attacher.has_sites())
      return forward(done, "attach to process {} ({})", pid, target->name());
    std::this_thread::sleep_for(
        is_slow ? held * 5
                : std::chrono::steady_clock::duration(std::chrono::milliseconds(2 * attempt)));
  }
  return attacher.finish(std::move(target));
}

Result<std::unique_ptr<Attachment>> attach_command(const std::vector<std::string>& command,
                                                   const AttachContext& context) {
  return target::with_tracer_thread([&]() -> Result<std::unique_ptr<Attachment>> {
    // Started and stopped: libraries are mapped, no constructor has run.
    SPILE_TRY(auto child, target::Child::spawn(command, loader_symbols));
    SPILE_TRY(auto planned, plan_process(child.target(), *context.bundle));
    auto plan = std::make_shared<ProcessPlan>(std::move(planned));
    Attacher attacher(child.target(), context, plan);
    if (!attacher.has_sites()) return std::unexpected(all_refused(*plan, attacher.refused()));
    SPILE_TRY_VOID(attacher.prepare());
    if (!attacher.has_sites()) return std::unexpected(all_refused(*plan, attacher.refused()));
    {
      SPILE_TRY(auto process, child.take_stopped());
      auto done = attacher.commit(process);
      // A child that could not be traced is not let loose: it ends with `child`.
      if (!done) return forward(done, "attach to {}", command.front());
    }
    // The child runs now and may end at any moment: nothing below may need it alive.
    child.release();
    return attacher.finish(child.take_target());
  });
}

}  // namespace spile::user_engine
