// The counters of static tracepoints (USDT) in one process: 1 more while we trace, as before
// afterwards.
//
// A program prepares the arguments of such a tracepoint, or comes near it at all, only while its
// 16-bit counter is not zero. Several tracers share a counter, each adds 1 and takes 1 away again.
// The counters lie in data of the target: each process has its own, a forked child a copy.
//
// Who undoes it must not do it twice. So the journal gets the values before and after ahead of each
// change (abi::SemaphoreState), and a process counts as raised only while one of our patches of
// that tracepoint is in its code: a library that was unloaded and loaded again starts with a fresh
// counter. Another tracer that changes the counter between our read and our write, while all
// threads are stopped, is not seen: the kernel and every other tracer have that gap, too.
#pragma once

#include <functional>
#include <optional>
#include <span>
#include <vector>

#include "abi/journal.h"
#include "base/address.h"
#include "base/error.h"
#include "os/memory.h"
#include "user_engine/target/process.h"

namespace spile::user_engine {

struct Semaphore {
  TargetAddr address;
  TargetAddr site;  ///< the first byte of one of our patches that goes with it
  abi::SemaphoreState state = abi::SemaphoreState::kListed;
  uint16_t before = 0, after = 0;

  bool operator==(const Semaphore&) const = default;
};

/// Errors:  unsupported  more than abi::kMaxSemaphores
///          corrupt      the place of one cannot be read: there is no such counter
Result<void> check_semaphores(std::span<const Semaphore> semaphores, const target::Target& target);

/// Writes checked ones into the journal, before anything changes, behind the `first` that it has.
void list_semaphores(std::span<const Semaphore> semaphores,
                     abi::Journal& journal,
                     uint32_t first = 0);

/// Adds 1 to each that the journal lists from `first` on, which is our own view of the target's.
/// Errors: those of os::ProcessMemory; unsupported, a counter that other tracers have raised to
/// 65,535.
Result<void> raise_semaphores(const os::ProcessMemory& memory,
                              abi::Journal& journal,
                              uint32_t first = 0);

/// What a counter of this state and value must become; nullopt: it is not (or no longer) raised by
/// us.
std::optional<uint16_t> lowered_value(const Semaphore& semaphore, uint16_t now);

/// Takes 1 away from each, in a stopped process. `is_patched` says whether the process holds our
/// bytes at a site. `journal`: the journal's address in the process. A counter that cannot be read
/// has gone with its library.
Result<void> lower_semaphores(const os::ProcessMemory& memory,
                              std::span<const Semaphore> semaphores,
                              std::optional<TargetAddr> journal,
                              const std::function<bool(TargetAddr)>& is_patched);

/// What a journal that others may have written says, as far as the modules' files agree: a note of
/// the file names that very counter.
std::vector<Semaphore> believed_semaphores(const target::Target& target,
                                           const abi::Journal& journal);

/// What our own journal says of them.
std::vector<Semaphore> listed_semaphores(const abi::Journal& journal);

}  // namespace spile::user_engine
