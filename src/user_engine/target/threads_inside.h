// Does any thread still need these addresses?
//
// Registers are exact. Contexts that a signal interrupted are found by walking the signal frames
// from them (live_contexts.cc says how they are recognised).
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

/// A thread that is in one of the ranges.
struct ThreadInside {
  enum class How {
    kRip,      ///< executes there
    kRestart,  ///< rip - 2 is inside: the kernel will step back to restart a system call
  };
  size_t thread = 0;  ///< index in StoppedProcess::threads()
  How how = How::kRip;
  TargetAddr address;  ///< the address inside the range
};

/// Threads that execute inside: rip, and rip - 2 where a system call will be restarted.
std::vector<ThreadInside> threads_at(const StoppedProcess& process,
                                     std::span<const AddressRange> ranges);

/// A context that a signal interrupted, and which runs on when the handler returns.
struct LiveContext {
  size_t thread = 0;    ///< index in StoppedProcess::threads()
  TargetAddr rip;       ///< where it will run on
  TargetAddr location;  ///< where that is saved: in the signal frame, whose eflags and cs follow
};
struct LiveContexts {
  std::vector<LiveContext> found;
  /// Threads whose stack could not be searched whole: rsp points to unmapped memory, more than 64
  /// MiB of it are in use, or it is full of what looks like signal frames. Nothing is known of
  /// these.
  std::vector<size_t> incomplete;
};

/// The saved rips that will come back and for which `points_there` says yes.
///
/// Found by the chain of signal frames: from each thread's rsp up its stack, then from the rsp
/// saved in each frame, so also where handlers on alternate stacks interrupted each other. Frames
/// on stacks that no thread is on do not count, nor do those of a handler that has returned, unless
/// their bytes lie untouched above rsp in a stack in use.
///
/// Not seen: - a handler that has left its stack (swapcontext out of a handler, split stacks), and
/// what it interrupted;
///           - contexts that no signal saved (getcontext, setjmp, goroutines): they are return
///           addresses, and code that
///             we displace calls nothing;
///           - frames more than 8 MiB above rsp (256 KiB in threads without a libc, as Go's) on a
///           stack that the
///             program made itself: where it ends is not known, and such mappings may be heaps of
///             many GiB.
/// Cost: some 0.2 ms a MiB of stack in use; memory that several threads' stacks share is read once.
///
/// `private_stacks`: our pool of them (abi/private_stack.h); empty: none. A thread whose stack
/// pointer is in there has the rest of its frames on the stack that it came from.
LiveContexts live_contexts(const StoppedProcess& process,
                           const std::function<bool(TargetAddr)>& points_there,
                           AddressRange private_stacks = {});
LiveContexts live_contexts(const StoppedProcess& process,
                           std::span<const AddressRange> ranges,
                           AddressRange private_stacks = {});

/// Clears rseq_cs in every thread where descriptor, code or abort address lies in one of the
/// ranges. A thread whose rip is inside such a sequence is moved to its abort address first, as the
/// kernel would. Returns how many.
Result<size_t> clear_rseq_into(StoppedProcess& process, std::span<const AddressRange> ranges);

}  // namespace spile::target
