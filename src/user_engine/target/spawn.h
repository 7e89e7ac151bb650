// `-c CMD`: starts a program and stops it when its libraries are mapped and none of its code has
// run.
//
// How: the child is seized before it calls exec, so it stops at the exec event. A static program is
// ready there. A dynamic one goes on to `_dl_debug_state` of its dynamic loader, on an int3 of
// ours: under glibc the second time, when r_state is RT_CONSISTENT (all libraries mapped and
// relocated, no constructor has run; IFUNC resolvers have); under musl the first. Until the int3 is
// out again PTRACE_O_EXITKILL ties the child's life to ours: it has not done anything yet that
// could be lost.
//
// Limits: a command that replaces itself (`env X=1 prog`, `sh -c 'exec prog'`, a script's `exec`)
// is stopped in its first program image, and probes go with that image. A script with `#!` is the
// kernel's own doing: the stop is in the interpreter. `ld.so prog` looks like a static program. A
// set-user-id program runs without its privilege while an unprivileged tracer is attached (kernel
// rule).
#pragma once

#include <sys/types.h>

#include <chrono>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/address.h"
#include "base/error.h"
#include "user_engine/target/process.h"
#include "user_engine/target/stopped.h"

namespace spile::target {

/// Splits like a shell: blanks separate, '...' and "..." and \ quote. No expansion of any kind.
/// Errors:  invalid   an open quote
Result<std::vector<std::string>> split_command(std::string_view text);

/// The file that PATH has for `name`; a name with a slash is itself.
/// Errors:  not found, denied (found but not executable)
Result<std::string> find_program(const std::string& name);

/// Where a dynamic loader tells debuggers about libraries, as addresses in its own file.
struct LoaderSymbols {
  LinkAddr debug_state;             ///< _dl_debug_state, _dl_debug_addr's notifier
  std::optional<LinkAddr> r_debug;  ///< _r_debug; musl has it elsewhere: leave empty
};
/// Given the loader's module in the new process. nullopt: not known, then the child is stopped at
/// its exec.
using FindLoaderSymbols = std::function<std::optional<LoaderSymbols>(const Module& loader)>;

enum class SpawnStop {
  kStatic,           ///< no loader: stopped before the first instruction
  kLibrariesMapped,  ///< stopped in _dl_debug_state, before constructors
  kLoaderUnknown,    ///< dynamic, but at the exec stop: libraries are not mapped yet
};

struct SpawnOptions {
  std::chrono::milliseconds timeout{10000};
};

/// A child of this process. It is killed with SIGKILL when the object goes away before release().
class Child {
 public:
  /// On a tracer thread. The terminal, standard descriptors, environment and process group are
  /// ours.
  static Result<Child> spawn(const std::vector<std::string>& command,
                             const FindLoaderSymbols& find_symbols,
                             const SpawnOptions& options = {});

  Child(Child&&) noexcept;
  Child& operator=(Child&&) noexcept;
  ~Child();

  pid_t pid() const { return pid_; }
  SpawnStop stop() const { return stop_; }
  const Target& target() const { return *target_; }
  /// The same, for whoever goes on with the child after this object; after release().
  std::unique_ptr<Target> take_target() { return std::move(target_); }

  /// The child as a stopped process; on the same tracer thread, once. EXITKILL is off afterwards.
  Result<StoppedProcess> take_stopped();

  /// From now on the child lives its own life.
  void release() { owned_ = false; }

 private:
  Child() = default;
  Result<void> start(const std::vector<std::string>& command, os::Deadline deadline);
  Result<void> run_to_exec(const Fd& exec_error, os::Deadline deadline);
  Result<void> run_to_libraries(const LoaderSymbols& symbols,
                                const Module& loader,
                                os::Deadline deadline);
  Result<void> run_to(TargetAddr address, os::Deadline deadline);
  Result<void> step(os::Deadline deadline);
  Result<void> rest(os::Deadline deadline);
  Result<os::Stop> next_stop(os::Deadline deadline);
  void kill_and_reap();

  pid_t pid_ = 0;
  SpawnStop stop_ = SpawnStop::kStatic;
  std::unique_ptr<Target> target_;
  bool owned_ = false;
};

/// How a child ended.
struct ExitStatus {
  bool signaled = false;
  int value = 0;  ///< exit status or signal number
  /// What a shell would report: status, or 128 + signal.
  int shell_status() const { return signaled ? 128 + value : value; }
};
/// Has the child ended? Reaps it. nullopt: still running.
Result<std::optional<ExitStatus>> poll_exit(pid_t child);
Result<ExitStatus> wait_exit(pid_t child);

}  // namespace spile::target
