// Where output goes: a descriptor, written in large pieces.
#pragma once

#include <string>
#include <string_view>

#include "base/error.h"
#include "base/fd.h"

namespace spile::output {

enum class Buffering : uint8_t {
  kLine,  ///< handed on when a piece of output ends with a newline
  kFull,  ///< handed on when the buffer is full or flush() is called
  kNone,  ///< handed on at once
};

/// Writes to a descriptor. When nobody reads it any more (EPIPE) writing fails with target gone;
/// the process gets no SIGPIPE for it. Interrupted and partial writes go on; a full non-blocking
/// pipe is waited for.
class Sink {
 public:
  /// A descriptor that somebody else closes: standard output.
  Sink(int borrowed_fd, Buffering buffering) : fd_(borrowed_fd), buffering_(buffering) {}
  /// Makes or empties a file. Errors: not found, denied.
  static Result<Sink> create(const std::string& path, Buffering buffering);

  Result<void> write(std::string_view text);
  Result<void> flush();

 private:
  Sink(Fd fd, Buffering buffering)
      : owned_(std::move(fd)), fd_(owned_.get()), buffering_(buffering) {}

  Fd owned_;
  int fd_ = -1;
  Buffering buffering_ = Buffering::kLine;
  std::string pending_;
};

}  // namespace spile::output
