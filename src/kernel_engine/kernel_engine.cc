#include "kernel_engine/kernel_engine.h"

#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <linux/bpf.h>
#include <time.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <map>

#include "kernel_engine/attach.h"
#include "kernel_engine/maps.h"
#include "kernel_engine/program.h"
#include "kernel_engine/uprobe_sites.h"
#include "os/process.h"

namespace spile::kernel_engine {

using bundle::Bundle;
using bundle::Probe;
using bundle::ProbeKind;
using engine::SiteReport;

namespace {

uint64_t monotonic_ns() {
  timespec now = {};
  clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<uint64_t>(now.tv_sec) * 1'000'000'000 + static_cast<uint64_t>(now.tv_nsec);
}

LoadType load_type(ProbeKind kind) {
  switch (kind) {
    case ProbeKind::kBegin:
    case ProbeKind::kEnd: return LoadType::kTestRun;
    case ProbeKind::kInterval: return LoadType::kPerfEvent;
    case ProbeKind::kTracepoint: return LoadType::kTracepoint;
    default: return LoadType::kKprobe;
  }
}

/// Placed by the kernel's uprobes.
bool is_user_code(ProbeKind kind) {
  return kind == ProbeKind::kUprobe || kind == ProbeKind::kUretprobe || kind == ProbeKind::kUsdt;
}

UprobeMoment moment_of(ProbeKind kind) {
  return kind == ProbeKind::kUretprobe ? UprobeMoment::kReturn : UprobeMoment::kEntry;
}

const char* name_of(ProbeKind kind) {
  return kind == ProbeKind::kUretprobe ? "uretprobe" : "uprobe";
}

bool calls(const bundle::Program& program, bpf::Helper helper) {
  return std::ranges::any_of(program.code, [&](const bpf::Insn& insn) {
    return insn.code == (bpf::kClassJmp | bpf::kCall) && insn.src() == bpf::kCallHelper &&
           insn.imm == static_cast<int32_t>(helper);
  });
}

struct RingDeleter {
  void operator()(ring_buffer* ring) const { ring_buffer__free(ring); }
};

class KernelTrace final : public engine::Trace {
 public:
  KernelTrace(const Bundle& bundle, engine::Scope scope, const Options& options)
      : bundle_(bundle), scope_(std::move(scope)), options_(options) {}
  ~KernelTrace() override = default;

  Result<void> start();

  Result<size_t> poll(std::chrono::milliseconds timeout, const engine::RecordSink& sink) override;
  bool targets_gone() override;
  Result<std::vector<engine::MapEntry>> read_map(int map) override { return maps_->read(map); }
  Result<void> clear_map(int map) override { return maps_->clear(map); }
  Result<void> zero_map(int map) override { return maps_->zero(map); }
  Result<std::vector<uint64_t>> read_stack(int map, uint64_t id) override {
    return maps_->read_stack(map, id);
  }
  Result<void> run_end() override { return run_all(ProbeKind::kEnd); }
  Result<void> detach() override;
  Result<engine::Stats> stats() override;
  std::vector<SiteReport> sites() override { return sites_; }

 private:
  Result<int> program(int index, LoadType type);
  bool overrides(const Probe& probe) const {
    return probe.program >= 0 && calls(bundle_.programs.at(static_cast<size_t>(probe.program)),
                                       bpf::Helper::kOverrideReturn);
  }
  Result<void> refuse_overrides_of_programs() const;
  Result<void> open_ring();
  Result<void> run_all(ProbeKind kind);
  Result<void> attach_probe(size_t index);
  Result<void> attach_single_uprobe(const UprobeSite& site);
  Result<void> attach_uprobes();
  Result<std::vector<UprobeSite>> find_uprobe_sites(const std::vector<size_t>& probes);
  Result<void> attach_uprobe_group(const std::string& path,
                                   int program_index,
                                   const std::vector<size_t>& probes);
  void report(size_t probe, std::string mechanism, uint64_t address = 0);
  void refuse(size_t probe, std::string reason);
  Result<uint64_t> sum_counter(bundle::Counter counter);

