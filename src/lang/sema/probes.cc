#include "lang/sema/probes.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <map>

#include "lang/sema/catalog.h"

namespace spile::lang {

namespace {

using bundle::ContextKind;
using bundle::ProbeKind;

/// bpftrace's max_bpf_progs.
constexpr size_t kMostTyped = 1024;
constexpr uint32_t kPtRegsBytes = bpf::x86_64_regs::kSize;

ContextKind context_kind(ProbeKind kind) {
  switch (kind) {
    case ProbeKind::kBegin:
    case ProbeKind::kEnd:
    case ProbeKind::kInterval:
    case ProbeKind::kSelf:
    case ProbeKind::kTest:
    case ProbeKind::kBench: return ContextKind::kNone;
    case ProbeKind::kTracepoint: return ContextKind::kTracepoint;
    case ProbeKind::kRawTracepoint:
    case ProbeKind::kFentry:
    case ProbeKind::kFexit:
    case ProbeKind::kIter: return ContextKind::kTyped;
    default: return ContextKind::kRegs;
  }
}

class Resolver {
 public:
  Resolver(World& world, MissingProbes missing_policy, RunMode mode, Diagnostics& diagnostics)
      : world_(world), missing_policy_(missing_policy), mode_(mode), diagnostics_(diagnostics) {}

  ProbeTable run(const ast::Program& program) {
    for (const ast::Clause& clause : program.clauses) resolve_clause(clause);
    if (table_.probes.empty() && !program.clauses.empty() && !diagnostics_.has_errors()) {
      const Span first = program.clauses.front().attach_points.front().span;
      if (left_out_ > 0) {
        diagnostics_.error(first, "this script has probes of tests or benchmarks alone")
            .with_hint("--test runs tests, --bench runs benchmarks");
      } else {
        diagnostics_.error(first, "none of this script's probes is there");
      }
    }
    return std::move(table_);
  }

 private:
  void resolve_clause(const ast::Clause& clause) {
    clause_ = &clause;
    shared_.clear();
    excluded_ = names_excluded(clause);
    const size_t before = table_.probes.size();
    for (const ast::AttachPoint& point : clause.attach_points) {
      if (!point.is_excluded) resolve_point(point);
    }
    if (table_.probes.size() == before && !excluded_.empty() && !diagnostics_.has_errors())
      diagnostics_.error(clause.attach_points.front().span,
                         "every probe of this clause is excluded");
    tell_missing(table_.probes.size() > before);
  }

  /// A script for kernels of several ages names a function by all its names: that one is there is
  /// enough.
  void tell_missing(bool has_others) {
    bool is_error = missing_policy_ == MissingProbes::kError ||
                    (missing_policy_ == MissingProbes::kAuto && !has_others);
    for (Diagnostic& one : missing_) {
      if (missing_policy_ == MissingProbes::kIgnore) continue;
      one.severity = is_error ? Severity::kError : Severity::kWarning;
      diagnostics_.add(std::move(one));
    }
    missing_.clear();
  }

  /// `uprobe:libc:str*, !uprobe:libc:strlen`: what stands behind '!' is resolved like any other and
  /// left out.
  std::set<std::string> names_excluded(const ast::Clause& clause) {
    std::set<std::string> names;
    for (const ast::AttachPoint& point : clause.attach_points) {
      if (!point.is_excluded) continue;
      Resolver others(world_, MissingProbes::kError, mode_, diagnostics_);
      others.clause_ = &clause;
      others.resolve_point(point);
      others.tell_missing(false);
      for (const bundle::Probe& probe : others.table_.probes) names.insert(probe.name);
    }
    return names;
  }

