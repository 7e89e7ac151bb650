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
#include "user_engine/address_plan.h"
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
constexpr std::string_view kCodeName = "spile-code", kDataName = "spile-data";
/// Bytes from an edit on that may be part of its jump: a prefixed jump of one own byte more.
constexpr size_t kJumpReachBytes = 8;
/// Sites that get edits of their own only when threads stand in the way: entries of the site table
/// that are kept for them.
constexpr size_t kSpareEntries = 64;

uint64_t page_of(TargetAddr a) {
  return a.value / kPageBytes;
}

/// Everything that the stop needs, made while the target runs.
struct Prepared {
  AddressPlan addresses;
  std::vector<CodeImage> code;  ///< one a neighbourhood
  shm::RegionLayout layout;
  Mapping image;             ///< of the data region: formatted, BEGIN has run on it
  shm::Region image_region;  ///< over `image`
  std::vector<abi::SafeRange> safe_ranges;
  int seccomp_mode = 0;
};

/// One edit, and the site that it is for.
struct Write {
  const patch::Edit* edit = nullptr;
  const BuiltSite* site = nullptr;
};

/// What is patched in one stop.
struct Batch {
  size_t first = 0, count = 0;          ///< in Attacher::writes_
  std::vector<const BuiltSite*> sites;  ///< those whose own bytes are written, by address
};
/// More edits than these are spread over several stops: 20 ms is all that a stop may take.
constexpr size_t kEditsPerStop = 16'000;

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

  /// Chooses addresses, makes all code and all data. The target runs.
  Result<void> prepare();
  /// Patches the stopped process. On error roll_back() puts back what has changed in it.
  Result<void> commit(StoppedProcess& process);
  /// The same where one stop would be too long: the process is stopped again and again, and runs in
  /// between.
  bool needs_many_stops() const { return batches_.size() > 1; }
  Result<void> commit_first_of_many(StoppedProcess& process);
  Result<void> commit_rest();
  void roll_back_running();
  /// After a failed commit, in the same stop. Only what this attacher has made is taken out:
  /// another spile may hold the process by now, at the very addresses that were meant for us.
  void roll_back(StoppedProcess& process);
  /// Sites that threads stand in the way of, and stay: as short sites where that fits, else left
  /// out for good.
  void give_up_blocked_sites();

  std::unique_ptr<Attachment> finish(std::unique_ptr<Target> target);

  bool has_sites() const { return !active_sites().empty(); }
  /// What prepare() had to give up.
  const std::vector<SiteReport>& refused() const { return refused_; }

 private:
  std::vector<const PlannedSite*> active_sites() const;
  Result<void> choose_addresses();
  Result<void> build_code();
  Result<CodeImage> build_neighbourhood(const Neighbourhood& n);
  Result<void> lay_out_data();
  Result<void> make_data();
  void collect_writes();
  void make_batches();
  std::span<const Write> writes_of(const Batch& batch) const {
    return std::span(writes_).subspan(batch.first, batch.count);
  }
  Result<void> check_unchanged(const StoppedProcess& process, std::span<const Write> writes) const;
  Result<void> find_blocked_sites(const StoppedProcess& process, const Batch& batch);
  static const BuiltSite* site_around(const Batch& batch, const target::StoppedThread& thread);
  Result<TargetAddr> rip_after(const BuiltSite& site, const target::StoppedThread& thread) const;
  std::vector<target::RegionSpec> region_specs() const;
  Result<void> map_regions(StoppedProcess& process);
  Result<void> fill_data();
  Result<void> fill_code();
  void fill_stones();
  abi::RtConsts constants(TargetAddr code_base) const;
  void begin_journal();
  void write_journal_ahead();
  Result<void> move_threads(StoppedProcess& process, const Batch& batch);
  Result<void> write_jumps(const StoppedProcess& process, const Batch& batch);
  Result<void> patch(StoppedProcess& process, const Batch& batch);
  Result<void> patch_in_stop_of_its_own(const Batch& batch);
  void note_stop(const StoppedProcess& process);
  void forget_regions(bool undone);
  Result<void> write_page(const StoppedProcess& process, size_t first, size_t last);
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
  std::vector<target::RemoteMemory> code_;  ///< one a neighbourhood, then that of the stones
  std::vector<const BuiltSite*> built_;     ///< by address
  std::vector<Write> writes_;               ///< by level, then by address
  std::vector<Batch> batches_;
  std::optional<int64_t> tid_offset_;
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
  dropped_.insert(&site);
  for (SiteReport& report : describe(site, target_.pid(), *context_.bundle)) {
    report.refused = true;
    report.reason = reason;
    refused_.push_back(std::move(report));
  }
}

