// Changing the program's own code while its other threads run.
//
// One byte needs nobody's help: a processor fetches the old one or the new one. For more, every
// thread must stand still, and none in the middle of what changes. A program cannot stop its own
// threads safely (it would need a signal handler in each, and a lock that one of them may hold); a
// tracer can. Nearly always a child in our own memory does that (short_stop.h). For whatever is
// unusual a helper process is started: it holds the threads by ptrace with the user engine's own
// code for stopping (target/stopped.h), looks, writes, and is gone.
//
//   program   request in shared memory -> start helper -> wait for its end
//   helper    stop all threads; is any inside? are the bytes as expected? write; let go
//
// The helper is a program of its own, carried inside the library and run from memory: after fork()
// a copy of a program with threads could not even allocate. It is started without SIGCHLD, so that
// the program's own wait() never sees it. Killed at any moment, it leaves each edit done or not
// done; it may be asked again, since what is done already is accepted.
#pragma once

#include <array>
#include <cstdint>
#include <span>

#include "base/address.h"
#include "base/error.h"

namespace spile::api {

inline constexpr size_t kMaxEditBytes = 8;

struct Edit {
  TargetAddr at;
  uint8_t size = 0;  ///< 1..kMaxEditBytes, in one page
  /// What is there is one instruction: nobody can be in the middle of it.
  bool is_one_instruction = false;
  std::array<uint8_t, kMaxEditBytes> before{}, after{};
};

/// Makes all edits or none (a helper that is killed excepted; then the error is kInternal).
///
/// Errors:  busy         a thread stays inside; a debugger holds the process
///          unsafe       the bytes are neither `before` nor `after`
///          denied       ptrace of oneself is forbidden: Yama, dumpable, seccomp
///          internal     the helper ended without an answer
/// Cost: some 10 us for a program with one thread, some 30 us and 10 us for each thread otherwise;
/// milliseconds where the helper is needed.
Result<void> poke(std::span<const Edit> edits);

// ---- what program and helper share ----

inline constexpr int kRequestDescriptor = 3;
inline constexpr size_t kMaxMessageBytes = 480;
struct PokeRequest {
  int32_t pid = 0;
  uint32_t count = 0;
  int32_t answer = kNoAnswer;  ///< written last: 0, or 1 + ErrorCode
  int32_t reserved = 0;
  char message[kMaxMessageBytes] = {};
  // Edit[count] follows.

  static constexpr int32_t kNoAnswer = -1;
};
static_assert(sizeof(PokeRequest) % alignof(Edit) == 0);

}  // namespace spile::api
