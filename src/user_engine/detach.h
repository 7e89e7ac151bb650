// How probes leave a process: bytes back, threads out, mappings gone. For our own attachments and
// for what others left.
//
//   1 stop every thread
//   2 put the original bytes back, but only where our jump is: what somebody else wrote meanwhile
//   stays 3 move threads out of the displaced copies; a thread inside a program is let go and asked
//   again a moment later 4 when no thread is in the code and none will come back to it (signal
//   frames), unmap; the journal goes last
//
// Children that the process forked while traced have the same jumps in memory of their own and the
// same shared regions: each is treated alike. A tracer killed between any two steps leaves a
// process that runs on; the next call goes on.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "user_engine/attachment.h"
#include "user_engine/target/stopped.h"

namespace spile::user_engine {

struct DetachReport {
  size_t restored = 0;      ///< sites, over all processes
  size_t processes = 0;     ///< processes that were cleaned: the target and its forked children
  uint64_t stopped_ns = 0;  ///< the longest stop
  std::vector<std::string>
      notes;  ///< sites left to somebody else, regions that had to stay: for the user
};

/// Takes our probes out. A process that has ended, or called exec, has none: that is a success.
/// `while_waiting` runs every few milliseconds where a stop has to be tried again: the process goes
/// on hitting probes.
Result<DetachReport> detach(Attachment& attachment,
                            const std::function<void()>& while_waiting = {});

/// Processes forked while traced, that run on with the probes in them.
std::vector<pid_t> forked_children(const Attachment& attachment);

/// Puts back the bytes under int3s, in a stop, also in forked children; jumps and all mappings
/// stay, threads in a detour too. Returns how many. Errors: busy, ask again; those of stopping and
/// writing.
Result<size_t> take_traps_out(const Attachment& attachment);

/// Takes out an attach that failed halfway, in the same stop: no thread has run since the mappings
/// were made.
Result<void> undo_in_stop(target::StoppedProcess& process,
                          const std::vector<PatchedSite>& sites,
                          const std::vector<Semaphore>& semaphores,
                          const std::vector<RegionRange>& ranges);

/// Takes out an attach that failed after the process had run with some of its jumps.
Result<void> undo_running(const target::Target& target,
                          const std::vector<PatchedSite>& sites,
                          const std::vector<Semaphore>& semaphores,
                          const std::vector<RegionRange>& ranges,
                          const std::vector<os::MapEntry>& mappings);

/// Takes out what the journal in the process says, and stray mappings and stub bytes. A process
/// without any: restored 0. What belongs to a spile that lives is never touched: that is looked at
/// again in every stop. Errors: busy     a living spile holds the process (named)
///         corrupt  there are jumps into our code but no journal to undo them by; nothing was
///         unmapped
Result<DetachReport> detach_leftovers(pid_t pid);

/// The pid of the spile that traces the process and still lives. Between make and journal of a
/// region a tracer holds the process stopped: asked in a stop of one's own the answer is certain.
Result<std::optional<pid_t>> live_owner(const target::Target& target);
/// Errors: busy, naming the spile that traces the process
Result<void> refuse_live_owner(const target::Target& target);

/// The sites that the journal in a process lists, as `spile sites -p PID` shows them.
Result<std::vector<engine::SiteReport>> journal_sites(pid_t pid);

}  // namespace spile::user_engine
