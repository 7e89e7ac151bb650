// Calls whose return will be seen at a `ret` that other functions share: which ones are under way.
//
// A tracked function's entry notes (stack slot of its return address, number of the function), and
// a `ret` that pops that very slot takes the note back. The table is private memory of the target:
// a fork copies it with the stacks that it speaks of. Only the target reads or writes it.
//
//   bucket   overflowed | key, return address | ... 7 cells, 128 bytes, two cache lines
//
// A note that nobody took back (its call ended by an exception, longjmp, the end of its thread)
// must not be taken for another call that comes to the same slot with the same return address. So a
// tail jump *arms* the notes of the calls that it may be part of, and the entry of the function
// that it leads to, which can be called too, keeps an armed note and drops any other.
//
// A cell belongs to the thread that runs on the stack of its slot; others only claim cells that are
// empty (key 0), and empty cells whose slot no longer holds the return address:
//
//   0 --claim--> key|kPendingWriting --> key --take--> 0
//                      ^                  |  ^
//                      |     others: marks|  |it was alive
//                      +--- key|kPendingDoubted ---> 0
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace spile::abi {

struct PendingCell {
  uint64_t key;             ///< slot << 17 | number, with a mark or none; 0: empty
  uint64_t return_address;  ///< what the slot held, kPendingArmed, and how often it was re-entered
};

inline constexpr uint32_t kPendingCells = 7;

struct PendingBucket {
  uint64_t overflowed;  ///< not 0: what belongs here may be in the bucket that follows
  uint64_t barren;      ///< searches for notes to throw away that found none, one after the other
  PendingCell cells[kPendingCells];
};
static_assert(sizeof(PendingBucket) == 128);

/// In PendingCell::return_address: the call is in a jump to another function. User addresses lie
/// below.
inline constexpr uint64_t kPendingArmed = uint64_t{1} << 63;

/// Above that, where a jump can lead a call back to its function's entry: how often it did. Each is
/// told at the return.
inline constexpr unsigned kPendingAgainShift = 48;
inline constexpr uint64_t kPendingAgain = uint64_t{1} << kPendingAgainShift;  ///< one time
inline constexpr uint64_t kPendingAddressMask = kPendingAgain - 1;

/// Room for 229,376 calls under way at once; pages are only used where calls are.
inline constexpr uint64_t kPendingBuckets = uint64_t{1} << 15;
inline constexpr uint64_t kPendingTableBytes = kPendingBuckets * sizeof(PendingBucket);
/// Buckets where one note may be.
inline constexpr uint32_t kPendingProbes = 4;
/// Numbers are 1 to this; the two bits above it are marks, the slot is above them.
inline constexpr uint32_t kMaxPendingNumber = 0x7fff;
inline constexpr uint64_t kPendingDoubted = 0x8000;   ///< another thread looks whether it is alive
inline constexpr uint64_t kPendingWriting = 0x10000;  ///< its return address is being stored
inline constexpr unsigned kPendingSlotShift = 17;
/// In the code region, one a tracked function that may leave through a pointer: the code whose
/// returns are watched. `count` ranges follow, ascending, not overlapping.
struct KnownCode {
  uint64_t count;
  struct Range {
    uint64_t begin, end;
  };
};

/// Slots lie below: the lower half of a 48-bit address space.
inline constexpr unsigned kPendingSlotBits = 47;
static_assert(kPendingSlotBits + kPendingSlotShift == 64);

}  // namespace spile::abi
