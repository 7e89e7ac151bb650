// The socket to a program that traces by the library: its request, then what it asks while the
// trace runs. The protocol is that of include/spile/detail/tracer_core.h; output/wire.h writes the
// other direction.
#pragma once

#include <optional>
#include <string>

#include "base/error.h"
#include "bundle/bundle.h"
#include "engine/engine.h"
#include "output/records.h"
#include "output/wire.h"
#include "session/request.h"

namespace spile::session {

class ProgramLink {
 public:
  struct Command {
    enum class Kind : uint8_t { kReadMap, kStop };
    Kind kind = Kind::kStop;
    std::string name;  ///< kReadMap
  };

  /// The socket stays the caller's.
  explicit ProgramLink(int socket) : socket_(socket) {}
  int socket() const { return socket_; }

  /// Waits for the request.
  /// Errors: target gone  the program has closed the socket
  ///         corrupt      not a request
  ///         unsupported  of another version of the library
  Result<TraceRequest> read_request();
  /// Empty: nothing has come. A program that has gone asks to stop.
  std::optional<Command> next();
  /// Does what has been asked until now. False: it is to stop. Errors: target gone  nobody reads
  /// what we say
  Result<bool> answer(const bundle::Bundle& bundle,
                      output::Records& records,
                      output::WireOutput& output,
                      engine::Trace& trace);

 private:
  Result<std::string> read_frame();
  std::optional<std::string> take_frame();
  bool receive(int flags);

  int socket_;
  std::string pending_;
  bool is_closed_ = false;
};

}  // namespace spile::session
