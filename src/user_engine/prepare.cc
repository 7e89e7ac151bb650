#include "user_engine/prepare.h"

#include <sys/mman.h>
#include <time.h>

#include <algorithm>
#include <cerrno>
#include <map>
#include <numeric>

#include "user_engine/jit/trap_page.h"
#include "user_engine/loader_watch.h"
#include "user_engine/shm/maps.h"

namespace spile::user_engine {

using target::Target;

namespace {

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

/// As it is now: it may grow downwards, what is there stays. Empty where it is not in one piece.
abi::SafeRange main_stack(const Target& target) {
  abi::SafeRange found = {};
  auto maps = target.maps();
  if (!maps) return found;
  for (const os::MapEntry& map : *maps) {
    if (map.path != "[stack]") continue;
    if (found.end != 0 || !map.read || !map.write) return {};
    found = {map.start.value, map.end.value};
  }
  return found;
}

/// What is in order mostly is: with many sites that is worth the question.
template <typename T, typename Key>
void sort_unless_sorted(std::vector<T>& list, const Key& key) {
  if (!std::ranges::is_sorted(list, {}, key)) std::ranges::sort(list, {}, key);
}

bool is_trap(const PlannedSite* site) {
  return site->plan.mechanism == patch::Mechanism::kTrap;
}

void collect_writes(Prepared& out) {
  size_t edits = 0;
  for (CodeImage& code : out.code) {
    for (BuiltSite& site : code.sites) {
      out.built.push_back(&site);
      edits += site.edits.size();
    }
  }
  out.writes.reserve(edits);
  sort_unless_sorted(out.built, [](const BuiltSite* s) { return s->site->plan.site; });
  for (const BuiltSite* site : out.built) {
    for (const patch::Edit& edit : site->edits) out.writes.push_back({&edit, site});
  }
  sort_unless_sorted(out.writes,
                     [](const Write& w) { return std::pair(w.edit->level, w.edit->at); });
  out.by_address.resize(out.writes.size());
  std::iota(out.by_address.begin(), out.by_address.end(), 0u);
  sort_unless_sorted(out.by_address, [&](uint32_t i) { return out.writes[i].edit->at; });
}

/// In the order of writing: what other jumps lead over comes first.
void make_batches(Prepared& out) {
  out.batches.clear();
  for (size_t first = 0; first < out.writes.size(); first += kEditsPerStop) {
    Batch batch{first, std::min(kEditsPerStop, out.writes.size() - first), {}};
    for (const Write& write : out.writes_of(batch)) {
      if (write.edit == &write.site->edits.back()) batch.sites.push_back(write.site);
    }
    sort_unless_sorted(batch.sites, [](const BuiltSite* s) { return s->site->plan.site; });
    out.batches.push_back(std::move(batch));
  }
}

class Preparer {
 public:
  Preparer(const Target& target,
           const AttachContext& context,
           const std::vector<const PlannedSite*>& sites,
           const PrepareOptions& options)
      : target_(target), context_(context), sites_(sites), options_(options) {}

  Result<Prepared> run() {
    SPILE_TRY(out_.addresses, plan_addresses(target_, *context_.bundle, sites_));
    for (const auto& [site, refusal] : out_.addresses.refused)
      out_.refused.emplace_back(site, refusal.reason);
    if (!out_.refused.empty()) return std::move(out_);
    SPILE_TRY_VOID(lay_out_data());
    if (!out_.refused.empty()) return std::move(out_);
    SPILE_TRY_VOID(build_code());
    if (!out_.refused.empty()) return std::move(out_);
    if (options_.home == nullptr) SPILE_TRY_VOID(make_data());
    order_writes(out_);
    SPILE_TRY_VOID(make_trap_page());
    collect_semaphores();
    SPILE_TRY_VOID(check_semaphores(out_.semaphores, target_));
    out_.safe_ranges = safe_ranges(target_);
    out_.main_stack = main_stack(target_);
    out_.seccomp_mode = target_.seccomp_mode();
    return std::move(out_);
  }

 private:
  Result<void> lay_out_data();
  void move_in(const Home& home);
  Result<void> build_code();
  Result<CodeImage> build_neighbourhood(const Neighbourhood& n);
  Result<void> make_data();
  Result<void> make_trap_page();
  void collect_semaphores();

