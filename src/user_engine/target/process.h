// A target process: is it one we can work on, what is mapped where, which files are that.
//
// Nothing here stops the target or changes it. What a target says about itself (headers in its
// memory, names in its maps) is input from a stranger: bounded, checked, never trusted to be well
// formed.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <tuple>
#include <vector>

#include "base/address.h"
#include "base/error.h"
#include "base/fd.h"
#include "os/memory.h"
#include "os/process.h"

namespace spile::target {

/// A part of a module in the target's memory: one line of its maps.
struct Segment {
  TargetAddr start, end;
  bool read = false, write = false, exec = false;
  FileOffset offset;
};

/// A PT_LOAD of a module, as its headers in memory say.
struct LoadSegment {
  LinkAddr address;
  uint64_t file_size = 0, memory_size = 0;
  FileOffset offset;
  bool exec = false, write = false;
};

/// One loaded copy of an ELF file. The same file loaded twice (dlmopen) makes two modules.
struct Module {
  std::string path;  ///< as the target's maps name it; "[vdso]" for the vdso
  uint64_t device = 0, inode = 0;
  bool deleted = false;  ///< the file has been removed or replaced since
  bool main_program = false;
  bool vdso = false;
  TargetAddr start, end;  ///< all its segments lie in [start, end)
  LoadBias bias;
  std::vector<Segment> segments;
  std::vector<LoadSegment> loads;
  std::string build_id;   ///< lower-case hex, from memory; empty: it has none
  std::string host_path;  ///< opens the very same file from here; empty: no way to it
  /// Where the file is beyond reach (removed, and we may not use map_files): `host_path` is this file
  /// of ours, made of what the process has mapped (memory_image.h). It has no sections and no symbols
  /// but the dynamic ones, and other tools' patches look like the file's own code.
  std::shared_ptr<Fd> image;

  bool contains(TargetAddr a) const { return a >= start && a < end; }
  const Segment* segment_at(TargetAddr a) const;
};

/// Names the file of a mapping even where it has no path any more:
/// "/proc/42/map_files/7f00-7f01". Opening it takes CAP_SYS_ADMIN or CAP_CHECKPOINT_RESTORE.
std::string map_file_path(pid_t tid, TargetAddr start, TargetAddr end);

/// Where the text in memory is not what the file has: somebody patched it, or the file was
/// replaced.
struct TextDifference {
  TargetAddr start;
  std::vector<uint8_t> file, memory;  ///< same length
};

class Target {
 public:
  /// Opens a process for tracing.
  ///
  /// Errors:  not found     no such process; or the number is a thread of another process (named)
  ///          target gone   a zombie
  ///          unsupported   kernel thread, 32-bit or x32 program
  ///          denied        with the rule that forbids it: another user's process, dumpable off,
  ///          Yama, namespaces busy          already traced; the tracer is named
  static Result<Target> open(pid_t pid);
  /// The calling process, to be looked at: it cannot stop itself. Errors: as open().
  static Result<Target> open_self();

  pid_t pid() const { return pid_; }
  uint64_t start_time() const { return start_time_; }
  const std::string& name() const { return name_; }
  const os::ProcessMemory& memory() const { return memory_; }
  const Fd& pidfd() const { return pidfd_; }

  /// False once the process has ended or called exec: addresses found before mean nothing any more.
  bool alive() const;

  Result<std::vector<os::MapEntry>> maps() const;
  /// A thread that has memory: the leader, or another one where the leader has exited.
  Result<pid_t> live_thread() const;
  /// Every module that has memory has a `host_path`, be it an image.
  Result<std::vector<Module>> modules() const;
  /// The strictest seccomp mode of any thread: 0 none, 1 strict, 2 filter. Reads /proc, some 20 us
  /// a thread, so it is asked while the target runs: a thread may get stricter at any time, as it
  /// may after the stop.
  int seccomp_mode() const;

  /// Compares the executable segments with the file behind them. Not found when the file cannot be
  /// opened.
  Result<std::vector<TextDifference>> compare_text(const Module& module) const;

 private:
  Target() = default;
  static Result<Target> open_process(pid_t pid);
  pid_t pid_ = 0;
  uint64_t start_time_ = 0;
  std::string name_;
  Fd pidfd_;
  os::ProcessMemory memory_;
  /// Made at most once a module: by device, inode and start.
  mutable std::map<std::tuple<uint64_t, uint64_t, TargetAddr>, std::shared_ptr<Fd>> images_;
};

/// Groups mappings into modules: the headers in memory say which mappings belong together.
/// `pid` serves to find the files; 0: host_path stays empty.
std::vector<Module> find_modules(const std::vector<os::MapEntry>& maps,
                                 const os::ProcessMemory& memory,
                                 pid_t pid);

/// Why may we not trace this process? A sentence for the user.
std::string explain_denied(pid_t pid);

/// Mappings of ours, from now or left by an earlier tracer: memory files whose name starts with
/// kRegionPrefix.
inline constexpr std::string_view kRegionPrefix = "spile-";
std::vector<os::MapEntry> our_mappings(const std::vector<os::MapEntry>& maps);

/// Where to put a new mapping of `size_bytes`.
///
/// Every byte of it reaches every byte of `near` with a 32-bit displacement. Kept free: 64 KiB on
/// both sides, the GiB above the program break (else malloc fails: seen), the room below the main
/// stack. The highest place below `near` is preferred, then the lowest above. Errors:  unsupported
/// no such gap, or `near` itself is wider than 2 GiB
struct GapRules {
  uint64_t start_brk = 0;                ///< 0: no break known
  uint64_t stack_limit_bytes = 8 << 20;  ///< RLIMIT_STACK, soft
};
struct AddressRange {
  TargetAddr start, end;
  bool contains(TargetAddr a) const { return a >= start && a < end; }
  uint64_t size() const { return static_cast<uint64_t>(end - start); }
};
Result<TargetAddr> find_gap(const std::vector<os::MapEntry>& maps,
                            const GapRules& rules,
                            std::span<const AddressRange> near,
                            uint64_t size_bytes);
/// Reads the rules of a live target.
Result<GapRules> gap_rules(const Target& target);

}  // namespace spile::target
