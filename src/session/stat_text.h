// What `spile stat` is asked and what it prints, in perf stat's layout. Pure.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "bundle/bundle.h"
#include "session/latency.h"

namespace spile::session {

/// One event as the user wrote it.
struct StatEvent {
  std::string name;           ///< as given, what is printed
  std::string probe;          ///< as a script writes it; empty for a counter that is only read
  bundle::Probe counter;      ///< kSoftware or kHardware, where `probe` is empty
  bool is_return = false;     ///< of calls: how long each took can be known
  bool with_latency = false;  ///< and is asked for
  bool is_pattern() const { return probe.find('*') != std::string::npos; }
};

/// "a:b,c" -> "a:b" and "c"; commas in quotes belong to the name.
std::vector<std::string> split_events(std::string_view list);
/// perf's names are taken too: "sched:sched_switch" is a tracepoint, "page-faults" a counter.
///
/// Errors: invalid, it is neither.
Result<StatEvent> parse_stat_event(const std::string& text);

/// Every event counts into a map of its own: the n-th into @e<n>, by probe where it is a pattern.
/// With latency its durations go into a histogram of kLatencyBits, @h<n>, and the longest into
/// @m<n>.
std::string stat_script(const std::vector<StatEvent>& events);
std::string stat_map(size_t event);
std::string stat_latency_map(size_t event);
std::string stat_longest_map(size_t event);

/// What was counted in one row.
struct StatRow {
  std::string event;
  std::optional<int> cpu;
  uint64_t count = 0;
  double seconds = 0;       ///< over which it was counted
  std::string not_counted;  ///< not empty: why it could not be
  bool is_time = false;     ///< count is nanoseconds on a CPU
  std::optional<Latencies> latencies = {};
};

/// "for 'system wide'", "for process id '3'", "for 'ls -l'".
std::string stat_header(const std::string& what);
/// With latencies a second line, as perf prints a further figure of an event.
std::string stat_line(const StatRow& row);
std::string stat_footer(double elapsed_seconds);
/// With -I: a header once, then each line with its time.
std::string interval_header();
std::string interval_line(double at_seconds, const StatRow& row);
/// One object a line, with perf's member names. `at_seconds` with -I.
std::string stat_json(const StatRow& row, std::optional<double> at_seconds);

}  // namespace spile::session
