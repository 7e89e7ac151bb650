#include "session/stat.h"

#include <errno.h>
#include <fmt/format.h>
#include <signal.h>
#include <sys/wait.h>

#include <cstdio>
#include <cstring>
#include <map>
#include <memory>
#include <optional>

#include "kernel_engine/counters.h"
#include "kernel_engine/kernel_engine.h"
#include "os/gated_child.h"
#include "session/compile.h"
#include "session/engine_choice.h"
#include "session/stat_counts.h"
#include "session/stat_text.h"
#include "session/world_for.h"
#include "user_engine/target/spawn.h"
#include "user_engine/user_engine.h"

namespace spile::session {

namespace {

using SteadyClock = std::chrono::steady_clock;
constexpr auto kLongestWait = std::chrono::milliseconds(50);

volatile sig_atomic_t g_interrupted = 0;

double seconds(SteadyClock::duration duration) {
  return std::chrono::duration<double>(duration).count();
}

class Stat {
 public:
  explicit Stat(const StatRequest& request) : request_(request) {}
  int run();

 private:
  Result<void> prepare();
  Result<void> ask_for_latencies();
  Result<void> start();
  Result<void> start_command_for_kernel();
  Result<void> attach_programs();
  Result<void> open_counters();
  Result<void> choose_engine_for(bundle::Bundle bundle);
  Result<std::vector<Count>> read_counts();
  Result<std::vector<Count>> read_event(size_t event);
  void loop();
  bool is_over();
  Result<void> print_interval(SteadyClock::duration since);
  Result<void> print_total();
  void print_rows(const std::vector<Count>& counts, double over_seconds, std::optional<double> at);
  std::string subject() const;
  bool has_probes() const;
  int fail_with(const Error& error) {
    fmt::print(stderr, "spile: stat: {}\n", error.message);
    return kFailed;
  }

