// Does any thread still need these addresses?
//
// Registers are exact. Saved contexts (signal frames, return addresses, coroutines) are found by taking every aligned
// word of a thread's stack that points into the range: too many at worst, so a "no" is trustworthy for what lies on
// thread stacks and a "yes" may be a stale word. Contexts saved in the heap (ucontext, goroutines) are not seen here.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "base/address.h"
#include "base/error.h"
#include "user_engine/target/process.h"
#include "user_engine/target/stopped.h"

namespace spile::target {

/// A thread that is in, or will come back into, one of the ranges.
struct ThreadInside {
  enum class How {
    kRip,        ///< executes there
    kRestart,    ///< rip - 2 is inside: the kernel will step back to restart a system call
    kStackWord,  ///< a word on its stack points there
    kRseq,       ///< its open restartable sequence has its descriptor, code or abort address there
  };
  size_t thread = 0;     ///< index in StoppedProcess::threads()
  How how = How::kRip;
  TargetAddr address;    ///< the address inside the range
  TargetAddr location;   ///< kStackWord: where the word is
};

/// Threads that execute inside: rip, and rip - 2 where a system call will be restarted.
std::vector<ThreadInside> threads_at(const StoppedProcess& process, std::span<const AddressRange> ranges);

struct StackScan {
  std::vector<ThreadInside> found;
  /// Threads whose stack could not be scanned whole: it is larger than the limit, or rsp points to unmapped memory.
  std::vector<size_t> incomplete;
};

/// Words on thread stacks for which `points_there` says yes; scanned from rsp (less the red zone) to the end of the
/// mapping, at most `limit_bytes` each. The alternate signal stack of a thread that runs on it counts as its stack.
StackScan scan_stacks(const StoppedProcess& process, const std::function<bool(TargetAddr)>& points_there,
                      uint64_t limit_bytes = 8 << 20);
StackScan scan_stacks(const StoppedProcess& process, std::span<const AddressRange> ranges,
                      uint64_t limit_bytes = 8 << 20);

/// Clears rseq_cs in every thread where descriptor, code or abort address lies in one of the ranges. A thread whose
/// rip is inside such a sequence is moved to its abort address first, as the kernel would. Returns how many.
Result<size_t> clear_rseq_into(StoppedProcess& process, std::span<const AddressRange> ranges);

}  // namespace spile::target
