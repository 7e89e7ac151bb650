// perf_event_open(2) for everything that the kernel engine hangs a program on.
#pragma once

#include <sys/types.h>

#include <string>
#include <vector>

#include "base/address.h"
#include "base/error.h"
#include "base/fd.h"
#include "bundle/bundle.h"

namespace spile::kernel_engine {

/// Where a probe of a function fires: at the instruction, or when the function returns.
enum class Moment : uint8_t { kEntry, kReturn };

// Errors of all: denied, unsupported (this kernel or machine has no such events; the message says
// what is missing), invalid (the kernel does not allow a probe there).

/// pid -1: every process. `semaphore` 0: none.
Result<Fd> open_uprobe(
    const std::string& path, FileOffset offset, FileOffset semaphore, Moment moment, pid_t pid);
/// `function` and `offset`, or an address where `function` is empty.
Result<Fd> open_kprobe(const std::string& function, uint64_t offset, Moment moment);
Result<Fd> open_tracepoint(const std::string& category, const std::string& event, pid_t pid = -1);
/// Fires every `period_ns` on one CPU.
Result<Fd> open_clock(uint64_t period_ns, int cpu);

/// Whose events: one CPU of every process, or one thread (and those it starts) on every CPU.
struct Whose {
  pid_t tid = -1;
  int cpu = -1;
};
/// Every event_count-th event of a kSoftware, kHardware or kWatchpoint probe.
Result<Fd> open_counter(const bundle::Probe& probe, Whose whose);
/// A kSoftware or kHardware event to be read: value, time enabled, time running, 8 bytes each.
/// `on_exec`: it counts from the thread's next exec on, those it starts included.
Result<Fd> open_reading_counter(const bundle::Probe& probe, Whose whose, bool on_exec);

/// Every CPU that is there, or every thread of these processes.
Result<std::vector<Whose>> everybody(const std::vector<pid_t>& pids);
/// "0-2,5" -> 0 1 2 5.
std::vector<int> parse_cpu_list(const std::string& text);
Result<std::vector<int>> online_cpus();

/// The folder that tracefs is mounted at. Errors: unsupported, with what to do.
Result<std::string> tracefs();

/// Whether the event that `symbol` of a kSoftware or kHardware probe names is there. Errors:
/// unsupported, why not.
Result<void> counter_is_there(const bundle::Probe& probe);

}  // namespace spile::kernel_engine