  const StatRequest& request_;
  std::vector<StatEvent> events_;
  TargetRequest target_;
  std::shared_ptr<kernel_engine::KernelTypes> types_;
  bundle::Bundle bundle_;
  std::optional<os::GatedChild> gated_;
  std::unique_ptr<engine::Engine> engine_;
  std::unique_ptr<engine::Trace> trace_;
  std::map<size_t, kernel_engine::Counter> counters_;
  std::map<size_t, std::string> not_counted_;
  std::vector<Count> before_;  ///< at the last interval, row by row
  SteadyClock::time_point started_{}, last_{};
  pid_t child_ = 0;
  std::optional<int> child_status_;
  FILE* out_ = stderr;
};

bool Stat::has_probes() const {
  return std::ranges::any_of(events_, [](const StatEvent& e) { return !e.probe.empty(); });
}

std::string Stat::subject() const {
  if (request_.system_wide) return "'system wide'";
  if (!request_.target.pids.empty())
    return fmt::format("process id '{}'", fmt::join(request_.target.pids, ","));
  return fmt::format("'{}'", fmt::join(request_.command, " "));
}

Result<void> Stat::prepare() {
  for (const std::string& list : request_.events) {
    for (const std::string& text : split_events(list)) {
      SPILE_TRY(StatEvent event, parse_stat_event(text));
      events_.push_back(std::move(event));
    }
  }
  if (request_.latency) SPILE_TRY_VOID(ask_for_latencies());
  if (events_.empty()) return fail(ErrorCode::kInvalid, "no events: -e PROBE[,PROBE...]");
  const int targets = (request_.system_wide ? 1 : 0) + (request_.target.pids.empty() ? 0 : 1);
  if (targets == 2) return fail(ErrorCode::kInvalid, "-a is of all processes, -p of one");
  if (targets == 0 && request_.command.empty())
    return fail(ErrorCode::kInvalid, "whose events? -a, -p PID or -- COMMAND");
  target_ = request_.target;
  const bool follows_command = targets == 0;
  if (follows_command) target_.command = request_.command.front();
  if (!request_.output_path.empty()) {
    out_ = fopen(request_.output_path.c_str(), "we");
    if (out_ == nullptr) return fail_errno(errno, "write {}", request_.output_path);
  }
  return {};
}

Result<void> Stat::ask_for_latencies() {
  size_t count = 0;
  for (StatEvent& event : events_) count += (event.with_latency = event.is_return) ? 1 : 0;
  if (count > 0) return {};
  return fail(ErrorCode::kInvalid,
              "--latency: no event is the return of a function: give uretprobe:FILE:FUNCTION or "
              "kretprobe:FUNCTION");
}

Result<void> Stat::choose_engine_for(bundle::Bundle bundle) {
  bundle_ = std::move(bundle);
  SPILE_TRY(ChosenEngine chosen, choose_engine(bundle_, target_));
  if (chosen.engine == EngineChoice::kUser) {
    engine_ = user_engine::make_engine({});
    return {};
  }
  SPILE_TRY(auto path, kernel_engine::attach_path_of(target_.attach));
  engine_ = kernel_engine::make_engine({.measure = false, .attach_path = path, .types = types_});
  return {};
}

/// The kernel's programs look at the child's pid, so it comes first and waits before its exec.
Result<void> Stat::start_command_for_kernel() {
  if (request_.command.empty()) return {};
  SPILE_TRY(auto program, target::find_program(request_.command.front()));
  SPILE_TRY(auto child, os::GatedChild::spawn(program, request_.command));
  gated_.emplace(std::move(child));
  child_ = gated_->pid();
  return {};
}

Result<void> Stat::attach_programs() {
  MachineWorld world = world_for(target_);
  types_ = world.types();
  auto options = options_from_environment();
  options.pid_filter = target_.pids;
  Script script{.name = "-e", .text = stat_script(events_), .positional = {}};
  auto compiled = compile(script, world, options);
  if (!compiled)
    return fail(ErrorCode::kInvalid, "the events cannot be counted\n{}", compiled.error());
  SPILE_TRY_VOID(choose_engine_for(std::move(compiled->bundle)));
  engine::Scope scope{.pids = target_.pids, .command = {}, .on_process = {}};
  const bool is_kernel = engine_->name() == "kernel";
  if (!is_kernel && !counters_.empty())
    return fail(ErrorCode::kUnsupported,
                "counters and probes of programs together: add --engine "
                "kernel, or count them apart");
  if (!is_kernel && !target_.command.empty()) {
    scope.command = request_.command;
    // It runs from the moment that its probes are in place.
    scope.on_process = [this](pid_t) { started_ = last_ = SteadyClock::now(); };
  }
  if (is_kernel) {
    if (!gated_) SPILE_TRY_VOID(start_command_for_kernel());
    if (gated_ && !request_.system_wide && target_.pids.empty()) {
      options.pid_filter = scope.pids = {child_};
      compiled = compile(script, world, options);
      if (!compiled) return fail(ErrorCode::kInvalid, "{}", compiled.error());
      bundle_ = std::move(compiled->bundle);
    }
  }
  SPILE_TRY(trace_, engine_->attach(bundle_, scope));
  if (trace_->child() > 0) child_ = trace_->child();
  for (const auto& refused : trace_->refusals())
    fmt::print(stderr, "spile: not counted: {}: {}\n", refused.location, refused.reason);
  return {};
}

/// A counter that this machine lacks is a row that says so.
Result<void> Stat::open_counters() {
  for (size_t i = 0; i < events_.size(); i++) {
    if (!events_[i].probe.empty()) continue;
    kernel_engine::CounterScope scope{target_.pids, false, request_.per_cpu};
    if (scope.pids.empty() && !request_.system_wide) scope.pids = {child_}, scope.on_exec = true;
    auto counter = kernel_engine::Counter::open(events_[i].counter, scope);
    if (counter) {
      counters_.emplace(i, std::move(*counter));
    } else if (counter.error().code == ErrorCode::kUnsupported) {
      fmt::print(stderr, "spile: {}: {}\n", events_[i].name, counter.error().message);
      not_counted_[i] = counter.error().message;
    } else {
      return forward(counter);
    }
  }
  return {};
}

Result<void> Stat::start() {
  const bool has_counters =
      std::ranges::any_of(events_, [](const auto& e) { return e.probe.empty(); });
  if (has_counters) {
    SPILE_TRY_VOID(start_command_for_kernel());
    SPILE_TRY_VOID(open_counters());
  }
  if (has_probes()) SPILE_TRY_VOID(attach_programs());
  // Of all processes, the user engine has no part in the command.
  if (!request_.command.empty() && child_ == 0) SPILE_TRY_VOID(start_command_for_kernel());
  if (child_ == 0 || gated_) started_ = last_ = SteadyClock::now();
  if (gated_) SPILE_TRY_VOID(gated_->open_gate());
  return {};
}

/// Rows of one event: of a pattern one a probe, those that were not hit with 0.
Result<std::vector<Count>> Stat::read_event(size_t event) {
  if (not_counted_.contains(event))
    return std::vector{Count{events_[event].name, {}, not_counted_[event]}};
  if (auto counter = counters_.find(event); counter != counters_.end()) {
    SPILE_TRY(auto values, counter->second.read());
    const std::string& symbol = events_[event].counter.symbol;
    Count row{events_[event].name, {}, "", symbol == "task-clock" || symbol == "cpu-clock"};
    for (const auto& value : values) row.by_cpu[value.cpu] += value.count;
    return std::vector{std::move(row)};
  }
  return read_event_counts(*trace_, bundle_, events_[event], event);
}

Result<std::vector<Count>> Stat::read_counts() {
  std::vector<Count> all;
  for (size_t i = 0; i < events_.size(); i++) {
    SPILE_TRY(auto rows, read_event(i));
    for (Count& row : rows) all.push_back(std::move(row));
  }
  return all;
}

void Stat::print_rows(const std::vector<Count>& counts,
                      double over_seconds,
                      std::optional<double> at) {
  auto print = [&](const StatRow& row) {
    std::string text = request_.format == Format::kJson ? stat_json(row, at)
                       : at                             ? interval_line(*at, row)
                                                        : stat_line(row);
    fmt::print(out_, "{}", text);
  };
  for (const Count& count : counts) {
    const bool has_latency = !count.latencies.empty();
    auto row = [&](std::optional<int> cpu, uint64_t number, Latencies latencies) {
      print({count.event, cpu, number, over_seconds, count.not_counted, count.is_time,
             has_latency ? std::optional(std::move(latencies)) : std::nullopt});
    };
    if (!request_.per_cpu || !count.not_counted.empty()) {
      row({}, count.total(), count.all_latencies());
      continue;
    }
    for (const auto& [cpu, number] : count.by_cpu) {
      const auto its = count.latencies.find(cpu);
      row(cpu, number, its == count.latencies.end() ? Latencies() : its->second);
    }
  }
}

Result<void> Stat::print_interval(SteadyClock::duration since) {
  SPILE_TRY(auto counts, read_counts());
  // The rows are the same each time; their names need not differ.
  before_.resize(counts.size());
  std::vector<Count> gained;
  for (size_t i = 0; i < counts.size(); i++) gained.push_back(counts[i].since(before_[i]));
  before_ = std::move(counts);
  print_rows(gained, seconds(since), seconds(SteadyClock::now() - started_));
  fflush(out_);
  return {};
}

Result<void> Stat::print_total() {
  const double elapsed = seconds(SteadyClock::now() - started_);
  SPILE_TRY(auto counts, read_counts());
  if (request_.format == Format::kText) fmt::print(out_, "{}", stat_header(subject()));
  print_rows(counts, elapsed, std::nullopt);
  if (request_.format == Format::kText) fmt::print(out_, "{}", stat_footer(elapsed));
  return {};
}

bool Stat::is_over() {
  if (g_interrupted != 0) return true;
  if (child_ > 0 && !request_.command.empty()) {
    int status = 0;
    if (waitpid(child_, &status, WNOHANG) == child_) child_status_ = status;
    return child_status_.has_value();
  }
  if (trace_ && trace_->targets_gone()) return true;
  return !request_.target.pids.empty() &&
         std::ranges::all_of(request_.target.pids, [](pid_t pid) { return kill(pid, 0) != 0; });
}

void Stat::loop() {
  const auto interval = std::chrono::milliseconds(request_.interval_ms);
  if (request_.interval_ms > 0 && request_.format == Format::kText)
    fmt::print(out_, "{}", interval_header());
  for (bool over = false; !over;) {
    over = is_over();
    const auto since = SteadyClock::now() - last_;
    if (request_.interval_ms > 0 && (over || since >= interval)) {
      last_ = SteadyClock::now();
      if (auto printed = print_interval(since); !printed) {
        fail_with(printed.error());
        return;
      }
    }
    if (over) return;
    auto wait = kLongestWait;
    if (request_.interval_ms > 0)
      wait = std::min(wait, std::chrono::ceil<std::chrono::milliseconds>(std::max(
                                SteadyClock::duration(0), last_ + interval - SteadyClock::now())));
    // A command that has just ended is seen within a millisecond, so that elapsed time is its own.
    if (child_ > 0) wait = std::min(wait, std::chrono::milliseconds(1));
    const timespec pause = {0, std::chrono::nanoseconds(wait).count()};
    nanosleep(&pause, nullptr);
  }
}

int Stat::run() {
  if (auto prepared = prepare(); !prepared) return fail_with(prepared.error()), kUsage;
  struct sigaction action = {};
  action.sa_handler = [](int) { g_interrupted = 1; };
  for (int signal : {SIGINT, SIGTERM}) sigaction(signal, &action, nullptr);
  if (auto started = start(); !started) return fail_with(started.error());
  loop();
  if (request_.interval_ms == 0) {
    if (auto printed = print_total(); !printed) return fail_with(printed.error());
  }
  if (trace_) {
    if (auto detached = trace_->detach(); !detached) return fail_with(detached.error());
    for (const std::string& warning : trace_->take_warnings())
      fmt::print(stderr, "spile: {}\n", warning);
    auto stats = trace_->stats();
    const uint64_t lost = stats ? stats->missed + stats->map_full : 0;
    if (lost > 0) fmt::print(stderr, "spile: stat: {} hits were missed\n", lost);
  }
  if (out_ != stderr) fclose(out_);
  if (!child_status_) return kOk;
  return WIFSIGNALED(*child_status_) ? 128 + WTERMSIG(*child_status_) : WEXITSTATUS(*child_status_);
}

}  // namespace

int stat(const StatRequest& request) {
  return Stat(request).run();
}

}  // namespace spile::session
