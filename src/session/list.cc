#include "session/list.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdio>
#include <tuple>
#include <utility>

#include "lang/sema/catalog.h"
#include "lang/syntax/parser.h"
#include "session/compile.h"
#include "session/list_types.h"
#include "session/world_for.h"
#include "symbols/glob.h"

namespace spile::session {

using lang::ast::AttachPoint;
using lang::ast::ProbeType;

namespace {

/// As C spells it, and bpftrace: `char prev_comm[16]`. Dynamic fields keep their kernel spelling,
/// `__data_loc char[] name`.
std::string declaration(const lang::EventField& field) {
  size_t bracket = field.type.find('[');
  if (bracket == std::string::npos || field.type.starts_with("__"))
    return fmt::format("{} {}", field.type, field.name);
  return fmt::format("{} {}{}", field.type.substr(0, bracket), field.name,
                     field.type.substr(bracket));
}

/// Prints what one attach point names. The lines end up on a pipe as often as not: errors of
/// writing end it quietly.
class Lister {
 public:
  Lister(MachineWorld& world, bool with_fields) : world_(world), with_fields_(with_fields) {}

  Result<size_t> list(const AttachPoint& written) {
    const AttachPoint point = file_alone(written);
    switch (point.type) {
      case ProbeType::kUprobe: return uprobes(point, "uprobe");
      case ProbeType::kUretprobe: return uprobes(point, "uretprobe");
      case ProbeType::kUsdt: return usdt(point);
      case ProbeType::kKprobe: return kprobes(point, "kprobe");
      case ProbeType::kKretprobe: return kprobes(point, "kretprobe");
      case ProbeType::kTracepoint: return tracepoints(point.target, point.function);
      case ProbeType::kBegin:
      case ProbeType::kEnd:
      case ProbeType::kInterval:
      case ProbeType::kProfile:
      case ProbeType::kWatchpoint: fmt::print("{}\n", point.text); return size_t{1};
      case ProbeType::kSoftware: return counters(point, bundle::ProbeKind::kSoftware);
      case ProbeType::kHardware: return counters(point, bundle::ProbeKind::kHardware);
      case ProbeType::kRawTracepoint: return typed(point, lang::TypedEvent::kRawTracepoint);
      case ProbeType::kFentry: return typed(point, lang::TypedEvent::kFunctionEntry);
      case ProbeType::kFexit: return typed(point, lang::TypedEvent::kFunctionExit);
      case ProbeType::kIter: return typed(point, lang::TypedEvent::kIterator);
      default: return fail(ErrorCode::kUnsupported, "listing '{}' is not built yet", point.text);
    }
  }

  /// What a pattern without a probe type means: everything whose name it matches, by kinds.
  Result<size_t> everything(size_t kind, const std::string& pattern) {
    AttachPoint point;
    point.function = pattern;
    switch (kind) {
      case 0: return special(pattern);
      case 1: point.type = ProbeType::kSoftware; break;
      case 2: point.type = ProbeType::kHardware; break;
      case 3: point.type = ProbeType::kIter; break;
      case 4: return tracepoints("*", pattern);
      case 5: point.type = ProbeType::kRawTracepoint; break;
      case 6: point.type = ProbeType::kFentry; break;
      default: point.type = ProbeType::kKprobe; break;
    }
    return list(point);
  }
  static constexpr size_t kKinds = 8;

  Result<size_t> tracepoints(const std::string& category, const std::string& event) {
    SPILE_TRY(auto names, world_.tracepoint_names(category.empty() ? "*" : category,
                                                  event.empty() ? "*" : event));
    for (const std::string& name : names) {
      fmt::print("tracepoint:{}\n", name);
      if (with_fields_) SPILE_TRY_VOID(fields(name));
    }
    return names.size();
  }

 private:
  /// `uprobe:/bin/sh`: all of that file, not a function of that name.
  static AttachPoint file_alone(AttachPoint point) {
    const bool takes_file = point.type == ProbeType::kUprobe ||
                            point.type == ProbeType::kUretprobe || point.type == ProbeType::kUsdt;
    if (takes_file && point.target.empty() && point.function.find('/') != std::string::npos) {
      point.target = std::exchange(point.function, std::string("*"));
    }
    return point;
  }