  const Target& target_;
  const AttachContext& context_;
  const std::vector<const PlannedSite*>& sites_;
  const PrepareOptions& options_;
  Prepared out_;
};

/// The site table has an entry an edit, so its size is known only now.
Result<void> Preparer::lay_out_data() {
  if (options_.home != nullptr) return move_in(*options_.home), Result<void>{};
  size_t edits = sites_.size() + options_.later_edits;
  for (const auto& [site, placement] : out_.addresses.placements) edits += placement.edits.size();
  shm::RegionOptions options;
  options.site_capacity = static_cast<uint32_t>(edits);
  SPILE_TRY(out_.layout, shm::plan_region(*context_.bundle, options));
  DataNeighbours wanted;
  wanted.pending_table =
      options_.later_calls ||
      std::ranges::any_of(sites_, [](const PlannedSite* site) { return site->notes_calls(); });
  wanted.private_stacks =
      std::ranges::any_of(sites_, [](const PlannedSite* site) { return site->image->is_go(); });
  const auto traps = static_cast<size_t>(std::ranges::count_if(sites_, is_trap));
  if (traps != 0) SPILE_TRY_VOID(place_traps(target_, jit::trap_page_bytes(traps), out_.addresses));
  return place_data(target_, out_.layout.size_bytes, wanted, out_.addresses);
}

void Preparer::move_in(const Home& home) {
  out_.layout = home.layout;
  out_.addresses.data_base = home.data_base;
  out_.addresses.private_base = home.private_base;
  out_.addresses.pending_base = home.pending_base;
  for (const PlannedSite* site : sites_) {
    if (site->notes_calls() && !home.pending_base)
      out_.refused.emplace_back(
          site,
          "calls of it would have to be noted, and this trace has no table for "
          "that: no return probe needed one when it began");
  }
}

Result<CodeImage> Preparer::build_neighbourhood(const Neighbourhood& n) {
  TargetAddr data_base = out_.addresses.data_base;
  CodeRequest request;
  request.base = n.base;
  request.bundle = context_.bundle;
  request.analyses = context_.analyses;
  for (size_t i = 0; i < out_.layout.maps.size(); i++)
    request.maps.push_back(shm::map_descriptor(out_.layout, i, data_base.value));
  request.sites = n.sites;
  request.placements = &out_.addresses.placements;
  bool has_rdpid =
      (shm::consts_for(out_.layout, data_base.value, n.base.value).flags & abi::kHasRdpid) != 0;
  request.cpu = has_rdpid ? jit::CpuNumber::kRdpid : jit::CpuNumber::kLsl;
  request.cpu_stats = data_base + abi::kStatsOffset;
  request.cpu_mask = out_.layout.cpu_slots - 1;
  request.count_hits = context_.count_hits;
  request.has_private_stacks = out_.addresses.stacks_base.has_value();
  return user_engine::build_code(request);
}

Result<void> Preparer::build_code() {
  for (const Neighbourhood& n : out_.addresses.neighbourhoods) {
    SPILE_TRY(auto code, build_neighbourhood(n));
    out_.refused.insert(out_.refused.end(), code.refused.begin(), code.refused.end());
    out_.code.push_back(std::move(code));
  }
  return {};
}

/// Made here, in memory of our own, and copied in the stop: it holds no addresses.
Result<void> Preparer::make_data() {
  uint64_t size = out_.layout.size_bytes;
  void* memory = mmap(nullptr, size, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) return fail_errno(errno, "map {} bytes for maps and rings", size);
  out_.image = Mapping(memory, size);
  SPILE_TRY(out_.image_region, shm::Region::format(out_.image.bytes(), out_.layout));
  context_.clock->publish(out_.image_region.time_page());
  if (context_.bundle->start_map >= 0) {
    timespec now = {};
    clock_gettime(CLOCK_MONOTONIC, &now);
    uint64_t ns =
        static_cast<uint64_t>(now.tv_sec) * 1'000'000'000 + static_cast<uint64_t>(now.tv_nsec);
    uint32_t index = 0;
    SPILE_TRY_VOID(shm::update(out_.image_region, static_cast<size_t>(context_.bundle->start_map),
                               {reinterpret_cast<const uint8_t*>(&index), 4},
                               {reinterpret_cast<const uint8_t*>(&ns), 8}));
  }
  if (std::ranges::any_of(sites_, [](const PlannedSite* site) { return site->only_awaits(); }))
    open_gate(out_.image_region);
  if (context_.begin) return context_.begin(out_.image_region);
  return {};
}

Result<void> Preparer::make_trap_page() {
  if (!out_.addresses.trap_page) return {};
  std::vector<jit::TrapSite> traps;
  for (const BuiltSite* built : out_.built) {
    if (is_trap(built->site))
      traps.push_back({built->site->plan.site, built->detour, built->site->plan.before[0]});
  }
  SPILE_TRY(out_.trap_page, jit::make_trap_page(out_.addresses.trap_page->start, traps));
  SPILE_CHECK(out_.trap_page.size() == out_.addresses.trap_page->size());
  return {};
}

void Preparer::collect_semaphores() {
  std::map<TargetAddr, TargetAddr> sites;
  for (const BuiltSite* built : out_.built) {
    for (const std::vector<Action>& actions : built->site->actions) {
      for (const Action& action : actions) {
        if (action.probe < 0) continue;
        LinkAddr counter(context_.bundle->probes.at(static_cast<size_t>(action.probe)).semaphore);
        if (counter.value == 0) continue;
        sites.try_emplace(built->site->image->module().bias.to_target(counter),
                          built->edits.back().at);
      }
    }
  }
  for (const auto& [counter, site] : sites) out_.semaphores.push_back({counter, site});
}

}  // namespace

void order_writes(Prepared& prepared) {
  collect_writes(prepared);
  make_batches(prepared);
}

Result<Prepared> prepare(const Target& target,
                         const AttachContext& context,
                         const std::vector<const PlannedSite*>& sites,
                         const PrepareOptions& options) {
  return Preparer(target, context, sites, options).run();
}

}  // namespace spile::user_engine