  void resolve_point(const ast::AttachPoint& point) {
    ProbeKind kind;
    if (!probe_kind_of(point.type, kind)) {
      diagnostics_.error(point.span, "{} is not built yet", ast::to_string(point.type));
      return;
    }
    switch (kind) {
      case ProbeKind::kBegin:
      case ProbeKind::kEnd: add_alone(point, kind); break;
      case ProbeKind::kInterval: resolve_interval(point); break;
      case ProbeKind::kSelf: resolve_self(point); break;
      case ProbeKind::kTest:
      case ProbeKind::kBench: resolve_named(point, kind); break;
      case ProbeKind::kUprobe:
      case ProbeKind::kUretprobe: resolve_uprobe(point, kind); break;
      case ProbeKind::kTracepoint: resolve_tracepoint(point); break;
      case ProbeKind::kUsdt: resolve_usdt(point); break;
      case ProbeKind::kProfile: resolve_profile(point); break;
      case ProbeKind::kSoftware:
      case ProbeKind::kHardware: resolve_counter(point, kind); break;
      case ProbeKind::kWatchpoint: resolve_watchpoint(point); break;
      case ProbeKind::kRawTracepoint:
      case ProbeKind::kFentry:
      case ProbeKind::kFexit:
      case ProbeKind::kIter: resolve_typed(point, kind); break;
      default: resolve_kprobe(point, kind); break;
    }
  }

  /// A program of its own: its number is then known when it is made.
  bundle::Probe& add_alone(const ast::AttachPoint& point, ProbeKind kind) {
    Instance instance;
    instance.clause = clause_;
    instance.context = {kind, ContextKind::kNone, 0};
    instance.probes.push_back(static_cast<int>(table_.probes.size()));
    table_.instances.push_back(std::move(instance));
    return table_.probes.emplace_back(bundle::Probe{.kind = kind, .name = point.text});
  }

  /// A glob may stand for a hundred thousand.
  void make_room(size_t more) {
    constexpr size_t kOthers = 64;  // the script's other probes, behind these
    const size_t wanted = table_.probes.size() + more + kOthers;
    if (more > kOthers && wanted > table_.probes.capacity())
      table_.probes.reserve(std::max(wanted, 2 * table_.probes.capacity()));
  }

  /// One more probe for the program that this clause has for this kind. Null: it is excluded.
  Instance* add_shared(bundle::Probe probe) {
    if (excluded_.contains(probe.name)) return nullptr;
    auto [found, is_new] = shared_.try_emplace(probe.kind, table_.instances.size());
    if (is_new) {
      Instance instance;
      instance.clause = clause_;
      instance.context = {probe.kind, context_kind(probe.kind), kPtRegsBytes};
      table_.instances.push_back(std::move(instance));
    }
    Instance& instance = table_.instances[found->second];
    instance.probes.push_back(static_cast<int>(table_.probes.size()));
    table_.probes.push_back(std::move(probe));
    return &instance;
  }

  /// self:signal:SIGUSR1
  void resolve_self(const ast::AttachPoint& point) {
    if (point.function != "SIGUSR1") {
      diagnostics_.error(point.span, "self: there is no probe for '{}'", point.function)
          .with_hint("self:signal:SIGUSR1; SIGUSR2 switches the probes off and on");
      return;
    }
    add_alone(point, ProbeKind::kSelf).symbol = point.function;
  }

  /// test:name, bench:name. In a trace they are left out, and nothing in them is looked at.
  void resolve_named(const ast::AttachPoint& point, ProbeKind kind) {
    if (mode_ != (kind == ProbeKind::kTest ? RunMode::kTest : RunMode::kBench)) {
      left_out_++;
      return;
    }
    for (const bundle::Probe& other : table_.probes) {
      if (other.kind != kind || other.symbol != point.function) continue;
      diagnostics_.error(point.span, "there is a {} '{}' already", ast::to_string(point.type),
                         point.function);
      return;
    }
    add_alone(point, kind).symbol = point.function;
  }

  void resolve_interval(const ast::AttachPoint& point) {
    if (point.period_ns == 0) {
      diagnostics_.error(point.span, "an interval needs a time longer than 0")
          .with_hint("interval:s:1 or interval:500ms");
      return;
    }
    add_alone(point, ProbeKind::kInterval).interval_ns = point.period_ns;
  }

