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

constexpr uint32_t kPtRegsBytes = bpf::x86_64_regs::kSize;

ContextKind context_kind(ProbeKind kind) {
  switch (kind) {
    case ProbeKind::kBegin:
    case ProbeKind::kEnd:
    case ProbeKind::kInterval: return ContextKind::kNone;
    case ProbeKind::kTracepoint: return ContextKind::kTracepoint;
    default: return ContextKind::kRegs;
  }
}

class Resolver {
 public:
  Resolver(World& world, MissingProbes missing_policy, Diagnostics& diagnostics)
      : world_(world), missing_policy_(missing_policy), diagnostics_(diagnostics) {}

  ProbeTable run(const ast::Program& program) {
    for (const ast::Clause& clause : program.clauses) resolve_clause(clause);
    if (table_.probes.empty() && !program.clauses.empty() && !diagnostics_.has_errors()) {
      diagnostics_.error(program.clauses.front().attach_points.front().span,
                         "none of this script's probes is there");
    }
    return std::move(table_);
  }

 private:
  void resolve_clause(const ast::Clause& clause) {
    clause_ = &clause;
    shared_.clear();
    if (!clause.name.empty()) diagnostics_.error(clause.span, "a named probe is not built yet");
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
      Resolver others(world_, MissingProbes::kError, diagnostics_);
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
      case ProbeKind::kUprobe:
      case ProbeKind::kUretprobe: resolve_uprobe(point, kind); break;
      case ProbeKind::kTracepoint: resolve_tracepoint(point); break;
      case ProbeKind::kUsdt: resolve_usdt(point); break;
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
    if (!point.source_file.empty()) return refuse(point, "a uprobe by source line");
    bool is_return = kind == ProbeKind::kUretprobe;
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
    for (const UserFunction& function : *functions) {
      Instance* instance =
          add_shared({.kind = kind,
                      .name = fmt::format("{}:{}:{}{}", is_return ? "uretprobe" : "uprobe",
                                          function.path, function.symbol, offset_text(point)),
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
      std::string module = point.target.empty() ? "" : function.module + ":";
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
  Diagnostics& diagnostics_;
  std::vector<Diagnostic> missing_;  ///< this clause's probes that name nothing
  ProbeTable table_;
  const ast::Clause* clause_ = nullptr;
  std::set<std::string> excluded_;      ///< this clause's, by name
  std::map<ProbeKind, size_t> shared_;  ///< this clause's instances
};

/// What the compiled code of a clause depends on: where the fields it uses are.
std::string layout_of(const Instance& instance, const Tracepoint& event) {
  std::string layout;
  for (const std::string& name : instance.used_fields) {
    auto field = std::ranges::find(event.fields, name, &EventField::name);
    if (field == event.fields.end()) {
      layout += "-;";
    } else {
      layout += fmt::format("{},{},{},{};", field->offset, field->size, field->is_signed,
                            static_cast<int>(field->shape));
      if (field->shape == EventField::Shape::kPointer) layout += field->type;
    }
  }
  return layout;
}

/// The same for the arguments of a static tracepoint.
std::string layout_of(const Instance& instance, const UsdtSite& site) {
  std::string layout;
  for (uint32_t index : instance.used_arguments) {
    if (index >= site.arguments.size()) {
      layout += "-;";
      continue;
    }
    const UsdtArgument& a = site.arguments[index];
    layout += fmt::format("{},{},{},{},{},{},{},{};", static_cast<int>(a.place), a.size,
                          a.is_signed, a.base, a.index, a.scale, a.from_site, a.number);
  }
  return layout;
}

/// An instance without its probes.
Instance part_of(const Instance& whole) {
  return {.clause = whole.clause,
          .context = whole.context,
          .used_fields = whole.used_fields,
          .used_arguments = whole.used_arguments,
          .variables = whole.variables,
          .is_declared = whole.is_declared,
          .hoisted = whole.hoisted};
}

void split_events(Instance& instance, std::vector<Instance>& all) {
  std::map<std::string, size_t> by_layout;
  for (size_t i = 0; i < instance.events.size(); ++i) {
    Tracepoint& event = instance.events[i];
    auto [found, is_new] = by_layout.try_emplace(layout_of(instance, event), all.size());
    if (is_new) {
      all.push_back(part_of(instance));
      all.back().context.size_bytes = event.record_size;
    }
    Instance& part = all[found->second];
    part.context.size_bytes = std::min(part.context.size_bytes, event.record_size);
    part.probes.push_back(instance.probes[i]);
    part.events.push_back(std::move(event));
  }
}

void split_usdt(Instance& instance, std::vector<Instance>& all) {
  std::map<std::string, size_t> by_layout;
  for (size_t i = 0; i < instance.usdt.size(); ++i) {
    UsdtSite& site = instance.usdt[i];
    auto [found, is_new] = by_layout.try_emplace(layout_of(instance, site), all.size());
    if (is_new) all.push_back(part_of(instance));
    all[found->second].probes.push_back(instance.probes[i]);
    all[found->second].usdt.push_back(std::move(site));
  }
}

}  // namespace

ProbeTable resolve_probes(const ast::Program& program,
                          World& world,
                          MissingProbes missing,
                          Diagnostics& diagnostics) {
  return Resolver(world, missing, diagnostics).run(program);
}

std::vector<Instance> split_by_layout(std::vector<Instance> instances) {
  std::vector<Instance> all;
  for (Instance& instance : instances) {
    if (!instance.events.empty()) {
      split_events(instance, all);
    } else if (!instance.usdt.empty()) {
      split_usdt(instance, all);
    } else {
      all.push_back(std::move(instance));
    }
  }
  return all;
}

}  // namespace spile::lang
