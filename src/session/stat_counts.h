// What the programs of `spile stat` have counted so far, and what its counters show.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "engine/engine.h"
#include "session/latency.h"
#include "session/stat_text.h"

namespace spile::session {

/// One row of an event, by CPU.
struct Count {
  std::string event;
  std::map<int, uint64_t> by_cpu;
  std::string not_counted;
  bool is_time = false;
  std::map<int, Latencies> latencies;  ///< by CPU, of events that have them

  uint64_t total() const;
  Latencies all_latencies() const;
  /// What has come since `before`.
  Count since(const Count& before) const;
};

/// Rows of the n-th event, whose programs `bundle` has: of a pattern one a probe, those that were
/// not hit with 0.
Result<std::vector<Count>> read_event_counts(engine::Trace& trace,
                                             const bundle::Bundle& bundle,
                                             const StatEvent& event,
                                             size_t index);

}  // namespace spile::session