// ---- while the target runs
// -----------------------------------------------------------------------------------------

Result<void> Attacher::choose_addresses() {
  SPILE_TRY(prepared_.addresses, plan_addresses(target_, *context_.bundle, active_sites()));
  for (const auto& [site, refusal] : prepared_.addresses.refused) refuse(*site, refusal.reason);
  return {};
}

/// The site table has an entry an edit, so its size is known only now.
Result<void> Attacher::lay_out_data() {
  size_t edits = active_sites().size() + kSpareEntries;
  for (const auto& [site, placement] : prepared_.addresses.placements)
    edits += placement.edits.size();
  shm::RegionOptions options;
  options.site_capacity = static_cast<uint32_t>(edits);
  SPILE_TRY(prepared_.layout, shm::plan_region(*context_.bundle, options));
  return place_data(target_, prepared_.layout.size_bytes, prepared_.addresses);
}

Result<CodeImage> Attacher::build_neighbourhood(const Neighbourhood& n) {
  TargetAddr data_base = prepared_.addresses.data_base;
  CodeRequest request;
  request.base = n.base;
  request.bundle = context_.bundle;
  request.analyses = context_.analyses;
  for (size_t i = 0; i < prepared_.layout.maps.size(); i++)
    request.maps.push_back(shm::map_descriptor(prepared_.layout, i, data_base.value));
  request.sites = n.sites;
  request.placements = &prepared_.addresses.placements;
  bool has_rdpid = (shm::consts_for(prepared_.layout, data_base.value, n.base.value).flags &
                    abi::kHasRdpid) != 0;
  request.cpu = has_rdpid ? jit::CpuNumber::kRdpid : jit::CpuNumber::kLsl;
  request.cpu_stats = data_base + abi::kStatsOffset;
  request.cpu_mask = prepared_.layout.cpu_slots - 1;
  request.count_hits = context_.count_hits;
  return user_engine::build_code(request);
}

Result<void> Attacher::build_code() {
  for (const Neighbourhood& n : prepared_.addresses.neighbourhoods) {
    SPILE_TRY(auto code, build_neighbourhood(n));
    for (const auto& [site, reason] : code.refused) refuse(*site, reason);
    prepared_.code.push_back(std::move(code));
  }
  return {};
}

/// Made here, in memory of our own, and copied in the stop: it holds no addresses.
Result<void> Attacher::make_data() {
  uint64_t size = prepared_.layout.size_bytes;
  void* memory = mmap(nullptr, size, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) return fail_errno(errno, "map {} bytes for maps and rings", size);
  prepared_.image = Mapping(memory, size);
  SPILE_TRY(prepared_.image_region, shm::Region::format(prepared_.image.bytes(), prepared_.layout));
  context_.clock->publish(prepared_.image_region.time_page());
  if (context_.bundle->start_map >= 0) {
    timespec now = {};
    clock_gettime(CLOCK_MONOTONIC, &now);
    uint64_t ns =
        static_cast<uint64_t>(now.tv_sec) * 1'000'000'000 + static_cast<uint64_t>(now.tv_nsec);
    uint32_t index = 0;
    SPILE_TRY_VOID(shm::update(
        prepared_.image_region, static_cast<size_t>(context_.bundle->start_map),
        {reinterpret_cast<const uint8_t*>(&index), 4}, {reinterpret_cast<const uint8_t*>(&ns), 8}));
  }
  if (context_.begin) return context_.begin(prepared_.image_region);
  return {};
}