  void resolve_uprobe(const ast::AttachPoint& point, ProbeKind kind) {
    if (point.is_cpp) return resolve_cpp(point, kind);
    bool is_return = kind == ProbeKind::kUretprobe;
    if (!point.source_file.empty() && !is_return) return resolve_source_line(point);
    if (!point.source_file.empty()) {
      diagnostics_.error(point.span, "a uretprobe takes a function, no source line");
      return;
    }
    if (is_return && (point.offset != 0 || point.address)) {
      diagnostics_.error(point.span,
                         "a uretprobe takes a function, without an offset or an address");
      return;
    }
    if (point.address) return resolve_uprobe_address(point);
    auto functions = world_.user_functions(point.target, point.function);
    if (!functions || functions->empty()) {
      std::string what = functions ? fmt::format("no function matches '{}'", point.function)
                                   : functions.error().message;
      report_missing(point, what, world_.near_user_functions(point.target, point.function),
                     point.target + ":");
      return;
    }
    make_room(functions->size());
    const std::string offset = offset_text(point);
    for (const UserFunction& function : *functions) {
      Instance* instance =
          add_shared({.kind = kind,
                      .name = fmt::format("{}:{}:{}{}", is_return ? "uretprobe" : "uprobe",
                                          function.path, function.symbol, offset),
                      .function = function.symbol,
                      .path = function.path,
                      .symbol = function.symbol,
                      .offset = point.offset});
      if (instance != nullptr) instance->functions.push_back(function);
    }
  }

  void resolve_cpp(const ast::AttachPoint& point, ProbeKind kind) {
    auto functions = world_.cpp_functions(point.target, point.function);
    if (!functions) return report_missing(point, functions.error().message, {}, "");
    for (const auto& [function, name] : *functions) {
      Instance* instance =
          add_shared({.kind = kind,
                      .name = fmt::format("{}:{}:cpp:{}{}",
                                          kind == ProbeKind::kUretprobe ? "uretprobe" : "uprobe",
                                          function.path, function.symbol, offset_text(point)),
                      .function = name,
                      .path = function.path,
                      .symbol = function.symbol,
                      .offset = point.offset});
      if (instance != nullptr) instance->functions.push_back(function);
    }
  }

  /// One probe a place, all of one name, as with static tracepoints.
  void resolve_source_line(const ast::AttachPoint& point) {
    auto path = world_.user_file(point.target);
    if (!path) return report_missing(point, path.error().message, {}, "");
    auto places =
        world_.source_line(*path, point.source_file, point.source_line, point.source_column);
    if (!places) return report_missing(point, places.error().message, {}, "");
    std::string name = fmt::format("uprobe:{}@{}:{}", *path, point.source_file, point.source_line);
    if (point.source_column != 0) name += fmt::format(":{}", point.source_column);
    for (const SourcePlace& place : *places)
      add_shared({.kind = ProbeKind::kUprobe,
                  .name = name,
                  .function = place.function,
                  .path = *path,
                  .address = place.address});
  }

  void resolve_uprobe_address(const ast::AttachPoint& point) {
    auto path = world_.user_file(point.target);
    if (!path) {
      diagnostics_.error(point.span, "{}", path.error().message);
      return;
    }
    add_shared({.kind = ProbeKind::kUprobe,
                .name = fmt::format("uprobe:{}:{:#x}", *path, *point.address),
                .function = fmt::format("{:#x}", *point.address),
                .path = *path,
                .address = point.address});
  }

