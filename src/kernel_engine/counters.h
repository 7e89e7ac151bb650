// The kernel's and the CPU's counters, read as numbers: no program runs.
#pragma once

#include <cstdint>
#include <vector>

#include "base/fd.h"
#include "kernel_engine/perf_event.h"

namespace spile::kernel_engine {

/// Whose events, and from when.
struct CounterScope {
  std::vector<pid_t> pids;  ///< empty: every process
  bool on_exec = false;     ///< from the process's next exec on
  bool per_cpu = false;     ///< of processes too: one event a thread and CPU
};

struct CounterValue {
  int cpu = -1;  ///< -1: any
  /// Scaled up where the CPU had fewer counters than were asked for.
  uint64_t count = 0;
};

/// One kSoftware or kHardware event. Counting ends when it goes away.
class Counter {
 public:
  /// Errors: as open_counter.
  static Result<Counter> open(const bundle::Probe& probe, const CounterScope& scope);
  Result<std::vector<CounterValue>> read() const;

 private:
  struct Part {
    Fd event;
    int cpu;
  };
  std::vector<Part> parts_;
};

}  // namespace spile::kernel_engine
