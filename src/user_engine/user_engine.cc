#include "user_engine/user_engine.h"

#include <signal.h>
#include <sys/mman.h>
#include <time.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <map>
#include <thread>

#include "abi/hit_frame.h"
#include "bpf/interpreter.h"
#include "user_engine/attachment.h"
#include "user_engine/detach.h"
#include "user_engine/estimate.h"
#include "user_engine/late.h"
#include "user_engine/loader.h"
#include "user_engine/loader_watch.h"
#include "user_engine/merged_view.h"
#include "user_engine/sentries.h"
#include "user_engine/shm/helpers.h"
#include "user_engine/shm/maps.h"
#include "user_engine/shm/ring_reader.h"
#include "user_engine/strays.h"
#include "user_engine/target/spawn.h"

namespace spile::user_engine {

using bundle::Bundle;
using bundle::Probe;
using bundle::ProbeKind;
using SteadyClock = std::chrono::steady_clock;

namespace {

/// Programs that the tracer runs itself may loop this long.
constexpr uint64_t kTracerInsnBudget = 10'000'000;
/// How often the rings are looked at. Nothing in the target wakes us: a hit makes no system call.
constexpr auto kPollEvery = std::chrono::milliseconds(5);
constexpr auto kPollTrapsEvery = std::chrono::milliseconds(1);
/// How often it is asked whether traps are still served.
constexpr auto kWatchEvery = std::chrono::milliseconds(50);

Result<void> refuse_kernel_probes(const Bundle& bundle) {
  for (const Probe& probe : bundle.probes) {
    switch (probe.kind) {
      case ProbeKind::kBegin:
      case ProbeKind::kEnd:
      case ProbeKind::kInterval:
      case ProbeKind::kSelf:
      case ProbeKind::kTest:
      case ProbeKind::kUprobe:
      case ProbeKind::kUretprobe:
      case ProbeKind::kUsdt: break;
      case ProbeKind::kBench:
        return fail(ErrorCode::kUnsupported,
                    "{}: what a program costs is measured by the kernel; use --engine kernel",
                    probe.name);
      default:
        return fail(ErrorCode::kUnsupported,
                    "{}: only the kernel has this probe; use --engine kernel", probe.name);
    }
  }
  return {};
}

bool has_uprobes(const Bundle& bundle) {
  return std::ranges::any_of(bundle.probes, [](const Probe& p) {
    return p.kind == ProbeKind::kUprobe || p.kind == ProbeKind::kUretprobe ||
           p.kind == ProbeKind::kUsdt;
  });
}

struct Interval {
  size_t probe;
  SteadyClock::duration period;
  SteadyClock::time_point next;
  bool on = true;
};

class UserTrace final : public engine::Trace {
 public:
  UserTrace(const Bundle& script, const Options& options)
      : script_(script),
        watched_(options.traps != TrapUse::kNever && has_uprobes(script)
                     ? std::make_unique<Bundle>(script)
                     : nullptr),
        bundle_(watched_ ? *watched_ : script),
        options_(options) {}
  ~UserTrace() override {
    if (auto detached = detach(); !detached) return;
  }

  Result<void> start(const engine::Scope& scope);

  Result<size_t> poll(std::chrono::milliseconds timeout, const engine::RecordSink& sink) override;
  bool targets_gone() override;
  Result<std::vector<engine::MapEntry>> read_map(int map) override;
  Result<void> clear_map(int map) override;
  Result<void> zero_map(int map) override;
  Result<std::vector<uint64_t>> read_stack(int map, uint64_t id) override;
  Result<uint32_t> run_probe(size_t probe) override { return run_program(probe, primary()); }
  Result<void> run_end() override { return run_all(ProbeKind::kEnd, primary()); }
  Result<void> switch_probes(std::span<const int> probes, bool on) override;
  Result<void> detach() override;
  Result<engine::Stats> stats() override;
  std::vector<engine::SiteReport> sites() override;
  std::vector<engine::SiteReport> refusals() override;
  std::set<int> placed_though_refused() override;
  pid_t child() const override { return child_; }
  std::vector<std::string> take_warnings() override { return std::exchange(warnings_, {}); }
  uint64_t stopped_ns() const override;