  void resolve_kprobe(const ast::AttachPoint& point, ProbeKind kind) {
    std::string_view type = kind == ProbeKind::kKprobe ? "kprobe" : "kretprobe";
    if (kind == ProbeKind::kKretprobe && (point.offset != 0 || point.address)) {
      diagnostics_.error(point.span,
                         "a kretprobe takes a function, without an offset or an address");
      return;
    }
    if (point.address) {
      add_shared({.kind = kind,
                  .name = fmt::format("{}:{:#x}", type, *point.address),
                  .function = fmt::format("{:#x}", *point.address),
                  .address = point.address});
      return;
    }
    auto functions = world_.kernel_functions(point.target, point.function);
    if (!functions || functions->empty()) {
      std::string what = functions ? fmt::format("no kernel function matches '{}'", point.function)
                                   : functions.error().message;
      report_missing(point, what, world_.near_kernel_functions(point.function), "");
      return;
    }
    for (const KernelFunction& function : *functions) {
      std::string module;
      if (!point.target.empty())
        module = (function.module.empty() ? "vmlinux" : function.module) + ":";
      add_shared(
          {.kind = kind,
           .name = fmt::format("{}:{}{}{}", type, module, function.symbol, offset_text(point)),
           .function = function.symbol,
           .symbol = function.symbol,
           .module = function.module,
           .offset = point.offset});
    }
  }

  void resolve_tracepoint(const ast::AttachPoint& point) {
    auto events = world_.tracepoints(point.target, point.function);
    if (!events || events->empty()) {
      std::string what =
          events ? fmt::format("no tracepoint matches '{}:{}'", point.target, point.function)
                 : events.error().message;
      report_missing(point, what, world_.near_tracepoints(point.target, point.function), "");
      return;
    }
    for (Tracepoint& event : *events) {
      Instance* instance =
          add_shared({.kind = ProbeKind::kTracepoint,
                      .name = fmt::format("tracepoint:{}:{}", event.category, event.event),
                      .function = event.event,
                      .symbol = event.event,
                      .module = event.category});
      if (instance != nullptr) instance->events.push_back(std::move(event));
    }
  }

  /// One probe a place, all of one name: `probe` and the maps do not tell inlined copies apart.
  void resolve_usdt(const ast::AttachPoint& point) {
    auto sites = world_.usdt_sites(point.target, point.usdt_namespace, point.function);
    if (!sites || sites->empty()) {
      std::string what = sites ? fmt::format("no static tracepoint matches '{}'", point.function)
                               : sites.error().message;
      report_missing(point, what, world_.near_usdt(point.target, point.function),
                     point.target.empty() ? "" : point.target + ":");
      return;
    }
    for (UsdtSite& site : *sites) {
      Instance* instance =
          add_shared({.kind = ProbeKind::kUsdt,
                      .name = fmt::format("usdt:{}:{}:{}", site.path, site.provider, site.name),
                      .function = site.name,
                      .path = site.path,
                      .symbol = site.name,
                      .module = site.provider,
                      .address = site.address,
                      .semaphore = site.semaphore});
      if (instance != nullptr) instance->usdt.push_back(std::move(site));
    }
  }

  void resolve_profile(const ast::AttachPoint& point) {
    if (point.period_ns == 0) {
      diagnostics_.error(point.span, "a profile needs a time longer than 0")
          .with_hint("profile:hz:99 or profile:ms:10");
      return;
    }
    add_shared({.kind = ProbeKind::kProfile, .name = point.text, .interval_ns = point.period_ns});
  }

  void resolve_counter(const ast::AttachPoint& point, ProbeKind kind) {
    const CounterEvent* event = find_counter_event(kind, point.function);
    if (event == nullptr) {
      Diagnostic& diagnostic = diagnostics_.error(point.span, "there is no {} event '{}'",
                                                  ast::to_string(point.type), point.function);
      std::string_view near = nearest_counter_event(kind, point.function);
      if (!near.empty()) diagnostic.with_hint("did you mean '{}'?", near);
      return;
    }
    uint64_t count = point.count != 0 ? point.count : event->default_count;
    add_shared({.kind = kind,
                .name = fmt::format("{}:{}:{}", ast::to_string(point.type), event->name, count),
                .symbol = std::string(event->name),
                .event_count = count});
  }

