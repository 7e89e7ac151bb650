#include "session/event_list.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdio>
#include <vector>

#include "kernel_engine/perf_event.h"
#include "lang/sema/catalog.h"
#include "session/world_for.h"
#include "symbols/glob.h"

namespace spile::session {

namespace {

struct Line {
  std::string name, kind;
};

void add_counters(bundle::ProbeKind kind,
                  const char* description,
                  const std::string& pattern,
                  std::vector<Line>& lines) {
  for (const lang::CounterEvent& event : lang::counter_events(kind)) {
    if (!symbols::glob_matches(pattern, event.name) && !symbols::glob_matches(pattern, event.alias))
      continue;
    bundle::Probe probe{.kind = kind, .name = std::string(event.name)};
    probe.symbol = event.name;
    if (!kernel_engine::counter_is_there(probe)) continue;
    std::string name(event.name);
    if (!event.alias.empty()) name += fmt::format(" OR {}", event.alias);
    lines.push_back({std::move(name), description});
  }
}

}  // namespace

int list_events(const std::string& pattern, const TargetRequest& target) {
  const std::string wanted = pattern.empty() ? "*" : pattern;
  std::vector<Line> lines;
  add_counters(bundle::ProbeKind::kHardware, "Hardware event", wanted, lines);
  add_counters(bundle::ProbeKind::kSoftware, "Software event", wanted, lines);
  MachineWorld world = world_for(target);
  auto tracepoints = world.tracepoint_names("*", "*");
  if (!tracepoints) fmt::print(stderr, "spile: tracepoints: {}\n", tracepoints.error().message);
  for (const std::string& name : tracepoints.value_or(std::vector<std::string>())) {
    if (symbols::glob_matches(wanted, name)) lines.push_back({name, "Tracepoint event"});
  }
  for (const Line& line : lines) fmt::print("  {:<50} [{}]\n", line.name, line.kind);
  if (!lines.empty()) return kOk;
  fmt::print(stderr, "spile: no event matches '{}'\n", pattern);
  return kFailed;
}

}  // namespace spile::session
