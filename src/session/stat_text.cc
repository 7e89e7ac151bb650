#include "session/stat_text.h"

#include <fmt/format.h>

#include <algorithm>

#include "lang/sema/catalog.h"
#include "lang/syntax/parser.h"
#include "output/value.h"

namespace spile::session {

using bundle::ProbeKind;

namespace {

/// A software or hardware event of that name, to be read.
std::optional<bundle::Probe> counter_of(std::string_view name) {
  for (ProbeKind kind : {ProbeKind::kSoftware, ProbeKind::kHardware}) {
    if (const lang::CounterEvent* event = lang::find_counter_event(kind, name)) {
      bundle::Probe probe{.kind = kind, .name = std::string(name)};
      probe.symbol = event->name;
      return probe;
    }
  }
  return std::nullopt;
}

/// Empty: it is none.
std::vector<lang::ast::AttachPoint> attach_points(const std::string& text) {
  lang::Source source("-e", text);
  lang::Diagnostics diagnostics;
  auto points = lang::parse_attach_point(source, {}, diagnostics);
  if (diagnostics.has_errors()) points.clear();
  return points;
}

bool has_duration(const lang::ast::AttachPoint& point) {
  return point.type == lang::ast::ProbeType::kUretprobe ||
         point.type == lang::ast::ProbeType::kKretprobe;
}

/// "software:page-faults" without a count is read, not sampled.
std::string_view without_type(std::string_view text) {
  for (std::string_view type : {"software:", "s:", "hardware:", "h:"}) {
    if (text.starts_with(type)) return text.substr(type.size());
  }
  return text;
}

/// As perf has it: "1.234 K/sec".
std::string rate_text(double per_second) {
  constexpr std::string_view kUnits[] = {"/sec", "K/sec", "M/sec", "G/sec"};
  size_t unit = 0;
  for (; per_second >= 1000 && unit + 1 < std::size(kUnits); unit++) per_second /= 1000;
  return fmt::format("# {:>8.3f} {}", per_second, kUnits[unit]);
}

std::string count_text(const StatRow& row) {
  if (row.is_time && row.not_counted.empty())
    return fmt::format("{:.2f} msec", static_cast<double>(row.count) / 1e6);
  return row.not_counted.empty() ? fmt::format("{}", row.count) : "<not supported>";
}

std::string cpu_text(const StatRow& row) {
  return row.cpu ? fmt::format("{:<11}", fmt::format("CPU{}", *row.cpu)) : "";
}

std::string rate_of(const StatRow& row) {
  if (row.seconds <= 0 || !row.not_counted.empty()) return "";
  if (row.is_time)
    return fmt::format("# {:>8.3f} CPUs utilized",
                       static_cast<double>(row.count) / 1e9 / row.seconds);
  return rate_text(static_cast<double>(row.count) / row.seconds);
}

}  // namespace

std::vector<std::string> split_events(std::string_view list) {
  std::vector<std::string> events(1);
  bool is_quoted = false;
  for (char c : list) {
    if (c == '"') is_quoted = !is_quoted;
    if (c == ',' && !is_quoted)
      events.emplace_back();
    else
      events.back() += c;
  }
  std::erase(events, "");
  return events;
}

Result<StatEvent> parse_stat_event(const std::string& text) {
  StatEvent event{.name = text, .probe = "", .counter = {}};
  if (auto counter = counter_of(without_type(text))) {
    event.counter = std::move(*counter);
    return event;
  }
  event.probe = text;
  if (const auto points = attach_points(text); !points.empty()) {
    event.is_return = std::ranges::all_of(points, has_duration);
    return event;
  }
  event.probe = "tracepoint:" + text;
  if (text.find(':') != std::string::npos && !attach_points(event.probe).empty()) return event;
  return fail(
      ErrorCode::kInvalid,
      "'{}' is no event: give a probe (kprobe:vfs_read), a tracepoint (sched:sched_switch) or "
      "a counter (page-faults); spile list shows them",
      text);
}

std::string stat_map(size_t event) {
  return fmt::format("@e{}", event);
}

std::string stat_latency_map(size_t event) {
  return fmt::format("@h{}", event);
}
std::string stat_longest_map(size_t event) {
  return fmt::format("@m{}", event);
}

std::string stat_script(const std::vector<StatEvent>& events) {
  std::string script;
  for (size_t i = 0; i < events.size(); i++) {
    if (events[i].probe.empty()) continue;
    const std::string_view key = events[i].is_pattern() ? "[probe]" : "";
    script += fmt::format("{} {{ {}{} = count();", events[i].probe, stat_map(i), key);
    if (events[i].with_latency)
      script += fmt::format(" {}{} = hist(duration, {}); {}{} = max(duration);",
                            stat_latency_map(i), key, kLatencyBits, stat_longest_map(i), key);
    script += " }\n";
  }
  return script;
}

std::string stat_header(const std::string& what) {
  return fmt::format("\n Performance counter stats for {}:\n\n", what);
}

namespace {

std::string latency_line(const Latencies& latencies) {
  std::string text;
  auto add = [&text](double ns, std::string_view name) {
    text += fmt::format("{}{:.3f} {}", text.empty() ? "" : ", ", ns / 1000, name);
  };
  for (const Percentile& one : kPercentiles) add(latencies.percentile(one.part), one.name);
  if (latencies.longest_ns() > 0) add(static_cast<double>(latencies.longest_ns()), "max");
  return fmt::format("{:>75}# {}\n", "", latencies.count() == 0 ? "no call" : text + " usec");
}

std::string latency_json(const Latencies& latencies) {
  std::string text = fmt::format("{{\"count\" : {}", latencies.count());
  for (const Percentile& one : kPercentiles)
    text += fmt::format(", \"{}\" : {:.0f}", one.name, latencies.percentile(one.part));
  if (latencies.longest_ns() > 0) text += fmt::format(", \"max\" : {}", latencies.longest_ns());
  return text + "}";
}

}  // namespace

std::string stat_line(const StatRow& row) {
  const std::string rate = rate_of(row);
  // "msec" stands in the gap between the columns.
  const int width = row.is_time && row.not_counted.empty() ? 23 : 18;
  std::string line =
      fmt::format("{}{:>{}}{:<{}}", cpu_text(row), count_text(row), width, "", 24 - width);
  line += rate.empty() ? row.event : fmt::format("{:<50} {}", row.event, rate);
  line += "\n";
  return row.latencies ? line + latency_line(*row.latencies) : line;
}

std::string stat_footer(double elapsed_seconds) {
  return fmt::format("\n{:>18.9f} seconds time elapsed\n\n", elapsed_seconds);
}

std::string interval_header() {
  return "#           time             counts unit events\n";
}

std::string interval_line(double at_seconds, const StatRow& row) {
  return fmt::format("{:>16.9f} {}", at_seconds, stat_line(row));
}

std::string stat_json(const StatRow& row, std::optional<double> at_seconds) {
  std::string line = "{";
  if (at_seconds) line += fmt::format("\"interval\" : {:.9f}, ", *at_seconds);
  if (row.cpu) line += fmt::format("\"cpu\" : \"{}\", ", *row.cpu);
  const double value = static_cast<double>(row.count) / (row.is_time ? 1e6 : 1);
  line += row.not_counted.empty()
              ? fmt::format("\"counter-value\" : \"{:.6f}\", ", value)
              : fmt::format("\"counter-value\" : \"<not supported>\", \"reason\" : {}, ",
                            output::json_string(row.not_counted));
  line += fmt::format("\"unit\" : \"{}\", \"event\" : {}", row.is_time ? "msec" : "",
                      output::json_string(row.event));
  if (row.latencies) line += ", \"latency-ns\" : " + latency_json(*row.latencies);
  if (row.seconds > 0 && row.not_counted.empty()) {
    const double per_second = static_cast<double>(row.count) / row.seconds;
    line += fmt::format(", \"metric-value\" : {:.6f}, \"metric-unit\" : \"{}\"",
                        row.is_time ? per_second / 1e9 : per_second,
                        row.is_time ? "CPUs utilized" : "/sec");
  }
  return line + "}\n";
}

}  // namespace spile::session