  /// Its address is of the process that is traced, or of the kernel.
  void resolve_watchpoint(const ast::AttachPoint& point) {
    if (!point.address) return refuse(point, "a watchpoint on an argument of a function");
    bool is_read_alone = point.watch_mode == "r";
    bool mixes_code = point.watch_mode.size() > 1 && point.watch_mode.contains('x');
    if (is_read_alone || mixes_code) {
      diagnostics_.error(point.span, "x86-64 cannot watch for '{}'", point.watch_mode)
          .with_hint("w, rw (also fires on writes) or x");
      return;
    }
    if (*point.address % point.watch_length != 0) {
      diagnostics_.error(point.span, "{:#x} is not a multiple of the {} bytes that are watched",
                         *point.address, point.watch_length);
      return;
    }
    add_shared({.kind = ProbeKind::kWatchpoint,
                .name = point.text,
                .address = point.address,
                .watch_length = point.watch_length,
                .watch_mode = point.watch_mode});
  }

  /// What the kernel's type information describes. Each has a program of its own in the kernel.
  void resolve_typed(const ast::AttachPoint& point, ProbeKind kind) {
    if (!point.bpf_id.empty()) return refuse(point, "a probe on a BPF program");
    if (!point.pin.empty()) return refuse(point, "a pinned iterator");
    auto events = world_.typed_events(typed_event(kind), point.target, point.function);
    if (!events || events->empty()) {
      diagnostics_.error(
          point.span, "{}",
          events ? fmt::format("nothing matches '{}'", point.function) : events.error().message);
      return;
    }
    if (events->size() > kMostTyped) {
      diagnostics_
          .error(point.span, "{} {} probes at once: each needs a program of its own, {} are most",
                 events->size(), ast::to_string(point.type), kMostTyped)
          .with_hint("kprobe attaches many functions by one link");
      return;
    }
    for (Tracepoint& event : *events) {
      std::string module = event.category.empty() ? "" : event.category + ":";
      Instance* instance = add_shared(
          {.kind = kind,
           .name = fmt::format("{}:{}{}", ast::to_string(point.type), module, event.event),
           .function = event.event,
           .symbol = event.event,
           .module = event.category});
      if (instance != nullptr) instance->events.push_back(std::move(event));
    }
  }

  static TypedEvent typed_event(ProbeKind kind) {
    switch (kind) {
      case ProbeKind::kFentry: return TypedEvent::kFunctionEntry;
      case ProbeKind::kFexit: return TypedEvent::kFunctionExit;
      case ProbeKind::kIter: return TypedEvent::kIterator;
      default: return TypedEvent::kRawTracepoint;
    }
  }

  static std::string offset_text(const ast::AttachPoint& point) {
    return point.offset == 0 ? "" : fmt::format("+{}", point.offset);
  }

  void refuse(const ast::AttachPoint& point, std::string_view what) {
    diagnostics_.error(point.span, "{} is not built yet", what);
  }

  void report_missing(const ast::AttachPoint& point,
                      const std::string& what,
                      const std::vector<std::string>& near,
                      const std::string& prefix) {
    Diagnostic& diagnostic =
        missing_.emplace_back(Diagnostic{Severity::kError, point.span, what, {}});
    if (near.empty()) return;
    std::vector<std::string> names;
    for (const std::string& name : near) names.push_back(prefix + name);
    diagnostic.with_hint("did you mean {}?", fmt::join(names, " or "));
  }

  World& world_;
  MissingProbes missing_policy_;
  RunMode mode_;
  size_t left_out_ = 0;  ///< tests and benchmarks that this run is not for
  Diagnostics& diagnostics_;
  std::vector<Diagnostic> missing_;  ///< this clause's probes that name nothing
  ProbeTable table_;
  const ast::Clause* clause_ = nullptr;
  std::set<std::string> excluded_;      ///< this clause's, by name
  std::map<ProbeKind, size_t> shared_;  ///< this clause's instances
};

}  // namespace

ProbeTable resolve_probes(const ast::Program& program,
                          World& world,
                          MissingProbes missing,
                          RunMode mode,
                          Diagnostics& diagnostics) {
  return Resolver(world, missing, mode, diagnostics).run(program);
}

}  // namespace spile::lang
