// What a user asked for, whoever parsed it.
#pragma once

#include <sys/types.h>

#include <map>
#include <optional>
#include <string>
#include <vector>

namespace spile::session {

enum class EngineChoice : uint8_t { kAuto, kKernel, kUser };
enum class Format : uint8_t { kText, kJson };
/// What a script is run for: --test, --bench.
enum class Purpose : uint8_t { kTrace, kTest, kBench };

/// A script and what it needs to be compiled.
struct Script {
  std::string name =
      "stdin";  ///< what diagnostics print; a file's path, or "stdin" for -e as bpftrace has it
  std::string text;
  std::vector<std::string> positional;       ///< $1, $2, ...
  std::map<std::string, std::string> named;  ///< --name=value behind `--`: getopt()
};

/// Where to trace.
struct TargetRequest {
  std::vector<pid_t> pids;  ///< -p, several times
  std::string command;      ///< -c; empty: none
  EngineChoice engine = EngineChoice::kAuto;
  bool allow_trap = false;       ///< --allow-trap: an int3 where no jump fits
  bool only_traps = false;       ///< SPILE_ONLY_TRAPS, for tests: an int3 everywhere
  std::string attach = "auto";   ///< --attach: the kernel engine's way to its probes
  std::string records = "auto";  ///< --records: how its records come
};

class ProgramLink;

struct TraceRequest {
  Script script;
  TargetRequest target;
  Format format = Format::kText;
  Purpose purpose = Purpose::kTrace;
  std::string output_path;         ///< -o; empty: stdout
  bool allow_unsafe = false;       ///< --unsafe: functions that change what the target does
  bool quiet = false;              ///< no "Attached N probes"
  bool verbose = false;            ///< sites, figures at the end
  bool paused = false;             ///< --paused: probes are in place, and off until SIGUSR2
  bool line_buffered = true;       ///< -B line (default), full, none
  ProgramLink* program = nullptr;  ///< who asks by the library; null: a person
};

/// The exit status of spile itself.
enum ExitStatus : int {
  kOk = 0,
  kFailed = 1,  ///< wrong script, refused, no permission
  kUsage = 2,
};

}  // namespace spile::session