Result<void> Attacher::prepare() {
  blocked_.clear();
  built_.clear();
  writes_.clear();
  prepared_ = {};
  SPILE_TRY_VOID(choose_addresses());
  if (!has_sites()) return {};
  SPILE_TRY_VOID(lay_out_data());
  SPILE_TRY_VOID(build_code());
  SPILE_TRY_VOID(make_data());
  collect_writes();
  make_batches();
  prepared_.safe_ranges = safe_ranges(target_);
  prepared_.seccomp_mode = target_.seccomp_mode();
  return {};
}

void Attacher::collect_writes() {
  for (const CodeImage& code : prepared_.code) {
    for (const BuiltSite& site : code.sites) built_.push_back(&site);
  }
  std::ranges::sort(built_, {}, [](const BuiltSite* s) { return s->site->plan.site; });
  for (const BuiltSite* site : built_) {
    for (const patch::Edit& edit : site->edits) writes_.push_back({&edit, site});
  }
  std::ranges::sort(writes_, {},
                    [](const Write& w) { return std::pair(w.edit->level, w.edit->at); });
}

/// In the order of writing: what other jumps lead over comes first.
void Attacher::make_batches() {
  batches_.clear();
  for (size_t first = 0; first < writes_.size(); first += kEditsPerStop) {
    Batch batch{first, std::min(kEditsPerStop, writes_.size() - first), {}};
    for (const Write& write : writes_of(batch)) {
      if (write.edit == &write.site->edits.back()) batch.sites.push_back(write.site);
    }
    std::ranges::sort(batch.sites, {}, [](const BuiltSite* s) { return s->site->plan.site; });
    batches_.push_back(std::move(batch));
  }
}

// ---- while it is stopped
// -------------------------------------------------------------------------------------------

/// The plan was made while the target ran: since then a library may have gone, or another tool may
/// have come. The bytes behind an edit may be part of its jump.
Result<void> Attacher::check_unchanged(const StoppedProcess& process,
                                       std::span<const Write> writes) const {
  std::vector<uint8_t> page;
  for (size_t first = 0; first < writes.size();) {
    TargetAddr start = writes[first].edit->at;
    page.resize(2 * kPageBytes);
    page.resize(process.memory().read_some(start, page));
    size_t i = first;
    for (; i < writes.size() && page_of(writes[i].edit->at) == page_of(start) &&
           writes[i].edit->at >= start;
         i++) {
      const Write& write = writes[i];
      const patch::SitePlan& plan = write.site->site->plan;
      size_t own = write.edit->before.size(), size = std::max(own, kJumpReachBytes);
      if (write.edit->at == plan.site) size = std::max(size, plan.window.size());
      auto original = write.site->site->image->original(write.edit->at, size);
      auto offset = static_cast<size_t>(write.edit->at - start);
      // Behind the own bytes the mapping may end.
      size_t readable = std::min(original.size(), page.size() - std::min(page.size(), offset));
      bool same = readable >= own &&
                  std::equal(original.begin(), original.begin() + static_cast<ptrdiff_t>(readable),
                             page.begin() + static_cast<ptrdiff_t>(offset));
      if (!same)
        return fail(ErrorCode::kUnsafe,
                    "the code at {} has changed since it was looked at: unloaded, or patched by "
                    "another tool",
                    write.edit->at);
    }
    first = i;
  }
  return {};
}

/// The site whose window may hold the thread's rip, or the system call instruction right before it:
/// that one decides where the call is restarted, also when another window begins at rip.
const BuiltSite* Attacher::site_around(const Batch& batch, const target::StoppedThread& thread) {
  TargetAddr rip(thread.registers.rip - (thread.in_user_code() ? 0 : 1));
  auto after = std::ranges::upper_bound(batch.sites, rip, {},
                                        [](const BuiltSite* s) { return s->site->plan.site; });
  if (after == batch.sites.begin()) return nullptr;
  const BuiltSite* site = *std::prev(after);
  uint64_t bytes = std::max(site->site->plan.window.size(), patch::kPatchBytes);
  return static_cast<uint64_t>(rip - site->site->plan.site) <= bytes ? site : nullptr;
}

Result<TargetAddr> Attacher::rip_after(const BuiltSite& site,
                                       const target::StoppedThread& thread) const {
  bool in_syscall = static_cast<int64_t>(thread.registers.orig_rax) >= 0;
  return patch::rip_after_attach(site.site->plan, site.segments, TargetAddr(thread.registers.rip),
                                 in_syscall);
}

