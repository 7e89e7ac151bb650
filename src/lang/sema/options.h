// What the user set beside the script, for sema and codegen.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <functional>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "bundle/bundle.h"

namespace spile::lang {

/// What a probe that names nothing is.
enum class MissingProbes : uint8_t {
  kAuto,  ///< an error, unless other probes of its clause are there: then a warning
  kError,
  kWarn,
  kIgnore,
};

/// Which probes of the script there are: those of tests and benchmarks are left out of a trace.
enum class RunMode : uint8_t { kTrace, kTest, kBench };

struct CompileOptions {
  RunMode mode = RunMode::kTrace;
  /// Bytes of a string, its NUL included, where the script says nothing shorter
  /// (BPFTRACE_MAX_STRLEN). Rounded up to 8.
  uint32_t max_strlen = 128;
  /// Keys a map can hold (BPFTRACE_MAX_MAP_KEYS). Maps of histograms hold four times as many
  /// buckets.
  uint32_t max_map_keys = 4096;
  /// Size of the ring for records; rounded up to a power of two of at least a page.
  uint32_t ring_bytes = 1u << 20;
  uint32_t max_cat_bytes = 10240;
  bool prints_maps = true;  ///< at the end
  bundle::StackMode stack_mode = bundle::StackMode::kBpftrace;
  MissingProbes missing_probes = MissingProbes::kAuto;
  /// Settings that the environment has decided: `config` does not change them.
  std::set<std::string> fixed;
  /// $1, $2, ...
  std::vector<std::string> positional;
  /// --name=value behind `--`: what getopt() finds. "" where no value was given.
  std::map<std::string, std::string> named;
  /// When not empty, programs of kprobe, kretprobe and tracepoint probes end at once in any other
  /// process. Uprobes are attached to processes instead.
  std::vector<pid_t> pid_filter;
  /// The command of -c, once it is there: cpid.
  pid_t child = 0;

  /// Bodies of loops become functions, which the kernel calls round by round: its verifier then
  /// looks at a body once, and not at each round. The user engine's programs jump back.
  bool calls_loops = false;
  /// With calls_loops: the kernel has what calls them. If not, a loop that needs it is an error.
  bool has_loop_calls = true;
  /// Where in the script a place is, for errorf(). Null: not known.
  std::function<bundle::ScriptPlace(uint32_t begin, uint32_t end)> locate;

  /// Functions that change what a traced program does are allowed (--unsafe).
  bool allow_unsafe = false;

  static constexpr uint32_t kMinStrlen = 8, kMaxStrlen = 4096;
};

/// max_strlen as it is used: within its limits, a multiple of 8.
constexpr uint32_t effective_strlen(const CompileOptions& options) {
  uint32_t n = options.max_strlen;
  if (n < CompileOptions::kMinStrlen) n = CompileOptions::kMinStrlen;
  if (n > CompileOptions::kMaxStrlen) n = CompileOptions::kMaxStrlen;
  return (n + 7) / 8 * 8;
}

}  // namespace spile::lang
