// `spile stat`: counts events, prints them as perf stat does.
#pragma once

#include <string>
#include <vector>

#include "session/request.h"

namespace spile::session {

struct StatRequest {
  std::vector<std::string> events;   ///< -e, each may hold several
  TargetRequest target;              ///< -p
  std::vector<std::string> command;  ///< after --
  bool system_wide = false;          ///< -a
  bool per_cpu = false;
  bool latency = false;      ///< --latency: percentiles of the durations of calls
  uint64_t interval_ms = 0;  ///< -I; 0: once, at the end
  Format format = Format::kText;
  std::string output_path;  ///< -o; empty: stderr, where the command's output is not
};

/// Counts until the command or the processes end, or Ctrl-C. Returns the command's status.
int stat(const StatRequest& request);

}  // namespace spile::session
