#include "session/trace.h"

#include <errno.h>
#include <fmt/format.h>
#include <signal.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <numeric>
#include <optional>
#include <set>

#include "bundle/pending.h"
#include "kernel_engine/features.h"
#include "kernel_engine/kernel_engine.h"
#include "os/gated_child.h"
#include "os/heap.h"
#include "os/process.h"
#include "output/output.h"
#include "output/records.h"
#include "output/wire.h"
#include "session/compile.h"
#include "session/engine_choice.h"
#include "session/named_probes.h"
#include "session/program_link.h"
#include "session/progress.h"
#include "session/sites.h"
#include "session/symbolizer.h"
#include "session/world_for.h"
#include "user_engine/target/spawn.h"
#include "user_engine/user_engine.h"

namespace spile::session {

namespace {

constexpr auto kPollTime = std::chrono::milliseconds(100);
/// A program waits for what it asks.
constexpr auto kPollTimeForProgram = std::chrono::milliseconds(5);
/// A command that is just starting maps its libraries: who wants names of its addresses looks often
/// at first, since it may be gone soon.
constexpr auto kEarlyPollTime = std::chrono::milliseconds(1);
constexpr auto kEarly = std::chrono::milliseconds(100);
using SteadyClock = std::chrono::steady_clock;
constexpr size_t kMaxRefusalsShown = 10;

volatile sig_atomic_t g_interrupted = 0;
volatile sig_atomic_t g_switches = 0, g_prints = 0;  ///< how often they were asked for

void on_signal(int signal) {
  if (signal == SIGUSR1)
    g_prints = g_prints + 1;
  else if (signal == SIGUSR2)
    g_switches = g_switches + 1;
  else
    g_interrupted = 1;
}

/// SIGUSR1 prints the maps, as bpftrace has it; SIGUSR2 switches the probes off and on. From the
/// start: who asks too early is answered later.
void catch_requests() {
  struct sigaction action = {};
  action.sa_handler = on_signal;
  action.sa_flags = SA_RESTART;
  for (int signal : {SIGUSR1, SIGUSR2}) sigaction(signal, &action, nullptr);
}

/// Ctrl-C at any moment: attaching and detaching run to their end, then the maps are printed.
void catch_signals() {
  struct sigaction action = {};
  action.sa_handler = on_signal;
  action.sa_flags = SA_RESTART;
  for (int signal : {SIGINT, SIGTERM, SIGHUP}) {
    struct sigaction before = {};
    // What nohup and shells have switched off stays so.
    if (sigaction(signal, nullptr, &before) == 0 && before.sa_handler != SIG_IGN)
      sigaction(signal, &action, nullptr);
  }
  action.sa_handler = SIG_IGN;
  sigaction(SIGPIPE, &action, nullptr);
}

void say(const std::string& text) {
  fmt::print(stderr, "spile: {}\n", text);
}

Result<std::unique_ptr<output::Output>> open_output(const TraceRequest& request) {
  if (request.program != nullptr)
    return std::make_unique<output::WireOutput>(
        output::Sink(request.program->socket(), output::Buffering::kFull));
  auto buffering = request.line_buffered ? output::Buffering::kLine : output::Buffering::kFull;
  output::Sink sink(STDOUT_FILENO, buffering);
  if (!request.output_path.empty()) {
    auto file = output::Sink::create(request.output_path, buffering);
    if (!file) return std::unexpected(std::move(file.error()));
    sink = std::move(*file);
  }
  if (request.format == Format::kJson) return std::make_unique<output::JsonOutput>(std::move(sink));
  return std::make_unique<output::TextOutput>(std::move(sink));
}

/// One trace from its bundle to its last line.
class Session {
 public:
  Session(const TraceRequest& request, std::unique_ptr<output::Output> out)
      : request_(request), output_(std::move(out)) {
    if (request.program != nullptr) wire_ = static_cast<output::WireOutput*>(output_.get());
  }

  int run();