 private:
  Result<void> attach_all(const engine::Scope& scope);
  void follow_libraries();
  Result<void> make_local_region();
  Result<void> spawn_untraced(const std::vector<std::string>& command);
  Result<void> add_ring(const shm::Region& region, pid_t pid);
  Result<void> run_all(ProbeKind kind, const shm::Region& region);
  Result<uint32_t> run_program(size_t probe, const shm::Region& region);
  Result<void> run_due_intervals();
  void hold_records();
  size_t hand_out_held(const engine::RecordSink& sink);
  bool forked_children_live();
  void start_intervals(bool paused);
  const shm::Region& primary() const {
    return attachments_.empty() ? local_region_ : attachments_.front()->region;
  }
  std::vector<const shm::Region*> regions() const;
  void refresh_clock();
  void watch_traps();
  SteadyClock::duration poll_every() const;
  bool sleep(SteadyClock::duration time) const;

  const Bundle& script_;
  std::unique_ptr<Bundle> watched_;  ///< the script with hidden probes behind its own; or null
  const Bundle& bundle_;             ///< what is attached: one of the two
  int sentry_map_ = -1;
  Options options_;
  shm::Clock clock_ = shm::Clock::start();
  SteadyClock::time_point next_refresh_{}, next_watch_{};
  AttachContext context_;
  std::vector<std::unique_ptr<Attachment>> attachments_;
  std::map<const Attachment*, LateLibraries> late_;
  SteadyClock::time_point began_ = SteadyClock::now();
  std::map<const Attachment*, StrayWatch> strays_;
  Mapping local_memory_;
  shm::Region local_region_;
  shm::RingReader reader_;
  std::vector<Interval> intervals_;
  std::vector<std::string> warnings_;
  std::vector<std::vector<uint8_t>> held_;  ///< read while detaching, not handed out yet
  size_t held_bytes_ = 0;
  std::vector<target::Target> forked_;  ///< known children of targets that have ended
  bool told_of_children_ = false;
  bool detached_ = false;
  bool warned_shared_key_ = false;
  bool gave_up_ring_ = false;
  pid_t child_ = 0;
  double hit_ns_ = 0;
};

std::vector<const shm::Region*> UserTrace::regions() const {
  std::vector<const shm::Region*> all;
  for (const auto& attachment : attachments_) all.push_back(&attachment->region);
  if (all.empty()) all.push_back(&local_region_);
  return all;
}

// ---- start
// ---------------------------------------------------------------------------------------------------------

Result<uint32_t> UserTrace::run_program(size_t probe, const shm::Region& region) {
  const bundle::Program& program =
      bundle_.programs.at(static_cast<size_t>(bundle_.probes[probe].program));
  bpf::HelperTable helpers = shm::make_helpers(region);
  std::vector<uint64_t> maps = shm::map_addresses(region);
  bpf::RunEnv env;
  env.helpers = &helpers;
  env.maps = maps;
  env.insn_budget = kTracerInsnBudget;
  abi::HitFrame frame = {};
  frame.cookie = bundle_.cookie_of(probe);
  auto done = bpf::run(program.code, reinterpret_cast<uint64_t>(&frame), env);
  if (!done && done.error().code == ErrorCode::kInvalid) {
    return fail(ErrorCode::kUnsafe,
                "{} was given up after {} steps (a pass through a loop is some 20): does a loop in "
                "it end?",
                bundle_.probes[probe].name, kTracerInsnBudget);
  }
  if (!done) return forward(done, "run {}", bundle_.probes[probe].name);
  return static_cast<uint32_t>(done->r0);
}

Result<void> UserTrace::run_all(ProbeKind kind, const shm::Region& region) {
  for (size_t i = 0; i < bundle_.probes.size(); i++) {
    if (bundle_.probes[i].kind == kind) SPILE_TRY_VOID(run_program(i, region));
  }
  return {};
}

/// Scripts without uprobes need no process: their maps live in our own memory.
Result<void> UserTrace::make_local_region() {
  SPILE_TRY(auto layout, shm::plan_region(bundle_, {}));
  void* memory = mmap(nullptr, layout.size_bytes, PROT_READ | PROT_WRITE,
                      MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED)
    return fail_errno(errno, "map {} bytes for maps and rings", layout.size_bytes);
  local_memory_ = Mapping(memory, layout.size_bytes);
  SPILE_TRY(local_region_, shm::Region::format(local_memory_.bytes(), std::move(layout)));
  clock_.publish(local_region_.time_page());
  if (bundle_.start_map >= 0) {
    timespec now = {};
    clock_gettime(CLOCK_MONOTONIC, &now);
    uint64_t ns =
        static_cast<uint64_t>(now.tv_sec) * 1'000'000'000 + static_cast<uint64_t>(now.tv_nsec);
    uint32_t index = 0;
    SPILE_TRY_VOID(shm::update(local_region_, static_cast<size_t>(bundle_.start_map),
                               {reinterpret_cast<const uint8_t*>(&index), 4},
                               {reinterpret_cast<const uint8_t*>(&ns), 8}));
  }
  return {};
}

Result<void> UserTrace::spawn_untraced(const std::vector<std::string>& command) {
  return target::with_tracer_thread([&]() -> Result<void> {
    SPILE_TRY(auto child, target::Child::spawn(command, loader_symbols));
    {
      SPILE_TRY(auto stopped, child.take_stopped());
    }
    child_ = child.pid();
    child.release();
    return {};
  });
}

Result<void> UserTrace::add_ring(const shm::Region& region, pid_t pid) {
  if (bundle_.ring_map < 0) return {};
  // Thread ids are the target's own: in another pid namespace they mean nothing here.
  auto owner = [pid](uint32_t tid) {
    if (tid == 0 || pid == 0) return shm::OwnerState::kUnknown;
    auto status = os::read_status(pid);
    if (status && status->innermost_tid != pid) return shm::OwnerState::kUnknown;
    return kill(static_cast<pid_t>(tid), 0) < 0 && errno == ESRCH ? shm::OwnerState::kGone
                                                                  : shm::OwnerState::kUnknown;
  };
  return reader_.add(region, static_cast<size_t>(bundle_.ring_map), owner);
}

Result<void> UserTrace::attach_all(const engine::Scope& scope) {
  AttachContext& context = context_;
  // An attach that is tried again starts with a new region: BEGIN runs again, too.
  context.begin = [this](shm::Region& region) -> Result<void> {
    if (!attachments_.empty()) return {};
    return run_all(ProbeKind::kBegin, region);
  };
  if (!scope.command.empty()) {
    SPILE_TRY(auto attachment, attach_command(scope.command, context));
    child_ = attachment->pid;
    attachments_.push_back(std::move(attachment));
  }
  for (pid_t pid : scope.pids) {
    SPILE_TRY(auto attachment, user_engine::attach(pid, context));
    attachments_.push_back(std::move(attachment));
  }
  for (const auto& attachment : attachments_) {
    SPILE_TRY_VOID(add_ring(attachment->region, attachment->pid));
    std::ranges::move(std::exchange(attachment->warnings, {}), std::back_inserter(warnings_));
  }
  return {};
}

void UserTrace::start_intervals(bool paused) {
  for (size_t i = 0; i < bundle_.probes.size(); i++) {
    if (bundle_.probes[i].kind != ProbeKind::kInterval) continue;
    auto period = std::chrono::nanoseconds(std::max<uint64_t>(bundle_.probes[i].interval_ns, 1000));
    intervals_.push_back({i, period, SteadyClock::now() + period, !paused});
  }
}

Result<void> UserTrace::start(const engine::Scope& scope) {
  SPILE_TRY_VOID(refuse_kernel_probes(bundle_));
  if (!bundle_.needs_kernel.empty())
    return fail(ErrorCode::kUnsupported, "{}: only the kernel can tell; use --engine kernel",
                bundle_.needs_kernel);
  if (watched_) {
    SPILE_TRY(sentry_map_, add_sentries(*watched_));
  }
  AttachContext& context = context_;
  context.bundle = &bundle_;
  SPILE_TRY(context.analyses, check_programs(bundle_));
  context.clock = &clock_;
  context.count_hits = options_.measure;
  context.plan.traps = options_.traps;
  context.on_process = scope.on_process;
  context.paused = scope.paused;
  context.interrupted = scope.interrupted;
  if (has_uprobes(bundle_)) {
    if (scope.pids.empty() && scope.command.empty()) {
      return fail(ErrorCode::kInvalid,
                  "the user engine needs a process: -p PID or -c COMMAND (system-wide uprobes need "
                  "--engine kernel)");
    }
    SPILE_TRY_VOID(attach_all(scope));
    // Not for the target's sake: no figure is better than no trace.
    if (options_.measure) hit_ns_ = estimate_hit_ns(script_, context.analyses).value_or(0);
  } else {
    SPILE_TRY_VOID(make_local_region());
    SPILE_TRY_VOID(add_ring(local_region_, 0));
    SPILE_TRY_VOID(run_all(ProbeKind::kBegin, local_region_));
    if (!scope.command.empty()) SPILE_TRY_VOID(spawn_untraced(scope.command));
  }
  start_intervals(scope.paused);
  return {};
}

// ---- while it runs
// -------------------------------------------------------------------------------------------------

void UserTrace::refresh_clock() {
  if (SteadyClock::now() < next_refresh_) return;
  next_refresh_ = SteadyClock::now() + shm::Clock::kRefreshEvery;
  bool first = true;
  for (const shm::Region* region : regions()) {
    if (std::exchange(first, false))
      clock_.refresh(region->time_page());
    else
      clock_.publish(region->time_page());
  }
}

void UserTrace::follow_libraries() {
  if (detached_) return;
  for (const auto& attachment : attachments_) {
    LateLibraries& late = late_.try_emplace(attachment.get(), began_).first->second;
    late.look(*attachment, context_);
    std::ranges::move(late.take_warnings(), std::back_inserter(warnings_));
    if (strays_[attachment.get()].look(*attachment, context_)) late.learn_sites(*attachment);
    std::ranges::move(std::exchange(attachment->warnings, {}), std::back_inserter(warnings_));
  }
}

/// A thread may be waiting. One process's wakes us.
SteadyClock::duration UserTrace::poll_every() const {
  const bool has_waits = std::ranges::any_of(attachments_, [&](const auto& a) {
    return a->addresses.trap_page.has_value() || (a->awaits && attachments_.size() > 1);
  });
  return has_waits ? kPollTrapsEvery : kPollEvery;
}

/// False: a signal came.
bool UserTrace::sleep(SteadyClock::duration time) const {
  if (attachments_.size() == 1 && attachments_.front()->awaits)
    return sleep_until_request(attachments_.front()->region, time);
  const auto ns = std::chrono::duration_cast<std::chrono::nanoseconds>(time).count();
  const timespec t = {ns / 1'000'000'000, ns % 1'000'000'000};
  return nanosleep(&t, nullptr) == 0;
}

/// What serves an int3 can be taken away by the program. Reads /proc, some 20 us a thread.
void UserTrace::watch_traps() {
  if (detached_ || sentry_map_ < 0) return;
  const bool is_due = SteadyClock::now() >= next_watch_;
  if (is_due) next_watch_ = SteadyClock::now() + kWatchEvery;
  for (const auto& attachment : attachments_) {
    if (!attachment->addresses.trap_page || !attachment->target->alive()) continue;
    const bool waits = has_wish(attachment->region, sentry_map_);
    std::optional<std::string> why;
    if (is_due) why = attachment->trap_watch.look(*attachment->target);
    if (waits) why = "the program changes what is done with SIGTRAP, or blocks it";
    if (!why) continue;
    auto out = take_traps_out(*attachment);
    if (!out && out.error().code == ErrorCode::kBusy) continue;  // asked again at the next look
    attachment->addresses.trap_page.reset();
    SPILE_CHECK(answer_wish(attachment->region, sentry_map_).has_value());
    warnings_.push_back(fmt::format(
        "process {}: {}, so an int3 could kill it: {}", attachment->pid, *why,
        out ? fmt::format("probes that need one ({}) have been taken out", *out)
            : fmt::format("probes that need one cannot be taken out: {}", out.error().message)));
  }
}

Result<void> UserTrace::run_due_intervals() {
  for (Interval& interval : intervals_) {
    auto now = SteadyClock::now();
    if (detached_ || !interval.on || now < interval.next) continue;
    SPILE_TRY_VOID(run_program(interval.probe, primary()));
    // A tracer that was held up does not fire in a burst afterwards.
    interval.next = std::max(interval.next + interval.period, now);
  }
  return {};
}

/// What comes while detaching has to wait. Beyond this the rings fill, and count what they lose.
constexpr size_t kMaxHeldBytes = size_t{64} << 20;

void UserTrace::hold_records() {
  if (held_bytes_ >= kMaxHeldBytes) return;
  reader_.poll([&](uint64_t, std::span<const uint8_t> body) {
    held_.emplace_back(body.begin(), body.end());
    held_bytes_ += body.size();
  });
}

size_t UserTrace::hand_out_held(const engine::RecordSink& sink) {
  for (const auto& record : held_) sink(record);
  held_bytes_ = 0;
  return std::exchange(held_, {}).size();
}

Result<size_t> UserTrace::poll(std::chrono::milliseconds timeout, const engine::RecordSink& sink) {
  const size_t held = hand_out_held(sink);
  auto visit = [&](uint64_t, std::span<const uint8_t> body) { sink(body); };
  auto deadline = SteadyClock::now() + timeout;
  while (true) {
    refresh_clock();
    watch_traps();
    SPILE_TRY_VOID(run_due_intervals());
    follow_libraries();
    size_t count = held + (detached_ ? reader_.finish(visit) : reader_.poll(visit));
    if (reader_.stats().corrupt_rings > 0 && !std::exchange(gave_up_ring_, true)) {
      // Even exit() of our own programs goes through it, so there is nothing to wait for any more.
      return fail(ErrorCode::kCorrupt,
                  "the target has overwritten a ring in the shared memory: the trace ends here");
    }
    auto now = SteadyClock::now();
    if (count > 0 || now >= deadline || detached_) return count;
    auto wait = std::min<SteadyClock::duration>(poll_every(), deadline - now);
    for (const Interval& interval : intervals_) {
      if (interval.on) wait = std::min(wait, interval.next - now);
    }
    // After a signal the caller wants to know.
    if (wait > SteadyClock::duration::zero() && !sleep(wait)) return size_t{0};
  }
}

Result<void> UserTrace::switch_probes(std::span<const int> probes, bool on) {
  for (const auto& attachment : attachments_) attachment->switches.set(probes, on);
  for (Interval& interval : intervals_) {
    const bool is_meant =
        std::ranges::find(probes, static_cast<int>(interval.probe)) != probes.end();
    if (!is_meant || std::exchange(interval.on, on) == on) continue;
    if (on) interval.next = SteadyClock::now() + interval.period;
  }
  return {};
}

bool UserTrace::targets_gone() {
  if (attachments_.empty()) return false;
  if (std::ranges::any_of(attachments_, [](const auto& a) { return a->target->alive(); }))
    return false;
  return !forked_children_live();
}

/// A daemon's parent ends at once: what it forked has the probes too. New ones are looked for when
/// the last that is known has ended.
bool UserTrace::forked_children_live() {
  std::erase_if(forked_, [](const target::Target& child) { return !child.alive(); });
  if (!forked_.empty()) return true;
  for (const auto& attachment : attachments_) {
    for (pid_t pid : forked_children(*attachment)) {
      if (auto child = target::Target::open(pid)) forked_.push_back(std::move(*child));
    }
  }
  if (!forked_.empty() && !std::exchange(told_of_children_, true)) {
    warnings_.push_back(
        fmt::format("process {} has ended; the trace goes on in {} of the processes that it forked",
                    attachments_.front()->pid, forked_.size()));
  }
  return !forked_.empty();
}

Result<std::vector<engine::MapEntry>> UserTrace::read_map(int map) {
  SPILE_TRY(auto merged, read_merged_map(bundle_, regions(), map));
  if (merged.key_set_twice && !std::exchange(warned_shared_key_, true)) {
    warnings_.push_back(
        fmt::format("{}: several processes have set the same key; one of their values is shown",
                    bundle_.maps[static_cast<size_t>(map)].name));
  }
  return std::move(merged.entries);
}

Result<void> UserTrace::clear_map(int map) {
  for (const shm::Region* region : regions())
    SPILE_TRY_VOID(shm::clear(*region, static_cast<size_t>(map)));
  return {};
}

Result<void> UserTrace::zero_map(int map) {
  for (const shm::Region* region : regions())
    SPILE_TRY_VOID(shm::zero(*region, static_cast<size_t>(map)));
  return {};
}

Result<std::vector<uint64_t>> UserTrace::read_stack(int map, uint64_t id) {
  return read_merged_stack(regions(), map, id);
}

// ---- the end
// -------------------------------------------------------------------------------------------------------

Result<void> UserTrace::detach() {
  if (std::exchange(detached_, true)) return {};
  std::optional<Error> first_error;
  // Of all: nobody waits for a tracer that is at another process.
  for (const auto& attachment : attachments_) {
    if (auto late = late_.find(attachment.get()); late != late_.end()) {
      late->second.end(*attachment);
      std::ranges::move(late->second.take_warnings(), std::back_inserter(warnings_));
    }
    if (attachment->awaits) close_gate(attachment->region);
  }
  for (const auto& attachment : attachments_) {
    bool had_ended = !attachment->target->alive();
    auto report = user_engine::detach(*attachment, [this] {
      refresh_clock();
      hold_records();
    });
    if (report && had_ended && report->processes > 0) {
      warnings_.push_back(
          fmt::format("process {} has ended; {} of the processes that it forked ran on, and are no "
                      "longer traced",
                      attachment->pid, report->processes));
    }
    if (report) {
      attachment->stopped_ns = std::max(attachment->stopped_ns, report->stopped_ns);
      std::ranges::move(report->notes, std::back_inserter(warnings_));
    } else if (!first_error) {
      first_error = std::move(report.error());
    } else {
      warnings_.push_back(report.error().message);
    }
  }
  if (first_error) return std::unexpected(std::move(*first_error));
  return {};
}

Result<engine::Stats> UserTrace::stats() {
  SPILE_TRY(auto merged, read_merged_stats(bundle_, regions()));
  if (merged.overwritten && !attachments_.empty()) {
    warnings_.push_back(
        "the shared memory of a target was overwritten by somebody; its figures may be wrong");
  }
  merged.stats.ring_lost += reader_.stats().abandoned;
  merged.stats.hit_ns = hit_ns_;
  merged.stats.hit_ns_is_estimated = true;
  return merged.stats;
}

std::vector<engine::SiteReport> UserTrace::sites() {
  std::vector<engine::SiteReport> all;
  for (const auto& attachment : attachments_)
    std::ranges::move(site_reports(*attachment, bundle_), std::back_inserter(all));
  return all;
}

std::vector<engine::SiteReport> UserTrace::refusals() {
  std::vector<engine::SiteReport> all;
  for (const auto& attachment : attachments_)
    all.insert(all.end(), attachment->refused.begin(), attachment->refused.end());
  return all;
}

std::set<int> UserTrace::placed_though_refused() {
  std::set<int> refused, placed;
  for (const engine::SiteReport& report : refusals()) refused.insert(report.probe);
  for (const auto& attachment : attachments_) {
    for (const PatchedSite& site : attachment->sites) {
      for (const std::vector<Action>& actions : site.planned->actions) {
        for (const Action& action : actions) {
          if (refused.contains(action.probe)) placed.insert(action.probe);
        }
      }
    }
  }
  return placed;
}

uint64_t UserTrace::stopped_ns() const {
  uint64_t longest = 0;
  for (const auto& attachment : attachments_) longest = std::max(longest, attachment->stopped_ns);
  return longest;
}

class UserEngine final : public engine::Engine {
 public:
  explicit UserEngine(const Options& options) : options_(options) {}
  std::string_view name() const override { return "user"; }
  Result<std::unique_ptr<engine::Trace>> attach(const Bundle& bundle,
                                                const engine::Scope& scope) override {
    auto trace = std::make_unique<UserTrace>(bundle, options_);
    SPILE_TRY_VOID(trace->start(scope));
    return trace;
  }

 private:
  Options options_;
};

}  // namespace

std::unique_ptr<engine::Engine> make_engine(const Options& options) {
  return std::make_unique<UserEngine>(options);
}

}  // namespace spile::user_engine
