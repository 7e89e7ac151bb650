// For tests: compiles the programs of testdata/, runs one with pipes, and judges how it ended.
#pragma once

#include <sys/types.h>

#include <string>
#include <vector>

#include "base/error.h"
#include "base/fd.h"

namespace spile::target {

/// Compiles testdata/SOURCE once a run. Empty: the compiler is not there (a skip), or the source is
/// wrong (printed).
std::string build_program(const std::string& source, const std::string& compiler_and_flags);

/// A running target. Killed when it goes away.
class Program {
 public:
  /// `uid` != 0: runs as that user.
  static Program start(const std::vector<std::string>& command, uid_t uid = 0);
  Program(Program&&) = default;
  Program& operator=(Program&&) = default;
  ~Program();

  pid_t pid() const { return pid_; }
  /// Reads until the program has said "ready", then gives it time to fall asleep.
  bool ready();
  /// Writes the byte that the programs wait for, and waits for the end; what it printed since
  /// "ready", and then how it ended: "exit-success" is the one good answer.
  std::string finish();
  /// One letter of /proc/PID/stat.
  char state() const;
  /// Waits for that letter, as long as a crowded machine may take; what it is then.
  char state_after_waiting_for(char wanted) const;
  /// The bytes of its standard output that have arrived so far.
  std::string output_so_far();

 private:
  Program() = default;
  struct Owned {
    Owned() = default;
    Owned(Owned&& o) noexcept : pid(o.pid) { o.pid = 0; }
    Owned& operator=(Owned&& o) noexcept {
      std::swap(pid, o.pid);
      return *this;
    }
    pid_t pid = 0;
  };
  pid_t pid_ = 0;
  Owned owned_;
  Fd in_, out_;
};

/// On a crowded machine a thread may not come to run within the time of one stop; who attaches
/// comes again then, and so do tests.
template <typename Work>
auto while_busy(const Work& work) {
  auto done = work();
  for (int i = 0; i < 4 && !done && done.error().code == ErrorCode::kBusy; i++) done = work();
  return done;
}

}  // namespace spile::target