/// Threads that stand where no displaced instruction begins, and those that were interrupted inside
/// a window and will come back there when their signal handler returns.
Result<void> Attacher::find_blocked_sites(const StoppedProcess& process, const Batch& batch) {
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

std::vector<target::RegionSpec> Attacher::region_specs() const {
  using Kind = target::RegionSpec::Kind;
  const AddressPlan& addresses = prepared_.addresses;
  std::vector<target::RegionSpec> specs;
  // Where the process runs before the code is written, it need not wait for the pages.
  bool later = needs_many_stops();
  for (const CodeImage& code : prepared_.code) {
    specs.push_back(
        {Kind::kCode, std::string(kCodeName), code.base, code.bytes.size(), !later, later});
  }
  if (!addresses.stone_pages.empty()) {
    target::RegionSpec stones{Kind::kCode, std::string(kCodeName), {}, 0, true};
    for (const AddressRange& page : addresses.stone_pages) stones.add_piece(page);
    specs.push_back(std::move(stones));
  }
  specs.push_back({Kind::kData, std::string(kDataName), addresses.data_base,
                   prepared_.layout.size_bytes, false});
  specs.push_back({Kind::kPrivate, {}, addresses.private_base, kPageBytes, true});
  return specs;
}

Result<void> Attacher::map_regions(StoppedProcess& process) {
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
  return {};
}

/// Fresh memory is zero, as most of the image is.
Result<void> Attacher::fill_data() {
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

abi::RtConsts Attacher::constants(TargetAddr code_base) const {
  abi::RtConsts consts =
      shm::consts_for(prepared_.layout, prepared_.addresses.data_base.value, code_base.value);
  if (tid_offset_) {
    consts.tid_source = abi::TidSource::kFsField;
    consts.tid_fs_offset = static_cast<int32_t>(*tid_offset_);
  }
  if (prepared_.seccomp_mode != 0) consts.allowed_calls = 0;
  if (auto status = os::read_status(target_.pid());
      status && status->innermost_tid != target_.pid()) {
    consts.tgid_inside = static_cast<uint32_t>(status->innermost_tid);
    consts.tgid_outside = static_cast<uint32_t>(target_.pid());
  }
  consts.wipe_on_fork = prepared_.addresses.private_base.value;
  consts.safe_range_count = static_cast<uint32_t>(prepared_.safe_ranges.size());
  std::ranges::copy(prepared_.safe_ranges, consts.safe_ranges);
  return consts;
}

Result<void> Attacher::fill_code() {
  for (size_t i = 0; i < prepared_.code.size(); i++) {
    const CodeImage& code = prepared_.code[i];
    SPILE_TRY_VOID(target::allocate_pages(code_[i]));
    std::span<uint8_t> memory = code_[i].local.bytes();
    std::memcpy(memory.data(), code.bytes.data(), code.bytes.size());
    SPILE_TRY(uint64_t bodies,
              shm::write_code_prefix(memory, prepared_.layout, constants(code.base)));
    SPILE_CHECK(bodies <= abi::bodies_offset(prepared_.layout.maps.size()));
  }
  fill_stones();
  // Our writable views go: from here on nobody can change this code.
  code_.clear();
  return {};
}

void Attacher::fill_stones() {
  const AddressPlan& addresses = prepared_.addresses;
  if (addresses.stone_pages.empty()) return;
  std::span<uint8_t> memory = code_.back().local.bytes();
  std::ranges::fill(memory, uint8_t{0xcc});
  for (const BuiltSite* built : built_) {
    auto placed = addresses.placements.find(built->site);
    if (placed == addresses.placements.end()) continue;
    size_t offset = 0;
    for (const AddressRange& page : addresses.stone_pages) {
      if (page.contains(placed->second.stone)) {
        auto bytes = patch::stone_bytes(built->detour);
        std::memcpy(&memory[offset + static_cast<size_t>(placed->second.stone - page.start)],
                    bytes.data(), bytes.size());
      }
      offset += page.size();
    }
  }
}

void Attacher::set_state(abi::JournalState state) {
  __atomic_store_n(reinterpret_cast<uint32_t*>(&region_.journal_untrusted().state),
                   static_cast<uint32_t>(state), __ATOMIC_RELEASE);
}

/// Whose the mappings are: another spile that finds them leaves them alone.
void Attacher::begin_journal() {
  abi::Journal& journal = region_.journal_untrusted();
  journal.magic = abi::kJournalMagic;
  journal.version = abi::kJournalVersion;
  journal.tracer_pid = static_cast<uint32_t>(getpid());
  journal.target_pid = static_cast<uint32_t>(target_.pid());
  if (auto stat = os::read_stat(getpid(), getpid())) journal.tracer_start_time = stat->start_time;
  journal.target_start_time = target_.start_time();
  journal.region_count = 0;
  for (const CodeImage& code : prepared_.code) {
    if (journal.region_count + 2 < abi::kMaxRegions) {
      journal.regions[journal.region_count++] = {code.base.value, code.bytes.size(), 0,
                                                 abi::RegionKind::kCode, 0};
    }
  }
  journal.regions[journal.region_count++] = {prepared_.addresses.data_base.value,
                                             prepared_.layout.size_bytes, 0, abi::RegionKind::kData,
                                             0};
  journal.regions[journal.region_count++] = {prepared_.addresses.private_base.value, kPageBytes, 0,
                                             abi::RegionKind::kPerThread, 0};
  set_state(abi::JournalState::kMapped);
  journaled_ = true;
}

/// Before the first code byte changes, everything that undoing it takes is in the journal.
void Attacher::write_journal_ahead() {
  auto entries = region_.sites_untrusted();
  SPILE_CHECK(writes_.size() <= entries.size());
  for (size_t i = 0; i < writes_.size(); i++) {
    const patch::Edit& edit = *writes_[i].edit;
    const PlannedSite& site = *writes_[i].site->site;
    abi::SiteEntry entry = {};
    entry.address = edit.at.value;
    entry.file_offset = site.image->file_offset(edit.at).value;
    entry.detour = writes_[i].site->detour.value;
    entry.cookie =
        site.probes.empty() ? abi::kNoProbe : static_cast<uint32_t>(site.probes.front().front());
    entry.length = static_cast<uint8_t>(edit.after.size());
    entry.level = edit.level;
    std::ranges::copy(edit.before, entry.original);
    std::ranges::copy(edit.after, entry.patched);
    entry.state = abi::SiteState::kPlanned;
    entries[i] = entry;
  }
  region_.journal_untrusted().site_count = static_cast<uint32_t>(writes_.size());
  set_state(abi::JournalState::kPatching);
}

/// A thread that is stopped inside a window continues in the copy. The jump is not there yet, so
/// both ways are right and a tracer that dies here has done no harm.
Result<void> Attacher::move_threads(StoppedProcess& process, const Batch& batch) {
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
Result<void> Attacher::write_jumps(const StoppedProcess& process, const Batch& batch) {
  const size_t end = batch.first + batch.count;
  for (size_t first = batch.first; first < end;) {
    size_t last = first;
    while (last + 1 < end && writes_[last + 1].edit->level == writes_[first].edit->level &&
           page_of(writes_[last + 1].edit->at) == page_of(writes_[first].edit->at))
      last++;
    SPILE_TRY_VOID(write_page(process, first, last));
    first = last + 1;
  }
  return {};
}

Result<void> Attacher::write_page(const StoppedProcess& process, size_t first, size_t last) {
  TargetAddr start = writes_[first].edit->at;
  const patch::Edit& end = *writes_[last].edit;
  std::vector<uint8_t> bytes(static_cast<size_t>(end.at - start) + end.after.size());
  SPILE_TRY_VOID(process.memory().read(start, bytes));
  for (size_t i = first; i <= last; i++)
    std::ranges::copy(writes_[i].edit->after, bytes.begin() + (writes_[i].edit->at - start));
  auto written = process.memory().write(start, bytes);
  if (!written) return forward(written, "write {} jumps at {}", last - first + 1, start);
  auto entries = region_.sites_untrusted();
  for (size_t i = first; i <= last; i++) {
    __atomic_store_n(reinterpret_cast<uint8_t*>(&entries[i].state),
                     static_cast<uint8_t>(abi::SiteState::kPatched), __ATOMIC_RELEASE);
  }
  return {};
}

void Attacher::note_stop(const StoppedProcess& process) {
  stopped_ns_ = std::max(stopped_ns_, static_cast<uint64_t>(process.stopped_for().count()));
}

Result<void> Attacher::patch(StoppedProcess& process, const Batch& batch) {
  SPILE_TRY_VOID(move_threads(process, batch));
  return write_jumps(process, batch);
}

Result<void> Attacher::commit(StoppedProcess& process) {
  for (const Batch& batch : batches_) {
    SPILE_TRY_VOID(check_unchanged(process, writes_of(batch)));
    SPILE_TRY_VOID(find_blocked_sites(process, batch));
  }
  SPILE_TRY_VOID(map_regions(process));
  // Beyond this point the target has mappings of ours, and nothing in it uses them.
  SPILE_TRY_VOID(fill_data());
  tid_offset_ = process.tid_offset();
  SPILE_TRY_VOID(fill_code());
  if (context_.before_patch) SPILE_TRY_VOID(context_.before_patch());
  begin_journal();
  write_journal_ahead();
  // Beyond this point every change can be undone by whoever finds the journal.
  for (const Batch& batch : batches_) SPILE_TRY_VOID(patch(process, batch));
  set_state(abi::JournalState::kAttached);
  note_stop(process);
  return {};
}

Result<void> Attacher::commit_first_of_many(StoppedProcess& process) {
  SPILE_TRY_VOID(map_regions(process));
  SPILE_TRY_VOID(fill_data());
  tid_offset_ = process.tid_offset();
  begin_journal();
  note_stop(process);
  return {};
}

/// Threads that are in the way of a batch may be elsewhere a moment later.
Result<void> Attacher::patch_in_stop_of_its_own(const Batch& batch) {
  for (int attempt = 1;; attempt++) {
    blocked_.clear();
    auto done = target::with_tracer_thread([&]() -> Result<void> {
      SPILE_TRY(auto process, StoppedProcess::stop(target_));
      SPILE_TRY_VOID(check_unchanged(process, writes_of(batch)));
      SPILE_TRY_VOID(find_blocked_sites(process, batch));
      SPILE_TRY_VOID(patch(process, batch));
      note_stop(process);
      return {};
    });
    if (done || done.error().code != ErrorCode::kBusy || attempt == kMaxAttempts / 2) return done;
    std::this_thread::sleep_for(std::chrono::milliseconds(2 * attempt));
  }
}

Result<void> Attacher::commit_rest() {
  SPILE_TRY_VOID(fill_code());
  if (context_.before_patch) SPILE_TRY_VOID(context_.before_patch());
  write_journal_ahead();
  for (const Batch& batch : batches_) SPILE_TRY_VOID(patch_in_stop_of_its_own(batch));
  set_state(abi::JournalState::kAttached);
  return {};
}

void Attacher::roll_back(StoppedProcess& process) {
  if (!std::exchange(mapped_, false)) return;
  bool undone = undo_in_stop(process, patched_sites(), ranges()).has_value();
  forget_regions(undone);
}

/// The process has run with some of our jumps in it.
void Attacher::roll_back_running() {
  if (!std::exchange(mapped_, false)) return;
  bool undone = undo_running(target_, patched_sites(), ranges(), mappings_).has_value();
  forget_regions(undone);
}

void Attacher::forget_regions(bool undone) {
  // Where that failed, whoever comes next may take it out: nobody lives who needs it.
  if (!undone && journaled_)
    __atomic_store_n(&region_.journal_untrusted().tracer_pid, 0, __ATOMIC_RELEASE);
  journaled_ = false;
  region_ = {};
  data_.reset();
  code_.clear();
}

void Attacher::give_up_blocked_sites() {
  for (const PlannedSite* site : std::exchange(blocked_, {})) {
    if (site->plan.mechanism == patch::Mechanism::kShort) {
      refuse(*site,
             "a thread stays inside the instructions to be replaced (or was interrupted there by a "
             "signal, or its stack cannot be searched for that)");
      continue;
    }
    dropped_.insert(site);
    for (size_t i = 0; i < site->plan.probed.size(); i++) {
      auto alone =
          patch::plan_short(site->image->code(), site->plan.site + site->plan.probed[i].offset);
      if (alone) {
        plan_->sites.push_back({std::move(*alone), site->image, {site->probes[i]}});
        continue;
      }
      SiteReport report = describe(*site, target_.pid(), *context_.bundle)[i];
      report.refused = true;
      report.reason = fmt::format(
          "a thread stays inside the instructions to be replaced, and the first alone cannot be: "
          "{}",
          alone.error().reason);
      refused_.push_back(std::move(report));
    }
  }
}

std::vector<PatchedSite> Attacher::patched_sites() const {
  std::vector<PatchedSite> sites;
  for (const BuiltSite* b : built_)
    sites.push_back({b->site, b->detour, b->segments, b->edits, b->stack_bytes});
  return sites;
}

/// In the order in which they are taken out: the data region last, for as long as anything is there
/// the journal is too.
std::vector<RegionRange> Attacher::ranges() const {
  const AddressPlan& addresses = prepared_.addresses;
  std::vector<RegionRange> ranges;
  for (const CodeImage& code : prepared_.code)
    ranges.push_back({abi::RegionKind::kCode, {code.base, code.base + code.bytes.size()}});
  for (const AddressRange& page : addresses.stone_pages)
    ranges.push_back({abi::RegionKind::kCode, page});
  ranges.push_back(
      {abi::RegionKind::kPerThread, {addresses.private_base, addresses.private_base + kPageBytes}});
  ranges.push_back({abi::RegionKind::kData,
                    {addresses.data_base, addresses.data_base + prepared_.layout.size_bytes}});
  return ranges;
}

std::unique_ptr<Attachment> Attacher::finish(std::unique_ptr<Target> target) {
  auto attachment = std::make_unique<Attachment>();
  attachment->pid = target_.pid();
  attachment->target = std::move(target);
  attachment->ranges = ranges();
  for (const BuiltSite* b : built_) {
    // Nobody else needs what was built.
    auto& built = const_cast<BuiltSite&>(*b);
    attachment->sites.push_back(
        {b->site, b->detour, std::move(built.segments), std::move(built.edits), b->stack_bytes});
  }
  attachment->plan = plan_;
  attachment->addresses = std::move(prepared_.addresses);
  for (auto* list : {&plan_->refused, &refused_})
    attachment->refused.insert(attachment->refused.end(), list->begin(), list->end());
  attachment->mappings = std::move(mappings_);
  attachment->data = std::move(data_);
  attachment->region = std::move(region_);
  attachment->stopped_ns = stopped_ns_;
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

std::vector<SiteReport> site_reports(const Attachment& attachment, const bundle::Bundle& bundle) {
  std::vector<SiteReport> reports;
  for (const PatchedSite& site : attachment.sites) {
    auto placed = attachment.addresses.placements.find(site.planned);
    for (SiteReport& report : describe(*site.planned, attachment.pid, bundle)) {
      if (placed != attachment.addresses.placements.end()) {
        report.mechanism = placed->second.how;
        report.reason = placed->second.why;
      }
      const patch::Edit& edit = site.edits.back();
      report.after = report.before;
      report.after.resize(std::max(report.after.size(), edit.after.size()));
      std::ranges::copy(edit.after, report.after.begin());
      reports.push_back(std::move(report));
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

    // The stop: look, map, fill, journal, move threads, write jumps, go. Where that would take too
    // long, the first stop only maps, and the jumps are written batch by batch.
    auto began = std::chrono::steady_clock::now();
    auto done = target::with_tracer_thread([&]() -> Result<void> {
      SPILE_TRY(auto process, StoppedProcess::stop(*target));
      SPILE_TRY_VOID(expect_nobody(*target));
      auto committed = attacher.needs_many_stops() ? attacher.commit_first_of_many(process)
                                                   : attacher.commit(process);
      if (!committed) attacher.roll_back(process);
      return committed;
    });
    auto held = std::chrono::steady_clock::now() - began;
    if (done && attacher.needs_many_stops()) {
      done = attacher.commit_rest();
      if (!done) attacher.roll_back_running();
    }
    if (done) break;
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
