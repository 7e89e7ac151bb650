// Stacks of ours in the target, for hits where the target's own may have no room: functions of Go
// programs that have not checked theirs.
//
// The pool is private memory: a forked child has a copy, with a hit that is going on in it, and
// cannot write its parent's. Nothing in it is initialised: zero is free.
//
//   pool + 0 * kPrivateStackBytes    ... stack, growing down ... | PrivateStackControl
//        + 1 * kPrivateStackBytes    ... stack                   | PrivateStackControl
//        + kPrivateStacks * ...
//
// Written only by detours (jit/detour.h). A stack belongs to one hit:
//
//   free --lock bts--> taken, owner_sp 0 --> taken, owner_sp --> taken, owner_sp 0 --> free
//
// A hit that never ends (its thread was killed, a handler jumped out over it, its thread is not in
// the forked child) leaves its stack taken. Two hits never have the same stack pointer at the same
// time, so whoever finds a stack taken from where its own stack pointer is takes it over.
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace spile::abi {

/// At the top of each stack; the frames begin right below.
struct PrivateStackControl {
  uint64_t taken;  ///< bit 0
  /// The target's stack pointer at the probe, as long as the hit is on this stack; else 0.
  uint64_t owner_sp;
  uint64_t reserved[6];
};
static_assert(sizeof(PrivateStackControl) == 64);

/// Far more than a hit needs (kMaxHitStackBytes): a signal handler that was not given a stack of
/// its own runs here too. Only pages that are used take memory.
inline constexpr unsigned kPrivateStackShift = 15;
inline constexpr uint64_t kPrivateStackBytes = uint64_t{1} << kPrivateStackShift;
/// The search for a free one begins at the number of the CPU modulo kPrivateStackHints, and ends at
/// the last: so each has as many stacks behind its first one that it can take.
inline constexpr uint32_t kPrivateStacks = 256, kPrivateStackHints = 128;
inline constexpr uint64_t kPrivatePoolBytes = kPrivateStacks * kPrivateStackBytes;

/// Of the control block of the stack that the byte at this offset of the pool belongs to.
constexpr uint64_t private_control_offset(uint64_t offset) {
  return (offset | (kPrivateStackBytes - 1)) + 1 - sizeof(PrivateStackControl);
}

}  // namespace spile::abi
