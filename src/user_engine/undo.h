// What is to be undone in a process, and the doing: bytes back, threads out, mappings gone. Used
// for our own attachments (detach.cc) and for what others left (adopt.cc).
#pragma once

#include <chrono>
#include <functional>
#include <optional>
#include <set>
#include <vector>

#include "user_engine/detach.h"
#include "user_engine/forked.h"
#include "user_engine/patch/placement.h"
#include "user_engine/semaphores.h"
#include "user_engine/target/process.h"
#include "user_engine/target/stopped.h"
#include "x86/relocate.h"

namespace spile::user_engine {

/// Bytes of ours and what was there before.
struct PatchedBytes {
  TargetAddr address;
  patch::EditBytes original, patched;
  uint8_t level = 0;  ///< higher levels are undone first
  /// False: a place that a site's jump leads over. A thread may be there, between two jumps.
  bool is_site = true;
  /// Of the file that they belong to, as maps show it; 0: not known. Where another is mapped, or
  /// none, the library has gone and our bytes with it.
  uint64_t inode = 0;
};

/// What is to be undone in one process. The same for its forked children.
struct Job {
  std::vector<PatchedBytes> patches;  ///< see sort()
  /// Lowered before the patches go: as long as those are there, somebody knows that it is due.
  std::vector<Semaphore> semaphores;
  /// Code that a thread is moved out of. Empty for an adopter: threads in a copy are waited for.
  std::vector<const x86::RelocatedCode*> displaced;
  std::vector<target::AddressRange> code;   ///< where a thread may be
  std::vector<target::AddressRange> unmap;  ///< in this order: the journal's own region last
  target::AddressRange stacks;              ///< the private stacks; empty: none
  std::optional<TargetAddr> journal;        ///< its address in the target
  /// Where an int3 of ours is or was: a thread may have run into it and not be in `code` yet.
  std::set<TargetAddr> traps;
  std::optional<TargetAddr> scratch;  ///< a page of ours that may be written to
  uint64_t tracer_start_time = 0;     ///< clock ticks since boot; 0: not known
  bool adopted = false;               ///< left by another tracer
  /// May a forked child be undone by `patches`? For an adopter, who has only what holds up in the
  /// process that he was asked about. Empty: yes.
  std::function<Result<void>(const target::Target&)> check_child;
  /// Our memory files in the process: a forked child has exactly these.
  std::vector<os::MapEntry> mappings;
  /// Those that came with libraries loaded later (target::kLateCodeName): children forked before
  /// have none of them, and may have something of their own there.
  std::vector<os::MapEntry> late;

  /// Runs now and then where a stop has to be tried again. May be empty.
  std::function<void()> while_waiting;

  /// Into the order of undoing: by level, highest first, then by address.
  void sort();
};

/// Stops of a process until a tracer's stops have let all threads leave our code.
inline constexpr int kStops = 60;

/// How long a process runs before the next stop, after one that came to nothing and took `held`
/// nanoseconds: ten times as long, since that may have been spent with threads held still. Not
/// longer than a while that somebody who ends a trace waits for: on a machine that stood still
/// `held` says little.
std::chrono::nanoseconds rest_after_vain_stop(std::chrono::nanoseconds held);

/// Where the direct jump at `at` leads, as memory has it now: prefixes that change nothing may
/// stand before it. nullopt: no such jump.
std::optional<TargetAddr> jump_target(const target::Target& target, TargetAddr at);

bool in_any(const std::vector<target::AddressRange>& ranges, TargetAddr a);

/// Undoes the job in a stopped process in which no thread has run since it was patched.
Result<void> undo_in_stop(target::StoppedProcess& process, const Job& job);

/// Undoes the job in a process and in every process that it forked meanwhile, until no new one
/// turns up.
Result<DetachReport> undo_everywhere(const target::Target& target, const Job& job);

}  // namespace spile::user_engine