  /// The language takes both spellings.
  static size_t special(const std::string& pattern) {
    constexpr std::pair<std::string_view, std::string_view> kSpellings[] = {{"BEGIN", "begin"},
                                                                            {"END", "end"}};
    size_t count = 0;
    for (const auto& [name, other] : kSpellings) {
      if (!symbols::glob_matches(pattern, name) && pattern != other) continue;
      fmt::print("{}\n", name);
      count++;
    }
    return count;
  }

  Result<size_t> cpp_uprobes(const AttachPoint& point, const char* type) {
    SPILE_TRY(auto functions, world_.cpp_functions(point.target, point.function));
    for (const auto& [f, name] : functions) {
      fmt::print("{}:{}:cpp:{}\n", type, f.path, f.symbol);
      if (with_fields_) fmt::print("    {}\n", name);
    }
    return functions.size();
  }

  Result<size_t> uprobes(const AttachPoint& point, const char* type) {
    if (point.is_cpp) return cpp_uprobes(point, type);
    SPILE_TRY(auto functions,
              world_.user_functions(point.target, point.function.empty() ? "*" : point.function));
    std::ranges::sort(functions, {}, [](const auto& f) { return std::pair(f.path, f.symbol); });
    for (const auto& f : functions) {
      fmt::print("{}:{}:{}\n", type, f.path, f.symbol);
      if (with_fields_) parameters(f);
    }
    return functions.size();
  }

  /// What `args` has, where the file's debug information says it.
  void parameters(const lang::UserFunction& function) {
    const auto found = world_.user_parameters(function);
    if (!found) return;
    for (const lang::UserParameter& one : *found) {
      std::string type = to_string(one.type);
      type.resize(std::min(type.size(), type.find(" of /")));  // the file is in the line above
      if (one.type.is_pointer() && !type.ends_with('*')) type += " *";
      fmt::print("    {} {}{}\n", type, one.name,
                 one.problem.empty() ? "" : fmt::format(" ({})", one.problem));
    }
  }

  /// Each name once; with fields what `args` has, and a line for each of its places.
  Result<size_t> usdt(const AttachPoint& point) {
    SPILE_TRY(auto sites, world_.usdt_sites(point.target, point.usdt_namespace,
                                            point.function.empty() ? "*" : point.function));
    std::ranges::stable_sort(
        sites, {}, [](const lang::UsdtSite& s) { return std::tie(s.path, s.provider, s.name); });
    std::string last;
    for (const lang::UsdtSite& site : sites) {
      std::string name = fmt::format("usdt:{}:{}:{}", site.path, site.provider, site.name);
      if (name != last) {
        fmt::print("{}\n", name);
        for (const lang::UsdtField& field : site.fields) {
          if (with_fields_) fmt::print("    {} {}\n", field.type, field.name);
        }
      }
      last = std::move(name);
      if (with_fields_) fmt::print("    {}\n", describe(site));
    }
    return sites.size();
  }

  /// "at 0x1151: arg0 -4@%edi, arg1 8@-8(%rbp); semaphore at 0x4010"
  static std::string describe(const lang::UsdtSite& site) {
    std::string text = fmt::format("at {:#x}:", site.address);
    if (site.arguments.empty()) text += " no arguments";
    for (size_t i = 0; i < site.arguments.size(); i++)
      text += fmt::format("{} arg{} {}", i == 0 ? "" : ",", i, site.arguments[i].text);
    if (site.semaphore != 0) text += fmt::format("; semaphore at {:#x}", site.semaphore);
    return text;
  }

  Result<size_t> kprobes(const AttachPoint& point, const char* type) {
    SPILE_TRY(auto functions, world_.known_kernel_functions(
                                  point.target, point.function.empty() ? "*" : point.function));
    std::ranges::sort(functions, {}, [](const auto& f) { return std::pair(f.module, f.symbol); });
    for (const auto& f : functions)
      fmt::print("{}:{}{}{}\n", type, f.module, f.module.empty() ? "" : ":", f.symbol);
    return functions.size();
  }

  /// Those of the language, whether or not this machine has them: `spile list` shows that.
  Result<size_t> counters(const AttachPoint& point, bundle::ProbeKind kind) {
    size_t count = 0;
    for (const lang::CounterEvent& event : lang::counter_events(kind)) {
      if (!symbols::glob_matches(point.function, event.name) && point.function != event.alias)
        continue;
      fmt::print("{}:{}:{}\n", lang::ast::to_string(point.type), event.name, event.default_count);
      count++;
    }
    return count;
  }

