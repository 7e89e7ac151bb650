// What both engines do: run a Bundle, hand out records and maps, undo everything.
#pragma once

#include <sys/types.h>

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "base/error.h"
#include "bundle/bundle.h"

namespace spile::engine {

/// Where to attach.
struct Scope {
  std::vector<pid_t> pids;  ///< both empty: every process (kernel engine only)
  std::vector<std::string>
      command;  ///< user engine: start this, probes in place before its constructors run
  /// User engine: told of each process before its probes are in place. May be empty.
  std::function<void(pid_t)> on_process;
  bool paused = false;  ///< the probes are in place but switched off; BEGIN runs
  /// Asked between tries of an attach that has to wait: true gives up. May be empty.
  std::function<bool()> interrupted;
};

struct MapEntry {
  std::vector<uint8_t> key;
  std::vector<std::vector<uint8_t>> values;  ///< one, or one a CPU
};

/// What was lost and how much ran; merged over CPUs.
struct Stats {
  uint64_t hits = 0;            ///< times a program ran
  uint64_t missed = 0;          ///< hits that ran no program (nesting, no stack, budget)
  uint64_t unseen_returns = 0;  ///< calls that left a function through a pointer, for elsewhere
  uint64_t ring_lost = 0;       ///< records that found the ring full or their owner dead
  uint64_t map_full = 0;        ///< updates that found no room
  uint64_t read_failed = 0;     ///< reads of memory that was not there
  uint64_t stacks_lost = 0;     ///< stacks that found no room among those kept
  uint64_t loops_cut = 0;       ///< loops that were ended before their bound
  double hit_ns = 0;            ///< what one costs; 0: unknown
  bool hit_ns_is_estimated = false;  ///< not measured on these hits
};

/// One place in code that a probe took or was refused: what `spile sites` prints.
struct SiteReport {
  pid_t pid = 0;         ///< 0: not of one process
  int probe = -1;        ///< index into Bundle::probes
  std::string location;  ///< "libc.so.6:fopen"
  uint64_t address = 0;
  std::string mechanism;  ///< "jump over 2 instructions", "entry nops", "kprobe [FTRACE]", ...
  std::string reason;     ///< why this one, or why refused
  bool refused = false;
  std::vector<uint8_t> before, after;  ///< code bytes
};

/// "libc.so.6:fopen at 0x7f...", without the address where none is known.
inline std::string place_of(const SiteReport& site) {
  if (site.address == 0) return site.location;
  return fmt::format("{} at {:#x}", site.location, site.address);
}

/// A record from the ring: header and fields. Bytes may come from a hostile target: check before
/// use.
using RecordSink = std::function<void(std::span<const uint8_t> record)>;

/// A running trace. Destroying it detaches. One thread uses it.
class Trace {
 public:
  virtual ~Trace() = default;

  /// Waits up to `timeout` for records and passes them on in time order. Returns how many came.
  virtual Result<size_t> poll(std::chrono::milliseconds timeout, const RecordSink& sink) = 0;
  /// True once every target is gone (never for system-wide traces).
  virtual bool targets_gone() = 0;

  virtual Result<std::vector<MapEntry>> read_map(int map) = 0;
  virtual Result<void> clear_map(int map) = 0;
  /// Sets every value to zero, keeps the keys.
  virtual Result<void> zero_map(int map) = 0;

  /// The addresses of one stack in a map of MapKind::kStacks, the innermost first. Errors: not
  /// found, corrupt (a target overwrote it).
  virtual Result<std::vector<uint64_t>> read_stack(int map, uint64_t id) = 0;

  /// Runs the program of a probe that nothing fires by itself (self, test, bench) and gives its
  /// result, in 32 bits. Errors:  unsupported  this engine cannot
  virtual Result<uint32_t> run_probe([[maybe_unused]] size_t probe) {
    return fail(ErrorCode::kUnsupported, "this engine runs no program by itself");
  }
  /// What a run of that program takes, in ns: the mean of many. Errors:  unsupported, denied
  virtual Result<double> measure_probe([[maybe_unused]] size_t probe) {
    return fail(ErrorCode::kUnsupported, "this engine does not measure programs");
  }
  /// Runs the END programs, once.
  virtual Result<void> run_end() = 0;
  /// Takes the probes out. Maps and records that are already there can still be read.
  virtual Result<void> detach() = 0;

  /// Switches probes (indices into Bundle::probes) off or on while they stay in place. A program
  /// that runs at that moment runs to its end. BEGIN and END take no notice.
  /// Errors:  unsupported  this engine cannot; nothing has changed
  virtual Result<void> switch_probes([[maybe_unused]] std::span<const int> probes,
                                     [[maybe_unused]] bool on) {
    return fail(ErrorCode::kUnsupported,
                "this engine cannot pause probes; the user engine can: give -p PID or -c COMMAND, "
                "and --engine user");
  }

  virtual Result<Stats> stats() = 0;
  /// The process that attach() started for Scope::command; 0: none. It is our child: whoever holds
  /// the Trace waits for it.
  virtual pid_t child() const { return 0; }
  /// What the user should know although nothing failed: probes refused, regions that had to stay.
  /// Emptied by the call.
  virtual std::vector<std::string> take_warnings() { return {}; }
  /// How long attaching held the target still, in ns; 0: not at all, or not known.
  virtual uint64_t stopped_ns() const { return 0; }
  virtual std::vector<SiteReport> sites() = 0;
  /// Of sites(), those that were refused: cheaper, where there are many sites.
  virtual std::vector<SiteReport> refusals() {
    auto all = sites();
    std::erase_if(all, [](const SiteReport& r) { return !r.refused; });
    return all;
  }
  /// Probes (indices into Bundle::probes) that are in place somewhere, of those in refusals().
  virtual std::set<int> placed_though_refused() {
    std::set<int> placed;
    for (const SiteReport& r : sites()) {
      if (!r.refused) placed.insert(r.probe);
    }
    return placed;
  }
};

class Engine {
 public:
  virtual ~Engine() = default;
  virtual std::string_view name() const = 0;
  /// Attaches every probe of the bundle or none; BEGIN programs have run when it returns. The
  /// bundle must outlive the trace: with many probes a copy costs as much as attaching them.
  virtual Result<std::unique_ptr<Trace>> attach(const bundle::Bundle& bundle,
                                                const Scope& scope) = 0;
  Result<std::unique_ptr<Trace>> attach(bundle::Bundle&& bundle, const Scope& scope) = delete;
};

}  // namespace spile::engine
