// SIGTRAP in a target: may we have it, taking it, giving it back, and what an adopter finds of it.
// Why and in which order: docs/design/0012-traps.md.
//
// The action is ours exactly if its handler lies in a code region of ours: the kernel is asked,
// nothing is written down. The action before ours is the default one, else it is not taken.
#pragma once

#include <optional>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "user_engine/target/process.h"
#include "user_engine/target/stopped.h"

namespace spile::user_engine {

/// Why an int3 in this process could kill it, in words that follow "an int3 ...: "; nullopt: it may
/// be set as far as can be seen. Reads /proc, some 20 us a thread; a thread that blocks SIGTRAP for
/// a moment only is waited for, some milliseconds.
std::optional<std::string> why_no_traps(const target::Target& target);

/// The same in a stop. Errors: busy, in the same words: what is so now may be over at the next try
Result<void> check_traps_possible(const target::StoppedProcess& process);

/// Makes the action in the trap page at `page` that of SIGTRAP. `scratch`: see give_back_sigtrap.
/// Errors:  busy  as check_traps_possible; a handler of the program runs with SIGTRAP blocked
///          those of injecting
Result<void> take_sigtrap(target::StoppedProcess& process, TargetAddr page, TargetAddr scratch);

/// Sets the default action if the action's handler lies in one of `code`. `scratch`: a page of the
/// target's that we may write to; asked for only where SIGTRAP has a handler at all.
/// Errors:  internal  there is no scratch page: nothing may be unmapped then
Result<void> give_back_sigtrap(target::StoppedProcess& process,
                               std::span<const target::AddressRange> code,
                               std::optional<TargetAddr> scratch);

/// Threads that have run into an int3 at one of `sites` and whose SIGTRAP is still to be delivered:
/// indices into process.threads(). They will come to the handler.
std::vector<size_t> threads_trapping(const target::StoppedProcess& process,
                                     const std::set<TargetAddr>& sites);

/// What the trap pages of a process list: sealed memory, so it is as it was written.
struct ListedTrap {
  TargetAddr site;
  uint8_t original = 0;  ///< the byte that was there
};
std::vector<ListedTrap> listed_traps(const target::Target& target,
                                     const std::vector<os::MapEntry>& maps);

/// Looks again and again whether traps are still served.
class TrapWatch {
 public:
  /// The reason why the int3s must go, once there is one. A thread must be seen blocking SIGTRAP
  /// twice: the C library does so for moments.
  std::optional<std::string> look(const target::Target& target);

 private:
  std::set<pid_t> blocking_;
};

}  // namespace spile::user_engine
