// The code that serves an int3 of ours inside the target: SIGTRAP's handler and its table
// (abi/trap.h). Pure: sites in, bytes out.
//
//   int3 at a site -> the kernel pushes a frame, its rip is behind the int3 -> handler: rip := the
//   site's detour -> rt_sigreturn: all other registers, flags, vector state, signal mask come back
//
// The detour is thus entered with the state that a jump would have found. While the handler runs
// every signal is blocked: nothing interrupts it, and what arrives is delivered at the detour's
// first instruction.
//
// A trap that is not ours ends the process as it would have done without us (no traps are set
// where SIGTRAP has another action than the default): the action is set back and the same siginfo
// queued to the own thread, where it is pending until rt_sigreturn has put everything back.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/address.h"
#include "base/error.h"

namespace spile::jit {

struct TrapSite {
  TargetAddr site, detour;
  uint8_t original = 0;  ///< the byte under the int3, for whoever takes it out later
};

/// Size of the page, or pages, for so many sites: whole pages.
uint64_t trap_page_bytes(size_t sites);

/// The bytes of a trap page that will be mapped at `base`. Sites must differ.
/// Errors:  unsupported  more sites than the table may have
///          internal     those of the emitter
Result<std::vector<uint8_t>> make_trap_page(TargetAddr base, std::span<const TrapSite> sites);

}  // namespace spile::jit