 private:
  bool compile_script();
  bool wrong_script(const std::string& text, const std::vector<ScriptError>& errors);
  bool start();
  bool start_kernel();
  bool start_user();
  Result<std::vector<std::string>> command_words() const;
  size_t attached_count() const;
  void announce();
  void tell_stop();
  void show_refusals();
  void loop();
  void answer_signals();
  void run_named();
  void answer_program();
  void switch_all();
  void remember_processes();
  std::chrono::milliseconds poll_time() const;
  void take_records(std::chrono::milliseconds timeout);
  void look_for_what_found_no_room();
  bool child_has_ended();
  bool is_over();
  void tell_new_programs() const;
  void finish();
  void report_end();
  void leave_memory();
  void tell_warnings();
  /// A full disk fails anew at each record: told once.
  void failed(const Error& error) {
    if (error.message != last_failure_) say(error.message);
    last_failure_ = error.message;
    status_ = kFailed;
  }
  int exit_status() const;

  const TraceRequest& request_;
  std::unique_ptr<output::Output> output_;
  output::WireOutput* wire_ = nullptr;  ///< output_, where a program asks
  bundle::Bundle bundle_;
  std::shared_ptr<kernel_engine::KernelTypes> types_;
  ChosenEngine chosen_;
  std::optional<os::GatedChild> gated_;
  std::unique_ptr<engine::Engine> engine_;
  std::unique_ptr<engine::Trace> trace_;
  Symbolizer symbolizer_;
  SteadyClock::time_point started_{};
  std::optional<output::Records> records_;
  pid_t child_ = 0;
  std::map<uint32_t, uint64_t> done_of_pending_;  ///< by action: as often as it was seen asked for
  std::optional<int> child_status_;               ///< as waitpid gives it
  std::optional<int> exit_code_;                  ///< of exit(n)
  uint64_t after_exit_ = 0;                       ///< records behind it
  bool output_gone_ = false;
  bool paused_ = false;
  bool asked_to_stop_ = false;  ///< by the program
  sig_atomic_t switches_seen_ = 0, prints_seen_ = 0;
  bool targets_gone_ = false;  ///< ended, or another program (exec)
  uint64_t corrupt_records_ = 0;
  std::string last_failure_;
  int status_ = kOk;
};

// ---- start
// -----------------------------------------------------------------------------------------------------------

lang::RunMode mode_of(Purpose purpose) {
  switch (purpose) {
    case Purpose::kTrace: return lang::RunMode::kTrace;
    case Purpose::kTest: return lang::RunMode::kTest;
    case Purpose::kBench: return lang::RunMode::kBench;
  }
  return lang::RunMode::kTrace;
}

/// False, as compile_script() then answers.
bool Session::wrong_script(const std::string& text, const std::vector<ScriptError>& errors) {
  fmt::print(stderr, "{}", text);
  status_ = kFailed;
  for (const ScriptError& e : errors) {
    if (wire_ == nullptr) break;
    (void)wire_->script_error(e.position.line, e.position.column, e.message, e.hint);
  }
  return false;
}

bool Session::compile_script() {
  Progress progress("finding what the probes name");
  MachineWorld world = world_for(request_.target);
  types_ = world.types();
  auto options = options_from_environment();
  options.pid_filter = request_.target.pids;
  options.allow_unsafe = request_.allow_unsafe;
  options.mode = mode_of(request_.purpose);
  std::vector<ScriptError> errors;
  auto compiled = compile(request_.script, world, options, &errors);
  if (!compiled) return wrong_script(compiled.error(), errors);
  auto chosen = choose_engine(compiled->bundle, request_.target);
  if (!chosen) {
    failed(chosen.error());
    return false;
  }
  chosen_ = *chosen;
  const bool is_kernel = chosen_.engine == EngineChoice::kKernel;
  options.calls_loops = is_kernel && compiled->bundle.has_loops;
  if (options.calls_loops) options.has_loop_calls = kernel_engine::Features().loops();
  bool compile_again = options.calls_loops;
  if (is_kernel && !request_.target.command.empty()) {
    // Its programs look at the child's pid, so the child comes first; it waits before its exec.
    auto words = command_words();
    if (!words) return failed(words.error()), false;
    auto program = target::find_program(words->front());
    if (!program) return failed(program.error()), false;
    auto child = os::GatedChild::spawn(*program, *words);
    if (!child) return failed(child.error()), false;
    gated_.emplace(std::move(*child));
    options.pid_filter.push_back(gated_->pid());
    options.child = gated_->pid();
    compile_again = true;
  }
  if (compile_again) {
    compiled = compile(request_.script, world, options, &errors);
    if (!compiled) return wrong_script(compiled.error(), errors);
  }
  // A program by the library gets them as messages.
  const bool tells_warnings = !request_.quiet || request_.program != nullptr;
  if (tells_warnings) fmt::print(stderr, "{}", compiled->warnings);
  bundle_ = std::move(compiled->bundle);
  if (request_.purpose == Purpose::kTrace) return true;
  bundle_.prints_maps = false;
  const auto wanted =
      request_.purpose == Purpose::kTest ? bundle::ProbeKind::kTest : bundle::ProbeKind::kBench;
  if (std::ranges::find(bundle_.probes, wanted, &bundle::Probe::kind) != bundle_.probes.end())
    return true;
  failed(Error{ErrorCode::kNotFound, request_.purpose == Purpose::kTest
                                         ? "--test: the script has no test:NAME probe"
                                         : "--bench: the script has no bench:NAME probe"});
  return false;
}

Result<std::vector<std::string>> Session::command_words() const {
  SPILE_TRY(auto words, target::split_command(request_.target.command));
  if (words.empty()) return fail(ErrorCode::kInvalid, "-c: an empty command");
  return words;
}

bool Session::start_kernel() {
  auto path = kernel_engine::attach_path_of(request_.target.attach);
  if (!path) return failed(path.error()), false;
  auto records = kernel_engine::record_path_of(request_.target.records);
  if (!records) return failed(records.error()), false;
  engine_ = kernel_engine::make_engine(
      {.measure = request_.verbose, .attach_path = *path, .records = *records, .types = types_});
  engine::Scope scope{.pids = request_.target.pids, .command = {}, .on_process = {}};
  scope.paused = request_.paused;
  if (gated_) scope.pids.push_back(gated_->pid());
  auto trace = engine_->attach(bundle_, scope);
  if (!trace) {
    failed(trace.error());
    return false;
  }
  trace_ = std::move(*trace);
  if (!gated_) return true;
  child_ = gated_->pid();
  if (auto opened = gated_->open_gate(); !opened) {
    failed(std::move(opened.error()).context(request_.target.command));
    return false;
  }
  return true;
}

bool Session::start_user() {
  // Measured: what a probe takes until it is in place, in small pieces.
  constexpr uint64_t kBytesPerProbe = 3500, kMany = 2000;
  if (bundle_.probes.size() >= kMany) os::expect_heap_use(bundle_.probes.size() * kBytesPerProbe);
  engine_ =
      user_engine::make_engine({.measure = request_.verbose, .traps = trap_use(request_.target)});
  engine::Scope scope{.pids = request_.target.pids, .command = {}, .on_process = {}};
  scope.paused = request_.paused;
  scope.interrupted = [] { return g_interrupted != 0; };
  if (bundle_.reads_symbols) scope.on_process = [this](pid_t pid) { symbolizer_.remember(pid); };
  if (!request_.target.command.empty()) {
    auto words = command_words();
    if (!words) return failed(words.error()), false;
    scope.command = std::move(*words);
  }
  auto trace = engine_->attach(bundle_, scope);
  if (!trace) {
    failed(trace.error());
    return false;
  }
  trace_ = std::move(*trace);
  child_ = trace_->child();
  return true;
}

bool Session::start() {
  if (!chosen_.note.empty() && !request_.quiet) say(chosen_.note);
  const size_t probes = bundle_.named_probes();
  Progress progress(fmt::format("attaching {} probe{}", probes, probes == 1 ? "" : "s"));
  return chosen_.engine == EngineChoice::kKernel ? start_kernel() : start_user();
}

void Session::show_refusals() {
  size_t refused = 0;
  for (const auto& site : trace_->refusals()) {
    if (request_.verbose || refused < kMaxRefusalsShown) {
      say(fmt::format("not probed: {}: {}", engine::place_of(site), site.reason));
    }
    refused++;
  }
  if (refused > kMaxRefusalsShown && !request_.verbose)
    say(fmt::format("not probed: {} more (-v shows all)", refused - kMaxRefusalsShown));
}

/// Probes that are in place somewhere: those of which every site was refused are not.
size_t Session::attached_count() const {
  std::set<int> refused;
  for (const auto& site : trace_->refusals()) refused.insert(site.probe);
  if (!refused.empty()) {
    for (int probe : trace_->placed_though_refused()) refused.erase(probe);
  }
  return bundle_.named_probes() - refused.size();
}

void Session::announce() {
  size_t count = attached_count();
  if (!request_.quiet) fmt::print(stderr, "Attached {} probe{}\n", count, count == 1 ? "" : "s");
  if (auto told = output_->attached_probes(count); !told) output_gone_ = true;
  show_refusals();
  tell_warnings();
  if (paused_ && !request_.quiet) say("paused: the probes are off (SIGUSR2 switches them on)");
  if (!request_.verbose) return;
  for (const auto& site : trace_->sites()) {
    if (!site.refused) fmt::print(stderr, "{}", format_site(site));
  }
  tell_stop();
}

void Session::tell_stop() {
  if (trace_->stopped_ns() > 0)
    say(fmt::format("target stopped for {:.3f} ms",
                    static_cast<double>(trace_->stopped_ns()) / 1e6));
}

// ---- while it runs
// ---------------------------------------------------------------------------------------------------

void Session::take_records(std::chrono::milliseconds timeout) {
  auto count = trace_->poll(timeout, [&](std::span<const uint8_t> record) {
    if (exit_code_ && !records_->is_exit(record)) after_exit_++;
    if (exit_code_ || output_gone_) return;  // what comes after exit() is not printed
    auto handled = records_->handle(record, *trace_);
    if (handled) {
      if (*handled) exit_code_ = **handled;
    } else if (handled.error().code == ErrorCode::kTargetGone) {
      output_gone_ = true;
    } else if (handled.error().code == ErrorCode::kCorrupt) {
      corrupt_records_++;
    } else {
      failed(handled.error());
    }
  });
  if (!count) failed(count.error());
}

/// What found the ring full and may not be lost has left word among the counters: an exit() its
/// status, an action on a map how often it was asked for. Of several that all do the same one is
/// done.
void Session::look_for_what_found_no_room() {
  if (bundle_.counters_map < 0 || !bundle::may_leave_word(bundle_)) return;
  auto counters = trace_->read_map(bundle_.counters_map);
  if (!counters) return;
  std::map<uint32_t, uint64_t> sums;
  for (const engine::MapEntry& entry : *counters) {
    uint32_t index = 0;
    if (entry.key.size() == sizeof index) memcpy(&index, entry.key.data(), sizeof index);
    for (const auto& value : entry.values) {
      uint64_t word = 0;
      memcpy(&word, value.data(), std::min(value.size(), sizeof word));
      const bool is_exit = index == static_cast<uint32_t>(bundle::Counter::kExit);
      if (is_exit && !exit_code_ && (word & bundle::kExitAsked) != 0)
        exit_code_ = static_cast<int>(word);
      sums[index] += word;
    }
  }
  for (uint32_t action = 0; action < bundle_.actions.size(); action++) {
    const auto counter = bundle::pending_counter(bundle_, action);
    if (!counter || sums[*counter] <= done_of_pending_[action]) continue;
    done_of_pending_[action] = sums[*counter];
    if (output_gone_) return;
    if (auto done = records_->act(action, *trace_); !done) {
      if (done.error().code == ErrorCode::kTargetGone)
        output_gone_ = true;
      else
        failed(done.error());
    }
  }
}

bool Session::child_has_ended() {
  if (child_ <= 0 || child_status_) return child_status_.has_value();
  int status = 0;
  if (waitpid(child_, &status, WNOHANG) == child_) child_status_ = status;
  return child_status_.has_value();
}

/// exec ends the user engine's trace of a process: not told, its counts would seem to be complete.
void Session::tell_new_programs() const {
  std::vector<pid_t> pids = request_.target.pids;
  if (child_ > 0) pids.push_back(child_);
  for (pid_t pid : pids) {
    struct stat program = {};
    // A process that is ending has no program any more.
    pid_t tid = os::thread_with_memory(pid).value_or(pid);
    if (::stat(fmt::format("/proc/{}/exe", tid).c_str(), &program) == 0)
      say(fmt::format("process {} has started another program (exec): it is not traced there",
                      pid));
  }
}

/// A command's trace ends with the command, whatever programs it goes through.
bool Session::is_over() {
  if (child_has_ended()) return true;
  if (!targets_gone_ && trace_->targets_gone()) {
    targets_gone_ = true;
    if (chosen_.engine == EngineChoice::kUser) tell_new_programs();
  }
  return targets_gone_ && child_ <= 0;
}

/// A script of BEGIN, END and iter alone, without a command, has nothing to wait for.
bool only_special_probes(const bundle::Bundle& bundle) {
  for (const bundle::Probe& probe : bundle.probes) {
    // An iterator has run when it is attached.
    if (probe.kind != bundle::ProbeKind::kBegin && probe.kind != bundle::ProbeKind::kEnd &&
        probe.kind != bundle::ProbeKind::kIter)
      return false;
  }
  return true;
}

/// So that addresses have names when their process is gone.
void Session::remember_processes() {
  if (!bundle_.reads_symbols || targets_gone_) return;
  for (pid_t pid : request_.target.pids) symbolizer_.remember(pid);
  if (child_ > 0 && !child_status_) symbolizer_.remember(child_);
}

std::chrono::milliseconds Session::poll_time() const {
  if (request_.program != nullptr) return kPollTimeForProgram;
  bool is_early = bundle_.reads_symbols && child_ > 0 && SteadyClock::now() - started_ < kEarly;
  return is_early ? kEarlyPollTime : kPollTime;
}

/// --test, --bench: the probes that have a name, one after the other.
void Session::run_named() {
  take_records(std::chrono::milliseconds(0));  // of BEGIN
  if (request_.purpose == Purpose::kBench) {
    if (auto done = run_benchmarks(bundle_, *trace_, *output_); !done) failed(done.error());
    return;
  }
  const auto not_passed = run_tests(bundle_, *trace_, *records_, *output_);
  if (!not_passed) return failed(not_passed.error());
  exit_code_ = *not_passed == 0 ? kOk : kFailed;
}

/// Of signals that come in a row the kernel may make one.
void Session::answer_signals() {
  for (; switches_seen_ != g_switches; switches_seen_ = switches_seen_ + 1) switch_all();
  if (prints_seen_ == g_prints) return;
  prints_seen_ = g_prints;
  // The script's own answer to the signal takes the place of ours.
  const auto answered = run_signal_probes(bundle_, *trace_, "SIGUSR1");
  if (!answered) return failed(answered.error());
  if (*answered) return;
  if (auto printed = records_->print_maps(*trace_); !printed) {
    if (printed.error().code == ErrorCode::kTargetGone)
      output_gone_ = true;
    else
      say(printed.error().message);
  }
}

void Session::answer_program() {
  if (request_.program == nullptr) return;
  const auto goes_on = request_.program->answer(bundle_, *records_, *wire_, *trace_);
  if (!goes_on) output_gone_ = true;
  if (goes_on && !*goes_on) asked_to_stop_ = true;
}

void Session::switch_all() {
  std::vector<int> all(bundle_.probes.size());
  std::iota(all.begin(), all.end(), 0);
  auto switched = trace_->switch_probes(all, paused_);
  if (!switched) return say(switched.error().message);
  paused_ = !paused_;
  if (!request_.quiet)
    say(paused_ ? "paused: the probes are off (SIGUSR2 switches them on)"
                : "resumed: the probes are on");
}

void Session::loop() {
  started_ = SteadyClock::now();
  if (request_.purpose != Purpose::kTrace) return run_named();
  bool ends_by_itself = only_special_probes(bundle_) && child_ == 0;
  if (ends_by_itself) {
    take_records(std::chrono::milliseconds(0));
    return look_for_what_found_no_room();
  }
  while (g_interrupted == 0 && !asked_to_stop_ && !exit_code_ && !output_gone_ && status_ == kOk) {
    // Asked before the rings are read: what the target wrote last is then read once more below.
    answer_signals();
    answer_program();
    bool gone = is_over();
    remember_processes();
    take_records(gone ? std::chrono::milliseconds(0) : poll_time());
    look_for_what_found_no_room();
    tell_warnings();
    if (gone) break;
  }
}

// ---- the end
// ---------------------------------------------------------------------------------------------------------

void Session::tell_warnings() {
  for (const std::string& warning : trace_->take_warnings()) say(warning);
}

void Session::finish() {
  {
    Progress progress("detaching");
    if (auto detached = trace_->detach(); !detached) failed(detached.error());
  }
  // What was on its way is printed, but nothing that came after exit(). Then END, which prints in
  // any case.
  take_records(std::chrono::milliseconds(0));
  look_for_what_found_no_room();
  exit_code_.reset();
  if (auto ended = trace_->run_end(); !ended) failed(ended.error());
  take_records(std::chrono::milliseconds(0));
  look_for_what_found_no_room();
  if (!output_gone_) {
    auto ended = output_->end();
    if (ended && bundle_.prints_maps) {
      auto printed = records_->print_maps(*trace_);
      if (!printed && printed.error().code != ErrorCode::kTargetGone) say(printed.error().message);
    }
  }
  report_end();
  leave_memory();
  if (auto flushed = output_->flush(); !flushed && flushed.error().code != ErrorCode::kTargetGone)
    failed(flushed.error());
}

/// Nothing is in place any more, and the process is about to end, which gives back at once what
/// piece by piece takes as long as a quarter of a detach. Reachable, for who looks for leaks.
void Session::leave_memory() {
  [[maybe_unused]] static engine::Trace* volatile left = nullptr;
  left = trace_.release();
}

/// One line where something was lost, or where figures were asked for.
void Session::report_end() {
  auto stats = trace_->stats();
  tell_warnings();
  if (!stats) return failed(stats.error());
  uint64_t lost = stats->ring_lost + corrupt_records_;
  if (lost > 0 && !output_gone_) {
    if (auto told = output_->lost_events(lost); !told) output_gone_ = true;
  }
  if (wire_ != nullptr && !output_gone_) output_gone_ = !wire_->stats(*stats, lost);
  bool any_loss = lost + stats->missed + stats->map_full + stats->read_failed + stats->stacks_lost +
                      stats->unseen_returns + stats->loops_cut >
                  0;
  if (!request_.verbose && !any_loss) return;
  std::string line = "end:";
  if (stats->hits > 0) line += fmt::format(" {} hits,", stats->hits);
  line += fmt::format(" {} records lost, {} updates of full maps, {} failed reads, {} missed hits",
                      lost, stats->map_full, stats->read_failed, stats->missed);
  if (stats->stacks_lost > 0) line += fmt::format(", {} stacks lost", stats->stacks_lost);
  if (stats->unseen_returns > 0)
    line += fmt::format(", {} returns not seen, of calls that left through a pointer",
                        stats->unseen_returns);
  if (stats->loops_cut > 0)
    line += fmt::format(", {} loops ended before their bound", stats->loops_cut);
  if (after_exit_ > 0) line += fmt::format(", {} records after exit()", after_exit_);
  if (stats->hit_ns > 0)
    line += fmt::format(", {} {:.0f} ns a hit",
                        stats->hit_ns_is_estimated ? "an estimated" : "about", stats->hit_ns);
  say(line);
}

int Session::exit_status() const {
  if (status_ != kOk) return status_;
  return kOk;
}

int Session::run() {
  catch_requests();
  if (!compile_script()) return status_;
  catch_signals();
  if (!start()) return status_;
  remember_processes();
  bool one_process = request_.target.pids.size() + (child_ > 0 ? 1 : 0) == 1;
  if (chosen_.engine == EngineChoice::kUser && one_process)
    symbolizer_.take_unknown_for(child_ > 0 ? child_ : request_.target.pids.front());
  records_.emplace(bundle_, *output_, &symbolizer_);
  paused_ = request_.paused;
  announce();
  loop();
  int script_status = exit_code_.value_or(0);
  bool by_exit = exit_code_.has_value();
  finish();
  int status = exit_status();
  if (status != kOk || by_exit) return status != kOk ? status : script_status;
  // -c: its status is ours. A child that still runs is left alone, untraced; only a child of Ctrl-C
  // is not waited for.
  if (child_ > 0 && child_has_ended())
    return target::ExitStatus{WIFSIGNALED(*child_status_), WIFSIGNALED(*child_status_)
                                                               ? WTERMSIG(*child_status_)
                                                               : WEXITSTATUS(*child_status_)}
        .shell_status();
  return status;
}

}  // namespace

int trace(const TraceRequest& request) {
  auto out = open_output(request);
  if (!out) {
    say(out.error().message);
    return kFailed;
  }
  return Session(request, std::move(*out)).run();
}

int trace_for_program(int socket) {
  ::signal(SIGPIPE, SIG_IGN);
  ProgramLink link(socket);
  auto request = link.read_request();
  if (!request) {
    say(request.error().message);
    return kFailed;
  }
  return trace(*request);
}

}  // namespace spile::session
