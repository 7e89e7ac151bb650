#include "kernel_engine/kernel_engine.h"

#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <linux/bpf.h>
#include <time.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <numeric>

#include "kernel_engine/attacher.h"
#include "kernel_engine/gate.h"
#include "kernel_engine/maps.h"
#include "kernel_engine/program.h"
#include "kernel_engine/record_reader.h"
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
  Result<uint32_t> run_probe(size_t probe) override;
  Result<double> measure_probe(size_t probe) override;
  Result<void> run_end() override { return run_all(ProbeKind::kEnd); }
  Result<void> detach() override;
  Result<void> switch_probes(std::span<const int> probes, bool on) override {
    return gate_->switch_probes(bundle_, probes, on);
  }
  Result<engine::Stats> stats() override;
  std::vector<SiteReport> sites() override { return attacher_->sites(); }
  std::vector<SiteReport> refusals() override;
  std::vector<std::string> take_warnings() override { return attacher_->take_warnings(); }
  std::set<int> placed_though_refused() override;

 private:
  bool overrides(const Probe& probe) const {
    return probe.program >= 0 && calls(bundle_.programs.at(static_cast<size_t>(probe.program)).code,
                                       bpf::Helper::kOverrideReturn);
  }
  Result<void> refuse_overrides_of_programs() const;
  Result<void> open_records();
  Result<void> run_all(ProbeKind kind);
  Error explain(Error error) const;
  Result<uint64_t> sum_counter(bundle::Counter counter);

  Bundle bundle_;
  engine::Scope scope_;
  Options options_;
  std::optional<Maps> maps_;
  std::optional<Gate> gate_;
  std::optional<Programs> programs_;
  std::optional<Attacher> attacher_;
  std::optional<RecordReader> records_;
  Fd run_stats_;
  std::vector<Fd> processes_;  ///< pidfds of the scope
};

Result<void> KernelTrace::open_records() {
  if (bundle_.ring_map < 0) return {};
  SPILE_TRY(records_, RecordReader::open(*maps_, bundle_.ring_map));
  return {};
}

Result<void> KernelTrace::run_all(ProbeKind kind) {
  for (const Probe& probe : bundle_.probes) {
    if (probe.kind != kind) continue;
    SPILE_TRY(int fd, programs_->shared(probe.program, LoadType::kTestRun));
    SPILE_TRY_VOID(run_once(fd, kind == ProbeKind::kBegin ? "BEGIN" : "END"));
  }
  return {};
}

Result<uint32_t> KernelTrace::run_probe(size_t probe) {
  SPILE_TRY(int fd, programs_->shared(bundle_.probes[probe].program, LoadType::kTestRun));
  return run_once(fd, bundle_.probes[probe].name);
}

/// The kernel itself takes the time of each run: the way into it does not count.
Result<double> KernelTrace::measure_probe(size_t probe) {
  constexpr int kWarmUp = 20, kRounds = 2000;
  SPILE_TRY(int fd, programs_->shared(bundle_.probes[probe].program, LoadType::kTestRun));
  const Fd measuring(bpf_enable_stats(BPF_STATS_RUN_TIME));
  if (measuring.get() < 0)
    return fail(ErrorCode::kDenied, "the kernel measures no programs here: it needs CAP_SYS_ADMIN");
  for (int i = 0; i < kWarmUp; i++) SPILE_TRY_VOID(run_once(fd, bundle_.probes[probe].name));
  SPILE_TRY(const RunCounts before, run_counts(fd));
  for (int i = 0; i < kRounds; i++) SPILE_TRY_VOID(run_once(fd, bundle_.probes[probe].name));
  SPILE_TRY(const RunCounts after, run_counts(fd));
  if (after.runs == before.runs) return fail(ErrorCode::kUnsupported, "the kernel counted no run");
  return static_cast<double>(after.time_ns - before.time_ns) /
         static_cast<double>(after.runs - before.runs);
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
  uint32_t longest_record = sizeof(bundle::RecordHeader);
  for (const bundle::Action& action : bundle_.actions)
    longest_record = std::max(longest_record, action.record_size);
  SPILE_TRY(maps_, Maps::create(bundle_.maps, options_.records, longest_record));
  SPILE_TRY(gate_, Gate::create(bundle_, !scope_.paused));
  auto types = options_.types ? options_.types : std::make_shared<KernelTypes>();
  programs_.emplace(bundle_, *maps_, *gate_, std::move(types));
  attacher_.emplace(bundle_, scope_, options_.attach_path, *programs_);
  if (auto loaded = attacher_->load(); !loaded) return std::unexpected(explain(loaded.error()));
  SPILE_TRY_VOID(open_records());
  if (options_.measure) run_stats_ = Fd(bpf_enable_stats(BPF_STATS_RUN_TIME));
  if (bundle_.start_map >= 0)
    SPILE_TRY_VOID(maps_->set_array(bundle_.start_map, 0, monotonic_ns()));
  SPILE_TRY_VOID(run_all(ProbeKind::kBegin));
  if (auto attached = attacher_->attach(); !attached)
    return std::unexpected(explain(attached.error()));
  return {};
}

/// override() asks for more than other functions do.
Error KernelTrace::explain(Error error) const {
  auto overriding =
      std::ranges::find_if(bundle_.probes, [&](const Probe& p) { return overrides(p); });
  if (overriding == bundle_.probes.end() || error.code == ErrorCode::kDenied) return error;
  if (error.message.find("bpf_override_return") != std::string::npos) {
    return {ErrorCode::kUnsupported,
            fmt::format("{}: override() needs a kernel with CONFIG_BPF_KPROBE_OVERRIDE, which this "
                        "one is not",
                        overriding->name)};
  }
  error.message +=
      "; override() works at functions listed in /sys/kernel/debug/error_injection/list";
  return error;
}

Result<size_t> KernelTrace::poll(std::chrono::milliseconds timeout,
                                 const engine::RecordSink& sink) {
  if (records_) return records_->poll(timeout, sink);
  timespec wait = {timeout.count() / 1000, timeout.count() % 1000 * 1'000'000};
  nanosleep(&wait, nullptr);
  return size_t{0};
}

bool KernelTrace::targets_gone() {
  if (processes_.empty()) return false;
  return std::ranges::none_of(processes_, [](const Fd& pidfd) { return os::pidfd_alive(pidfd); });
}

std::vector<SiteReport> KernelTrace::refusals() {
  std::vector<SiteReport> refused;
  for (const SiteReport& site : attacher_->own_sites()) {
    if (site.refused) refused.push_back(site);
  }
  return refused;
}

std::set<int> KernelTrace::placed_though_refused() {
  std::set<int> placed;
  for (const SiteReport& site : attacher_->own_sites()) {
    if (!site.refused) placed.insert(site.probe);
  }
  return placed;
}

/// They go one after the other; what they count ends at one moment.
Result<void> KernelTrace::detach() {
  if (gate_) {
    std::vector<int> all(bundle_.probes.size());
    std::iota(all.begin(), all.end(), 0);
    SPILE_TRY_VOID(switch_probes(all, false));
  }
  attacher_->detach();
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
  SPILE_TRY(RunCounts counts, programs_->counts());
  stats.hits = counts.runs;
  stats.missed = counts.missed + attacher_->missed();
  if (stats.hits > 0)
    stats.hit_ns = static_cast<double>(counts.time_ns) / static_cast<double>(stats.hits);
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