  Bundle bundle_;
  engine::Scope scope_;
  Options options_;
  std::optional<Maps> maps_;
  std::map<std::pair<int, LoadType>, Fd> programs_;
  std::vector<Link> links_;
  std::unique_ptr<ring_buffer, RingDeleter> ring_;
  const engine::RecordSink* sink_ = nullptr;
  SiteResolver resolver_;
  std::vector<SiteReport> sites_;
  Fd run_stats_;
  std::vector<Fd> processes_;  ///< pidfds of the scope
};

int on_record(void* sink_slot, void* data, size_t size) {
  const auto* sink = *static_cast<const engine::RecordSink**>(sink_slot);
  if (sink != nullptr) (*sink)({static_cast<const uint8_t*>(data), size});
  return 0;
}

void KernelTrace::report(size_t probe, std::string mechanism, uint64_t address) {
  if (bundle_.probes[probe].entry_of >= 0) return;
  SiteReport site;
  site.probe = static_cast<int>(probe);
  site.location = bundle_.probes[probe].name;
  site.address = address;
  site.mechanism = std::move(mechanism);
  sites_.push_back(std::move(site));
}

void KernelTrace::refuse(size_t probe, std::string reason) {
  if (bundle_.probes[probe].entry_of >= 0) return;
  SiteReport site;
  site.probe = static_cast<int>(probe);
  site.location = bundle_.probes[probe].name;
  site.refused = true;
  site.reason = std::move(reason);
  sites_.push_back(std::move(site));
}

Result<int> KernelTrace::program(int index, LoadType type) {
  Fd& fd = programs_[{index, type}];
  if (!fd) {
    SPILE_TRY(fd, load_program(bundle_.programs.at(index), type, *maps_));
  }
  return fd.get();
}

Result<void> KernelTrace::open_ring() {
  if (bundle_.ring_map < 0) return {};
  ring_.reset(ring_buffer__new(maps_->fd(bundle_.ring_map), on_record, &sink_, nullptr));
  if (!ring_) return fail_errno(errno, "open the ring buffer");
  return {};
}

Result<void> KernelTrace::run_all(ProbeKind kind) {
  for (const Probe& probe : bundle_.probes) {
    if (probe.kind != kind) continue;
    SPILE_TRY(int fd, program(probe.program, LoadType::kTestRun));
    SPILE_TRY_VOID(run_once(fd, kind == ProbeKind::kBegin ? "BEGIN" : "END"));
  }
  return {};
}

Result<void> KernelTrace::attach_single_uprobe(const UprobeSite& site) {
  const Probe& probe = bundle_.probes[site.probe];
  SPILE_TRY(int fd, program(probe.program, LoadType::kKprobe));
  std::vector<pid_t> pids = scope_.pids.empty() ? std::vector<pid_t>{-1} : scope_.pids;
  for (pid_t pid : pids) {
    SPILE_TRY(Link link, attach_uprobe(fd, probe.path, site, moment_of(probe.kind), pid));
    links_.push_back(std::move(link));
  }
  report(site.probe, fmt::format("{} (perf event)", name_of(probe.kind)), site.offset.value);
  return {};
}

/// The places of these probes. One of many that cannot be probed is left out by name.
Result<std::vector<UprobeSite>> KernelTrace::find_uprobe_sites(const std::vector<size_t>& probes) {
  std::vector<UprobeSite> sites;
  std::optional<Error> refused;
  for (size_t index : probes) {
    auto found = resolver_.resolve(bundle_.probes[index]);
    if (found) {
      for (const FileSite& site : *found)
        sites.push_back({site.offset, site.semaphore, bundle_.cookie_of(index), index});
      continue;
    }
    ErrorCode code = found.error().code;
    bool is_refusal = code == ErrorCode::kUnsupported || code == ErrorCode::kUnsafe ||
                      code == ErrorCode::kInvalid;
    if (!is_refusal || probes.size() == 1) return std::unexpected(std::move(found.error()));
    refuse(index, found.error().message);
    if (!refused) refused = std::move(found.error());
  }
  if (sites.empty() && refused) return std::unexpected(std::move(*refused));
  return sites;
}

Result<void> KernelTrace::attach_uprobe_group(const std::string& path,
                                              int program_index,
                                              const std::vector<size_t>& probes) {
  SPILE_TRY(const auto sites, find_uprobe_sites(probes));
  SPILE_TRY_VOID(refuse_patched_sites(path, sites));
  ProbeKind kind = bundle_.probes[probes.front()].kind;  // a program has probes of one kind
  if (options_.force_perf_uprobes || !has_uprobe_multi(!scope_.pids.empty())) {
    for (const UprobeSite& site : sites) SPILE_TRY_VOID(attach_single_uprobe(site));
    return {};
  }
  SPILE_TRY(int fd, program(program_index, LoadType::kUprobeMulti));
  std::vector<pid_t> pids = scope_.pids.empty() ? std::vector<pid_t>{0} : scope_.pids;
  for (pid_t pid : pids) {
    SPILE_TRY(Link link, attach_uprobe_multi(fd, path, sites, moment_of(kind), pid));
    links_.push_back(std::move(link));
  }
  for (const UprobeSite& site : sites)
    report(site.probe, fmt::format("{} (uprobe.multi)", name_of(kind)), site.offset.value);
  return {};
}

/// All uprobes of one program and file share a link. Groups keep the order of their first probe.
Result<void> KernelTrace::attach_uprobes() {
  std::map<std::pair<std::string, int>, std::vector<size_t>> groups;
  std::vector<std::pair<std::string, int>> order;
  for (size_t i = 0; i < bundle_.probes.size(); i++) {
    const Probe& probe = bundle_.probes[i];
    if (!is_user_code(probe.kind)) continue;
    auto key = std::pair(probe.path, probe.program);
    if (groups[key].empty()) order.push_back(key);
    groups[key].push_back(i);
  }
  for (const auto& key : order)
    SPILE_TRY_VOID(attach_uprobe_group(key.first, key.second, groups[key]));
  return {};
}

Result<void> KernelTrace::attach_probe(size_t index) {
  const Probe& probe = bundle_.probes[index];
  switch (probe.kind) {
    case ProbeKind::kBegin:
    case ProbeKind::kEnd:
    case ProbeKind::kUprobe:
    case ProbeKind::kUretprobe:
    case ProbeKind::kUsdt: return {};  // run_all, attach_uprobes
    case ProbeKind::kInterval: {
      SPILE_TRY(int fd, program(probe.program, LoadType::kPerfEvent));
      SPILE_TRY(Link link, attach_interval(fd, probe.interval_ns, bundle_.cookie_of(index)));
      links_.push_back(std::move(link));
      report(index, "perf event cpu-clock");
      return {};
    }
    case ProbeKind::kKprobe:
    case ProbeKind::kKretprobe: {
      bool is_return = probe.kind == ProbeKind::kKretprobe;
      SPILE_TRY(int fd, program(probe.program, LoadType::kKprobe));
      std::string function =
          probe.module.empty() ? probe.symbol : probe.module + ":" + probe.symbol;
      if (probe.address) function.clear();
      SPILE_TRY(Link link, attach_kprobe(fd, function, probe.address.value_or(probe.offset),
                                         is_return, bundle_.cookie_of(index)));
      links_.push_back(std::move(link));
      report(index, is_return ? "kretprobe (perf event)" : "kprobe (perf event)");
      return {};
    }
    case ProbeKind::kTracepoint: {
      SPILE_TRY(int fd, program(probe.program, LoadType::kTracepoint));
      SPILE_TRY(Link link,
                attach_tracepoint(fd, probe.module, probe.symbol, bundle_.cookie_of(index)));
      links_.push_back(std::move(link));
      report(index, "tracepoint (perf event)");
      return {};
    }
  }
  return {};
}

/// The kernel overrides functions of its own that are made for it, none of programs.
Result<void> KernelTrace::refuse_overrides_of_programs() const {
  for (const Probe& probe : bundle_.probes) {
    if (!overrides(probe) || probe.kind == ProbeKind::kKprobe) continue;
    return fail(ErrorCode::kUnsupported,
                "{}: the kernel cannot override functions of programs; the user engine can: give "
                "-p PID or -c COMMAND, and --engine user",
                probe.name);
  }
  return {};
}

/// Loads everything before the first probe is live: a program that the verifier refuses leaves no
/// trace.
Result<void> KernelTrace::start() {
  libbpf_set_print(nullptr);
  libbpf_set_strict_mode(LIBBPF_STRICT_ALL);
  for (pid_t pid : scope_.pids) {
    auto pidfd = os::open_pidfd(pid);
    if (!pidfd) return forward(pidfd, "trace process {}", pid);
    processes_.push_back(std::move(*pidfd));
  }
  SPILE_TRY_VOID(refuse_overrides_of_programs());
  SPILE_TRY(maps_, Maps::create(bundle_.maps));
  for (const Probe& probe : bundle_.probes) {
    if (is_user_code(probe.kind) || probe.program < 0) continue;
    auto loaded = program(probe.program, load_type(probe.kind));
    if (!loaded && loaded.error().message.find("bpf_override_return") != std::string::npos) {
      return fail(
          ErrorCode::kUnsupported,
          "{}: override() needs a kernel with CONFIG_BPF_KPROBE_OVERRIDE, which this one is "
          "not",
          probe.name);
    }
    if (!loaded) return forward(loaded, "{}", probe.name);
  }
  SPILE_TRY_VOID(open_ring());
  if (options_.measure) run_stats_ = Fd(bpf_enable_stats(BPF_STATS_RUN_TIME));
  if (bundle_.start_map >= 0)
    SPILE_TRY_VOID(maps_->set_array(bundle_.start_map, 0, monotonic_ns()));
  SPILE_TRY_VOID(run_all(ProbeKind::kBegin));
  SPILE_TRY_VOID(attach_uprobes());
  for (size_t i = 0; i < bundle_.probes.size(); i++) {
    auto attached = attach_probe(i);
    if (!attached && overrides(bundle_.probes[i]))
      return forward(attached,
                     "attach {}: override() works at functions listed in "
                     "/sys/kernel/debug/error_injection/list",
                     bundle_.probes[i].name);
    if (!attached) return forward(attached, "attach {}", bundle_.probes[i].name);
  }
  return {};
}

Result<size_t> KernelTrace::poll(std::chrono::milliseconds timeout,
                                 const engine::RecordSink& sink) {
  if (!ring_) {
    timespec wait = {timeout.count() / 1000, timeout.count() % 1000 * 1'000'000};
    nanosleep(&wait, nullptr);
    return size_t{0};
  }
  sink_ = &sink;
  int count = ring_buffer__poll(ring_.get(), static_cast<int>(timeout.count()));
  sink_ = nullptr;
  if (count < 0 && count != -EINTR) return fail_errno(-count, "read the ring buffer");
  return static_cast<size_t>(std::max(count, 0));
}

bool KernelTrace::targets_gone() {
  if (processes_.empty()) return false;
  return std::ranges::none_of(processes_, [](const Fd& pidfd) { return os::pidfd_alive(pidfd); });
}

Result<void> KernelTrace::detach() {
  links_.clear();
  return {};
}

Result<uint64_t> KernelTrace::sum_counter(bundle::Counter counter) {
  if (bundle_.counters_map < 0) return uint64_t{0};
  SPILE_TRY(auto entries, maps_->read(bundle_.counters_map));
  auto index = static_cast<size_t>(counter);
  uint64_t sum = 0;
  if (index >= entries.size()) return sum;
  for (const auto& value : entries[index].values) {
    uint64_t one = 0;
    std::memcpy(&one, value.data(), std::min<size_t>(8, value.size()));
    sum += one;
  }
  return sum;
}

Result<engine::Stats> KernelTrace::stats() {
  engine::Stats stats;
  SPILE_TRY(stats.ring_lost, sum_counter(bundle::Counter::kRingLost));
  SPILE_TRY(stats.map_full, sum_counter(bundle::Counter::kMapFull));
  SPILE_TRY(stats.read_failed, sum_counter(bundle::Counter::kReadFailed));
  SPILE_TRY(stats.stacks_lost, sum_counter(bundle::Counter::kStackLost));
  SPILE_TRY(stats.loops_cut, sum_counter(bundle::Counter::kLoopCut));
  uint64_t time_ns = 0;
  for (const auto& [key, fd] : programs_) {
    if (!fd || key.second == LoadType::kTestRun) continue;
    SPILE_TRY(RunCounts counts, run_counts(fd.get()));
    stats.hits += counts.runs;
    stats.missed += counts.missed;
    time_ns += counts.time_ns;
  }
  if (stats.hits > 0) stats.hit_ns = static_cast<double>(time_ns) / static_cast<double>(stats.hits);
  return stats;
}

class KernelEngine final : public engine::Engine {
 public:
  explicit KernelEngine(const Options& options) : options_(options) {}
  std::string_view name() const override { return "kernel"; }
  Result<std::unique_ptr<engine::Trace>> attach(const Bundle& bundle,
                                                const engine::Scope& scope) override {
    auto trace = std::make_unique<KernelTrace>(bundle, scope, options_);
    SPILE_TRY_VOID(trace->start());
    return trace;
  }

 private:
  Options options_;
};

}  // namespace

std::unique_ptr<engine::Engine> make_engine(const Options& options) {
  return std::make_unique<KernelEngine>(options);
}

}  // namespace spile::kernel_engine