  Result<size_t> typed(const AttachPoint& point, lang::TypedEvent kind) {
    SPILE_TRY(const auto events, world_.typed_events(kind, point.target, point.function));
    for (const lang::Tracepoint& event : events) {
      fmt::print("{}:{}{}{}\n", lang::ast::to_string(point.type), event.category,
                 event.category.empty() ? "" : ":", event.event);
      if (!with_fields_) continue;
      for (const lang::EventField& field : event.fields) fmt::print("    {}\n", declaration(field));
    }
    return events.size();
  }

  Result<void> fields(const std::string& name) {
    size_t colon = name.find(':');
    SPILE_TRY(auto events, world_.tracepoints(name.substr(0, colon), name.substr(colon + 1)));
    for (const auto& event : events) {
      for (const auto& field : event.fields) {
        if (!field.name.starts_with("common_")) fmt::print("    {}\n", declaration(field));
      }
    }
    return {};
  }

  MachineWorld& world_;
  bool with_fields_;
};

/// `*open*` without a probe type. What this kernel does not have is left out.
int list_everything(Lister& lister, const std::string& pattern) {
  size_t count = 0;
  std::string problems;
  for (size_t kind = 0; kind < Lister::kKinds; kind++) {
    const auto listed = lister.everything(kind, pattern);
    if (listed)
      count += *listed;
    else if (listed.error().code != ErrorCode::kNotFound)
      problems += fmt::format("spile: {}\n", listed.error().message);
  }
  if (count > 0) return kOk;
  fmt::print(stderr, "{}spile: no probe matches '{}'\n", problems, pattern);
  return kFailed;
}

/// One probe of a script. False where its name alone does not lead to it again.
bool list_with_fields(Lister& lister, const std::string& name) {
  lang::Diagnostics unread;
  const auto points = lang::parse_attach_point(lang::Source("", name), {}, unread);
  if (unread.has_errors() || points.size() != 1) return false;
  const auto listed = lister.list(points.front());
  return listed && *listed > 0;
}

/// `struct sock`: its name, or with fields its declaration.
int list_type(const std::string& pattern, bool with_fields) {
  const auto text = kernel_declaration(WorldOptions().btf, pattern);
  if (!text) {
    fmt::print(stderr, "spile: {}\n", text.error().message);
    return kFailed;
  }
  fmt::print("{}\n", with_fields ? *text : text->substr(0, text->find(" {")));
  return kOk;
}

}  // namespace

int list_pattern(const std::string& pattern, const TraceRequest& request) {
  MachineWorld world = world_for(request.target);
  Lister lister(world, request.verbose);
  if (names_a_type(pattern)) return list_type(pattern, request.verbose);
  if (pattern.find(':') == std::string::npos) return list_everything(lister, pattern);
  lang::Source source("stdin", pattern);
  lang::Diagnostics diagnostics;
  auto points = lang::parse_attach_point(source, {}, diagnostics);
  if (diagnostics.has_errors()) {
    fmt::print(stderr, "{}", render(source, diagnostics));
    return kFailed;
  }
  size_t count = 0;
  for (const AttachPoint& point : points) {
    auto listed = lister.list(point);
    if (listed) {
      count += *listed;
    } else if (points.size() == 1) {  // of `*:f` most types have none, or need more than a name
      fmt::print(stderr, "spile: {}: {}\n", point.text, listed.error().message);
      return kFailed;
    }
  }
  if (count > 0) return kOk;
  fmt::print(stderr, "spile: no probe matches '{}'\n", pattern);
  return kFailed;
}

int list_script(const TraceRequest& request) {
  MachineWorld world = world_for(request.target);
  auto compiled = compile(request.script, world, options_from_environment());
  if (!compiled) {
    fmt::print(stderr, "{}", compiled.error());
    return kFailed;
  }
  Lister lister(world, true);
  for (const bundle::Probe& probe : compiled->bundle.probes) {
    if (probe.entry_of >= 0) continue;
    if (!request.verbose || !list_with_fields(lister, probe.name)) fmt::print("{}\n", probe.name);
  }
  return kOk;
}

}  // namespace spile::session
