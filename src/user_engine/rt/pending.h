// Notes of calls under way, and taking them back at the return (abi/pending.h).
//
// Invariants
//   * No lock, no waiting: a bounded number of buckets is looked at. What finds no room is counted
//   as
//     missed, and its return is not reported.
//   * A key is written only by the thread whose stack the slot lies on, so a search by it sees
//   every
//     note that counts. A signal handler works with other slots. A forked child has its own copy.
//   * A note that nobody took back (an exception, longjmp, the end of a thread) is overwritten by
//   the
//     next call with the same slot, dropped where a called function begins (arrive_pending), and
//     taken only for the same return address. Where room is short, notes go whose slot no longer
//     holds their return address.
#pragma once

#include <stdint.h>

#include "abi/code_region.h"
#include "abi/data_region.h"
#include "abi/pending.h"
#include "user_engine/rt/atomics.h"
#include "user_engine/rt/safe_read.h"
#include "user_engine/rt/stats.h"

namespace spile::rt {

/// Attempts to claim a cell that others may claim first.
inline constexpr uint32_t kMaxPendingTries = 8;
/// A search for notes to throw away asks the kernel for each: where the last found none, only every
/// so many calls try again. A power of two.
inline constexpr uint64_t kReapEvery = 8;

inline uint64_t pending_key(uint64_t slot, uint64_t number) {
  return slot << abi::kPendingSlotShift | number;
}

/// Bucket `probe` of those where notes of a slot may be.
inline abi::PendingBucket* pending_bucket(const abi::RtConsts& consts,
                                          uint64_t slot,
                                          uint32_t probe) {
  const uint64_t hash = (slot >> 3) * 0x9e37'79b9'7f4a'7c15;
  const uint64_t index = (hash >> 40) + probe * (hash >> 20 | 1);
  return reinterpret_cast<abi::PendingBucket*>(consts.pending_table) +
         (index & (abi::kPendingBuckets - 1));
}

/// The word of a cell that is this note, doubted or not; 0 for any other.
inline uint64_t matching_word(const abi::PendingCell& cell, uint64_t key) {
  const uint64_t word = load_relaxed(&cell.key);
  return (word & ~abi::kPendingDoubted) == key ? word : 0;
}

/// A place for a note: the one it has, or the first empty one, or none.
struct PendingPlace {
  abi::PendingCell* cell;
  uint64_t word;  ///< what the cell held
};

inline PendingPlace find_pending_place(const abi::RtConsts& consts, uint64_t slot, uint64_t key) {
  abi::PendingCell* empty = nullptr;
  for (uint32_t probe = 0; probe < abi::kPendingProbes; ++probe) {
    abi::PendingBucket* bucket = pending_bucket(consts, slot, probe);
    for (abi::PendingCell& cell : bucket->cells) {
      if (const uint64_t word = matching_word(cell, key)) return {&cell, word};
      if (empty == nullptr && load_relaxed(&cell.key) == 0) empty = &cell;
    }
    if (load_relaxed(&bucket->overflowed) != 0) continue;
    if (empty != nullptr) break;
    // What does not fit here goes on to the next one, and whoever looks for it must know.
    store_relaxed(&bucket->overflowed, uint64_t{1});
  }
  return {empty, 0};
}

/// Whether the slot still holds what the note says.
inline bool is_alive(const abi::RtConsts& consts, const abi::PendingCell& cell, uint64_t slot) {
  uint64_t now = 0;
  return probe_read(consts, reinterpret_cast<uint8_t*>(&now), sizeof now, slot) == 0 &&
         now == (load_acquire(&cell.return_address) & abi::kPendingAddressMask);
}

/// Empties cells whose frame is gone, among those where this slot's notes may be. While a cell is
/// marked as doubted, its owner can still take it or write it anew: then our change fails.
inline bool reap_pending(const abi::RtConsts& consts, uint64_t slot) {
  uint64_t* barren = &pending_bucket(consts, slot, 0)->barren;
  const uint64_t before = load_relaxed(barren);
  store_relaxed(barren, before + 1);
  if (before % kReapEvery != 0) return false;
  bool freed = false;
  for (uint32_t probe = 0; probe < abi::kPendingProbes; ++probe) {
    for (abi::PendingCell& cell : pending_bucket(consts, slot, probe)->cells) {
      const uint64_t key = load_acquire(&cell.key);
      const bool settled = key != 0 && (key & (abi::kPendingWriting | abi::kPendingDoubted)) == 0;
      if (!settled || is_alive(consts, cell, key >> abi::kPendingSlotShift)) continue;
      const uint64_t doubted = key | abi::kPendingDoubted;
      if (!compare_swap(&cell.key, key, doubted)) continue;
      const bool alive = is_alive(consts, cell, key >> abi::kPendingSlotShift);
      freed |= compare_swap(&cell.key, doubted, alive ? key : uint64_t{0}) && !alive;
    }
  }
  if (freed) store_relaxed(barren, uint64_t{0});
  return freed;
}

/// At the entry of a tracked function: `slot` is the stack pointer, the return address is there.
inline void note_pending(const abi::RtConsts& consts, uint64_t slot, uint64_t number) {
  const uint64_t key = pending_key(slot, number);
  const bool fits = slot >> abi::kPendingSlotBits == 0;
  bool reaped = false;
  for (uint32_t tries = 0; fits && tries < kMaxPendingTries; ++tries) {
    const PendingPlace place = find_pending_place(consts, slot, key);
    if (place.cell == nullptr) {
      if (reaped || !reap_pending(consts, slot)) break;
      reaped = true;
      continue;
    }
    if (!compare_swap(&place.cell->key, place.word, key | abi::kPendingWriting)) continue;
    store_relaxed(&place.cell->return_address, *reinterpret_cast<const volatile uint64_t*>(slot));
    store_release(&place.cell->key, key);
    return;
  }
  count_one(&stats_here(consts)->missed);
}

/// The cell of a note; null if there is none.
inline abi::PendingCell* find_pending(const abi::RtConsts& consts, uint64_t slot, uint64_t number) {
  const uint64_t key = pending_key(slot, number);
  for (uint32_t probe = 0; probe < abi::kPendingProbes; ++probe) {
    abi::PendingBucket* bucket = pending_bucket(consts, slot, probe);
    for (abi::PendingCell& cell : bucket->cells) {
      if (matching_word(cell, key) != 0) return &cell;
    }
    if (load_relaxed(&bucket->overflowed) == 0) return nullptr;
  }
  return nullptr;
}

/// At the entry of a tracked function that a call may come back to by jumps: an armed note of the
/// same call counts one more return.
inline void note_again_pending(const abi::RtConsts& consts, uint64_t slot, uint64_t number) {
  abi::PendingCell* cell = find_pending(consts, slot, number);
  const uint64_t held = cell == nullptr ? 0 : load_relaxed(&cell->return_address);
  const bool same =
      (held & abi::kPendingAddressMask) == *reinterpret_cast<const volatile uint64_t*>(slot);
  const bool is_full = (held & ~abi::kPendingArmed) >> abi::kPendingAgainShift == 0x7fff;
  if ((held & abi::kPendingArmed) == 0 || !same) return note_pending(consts, slot, number);
  if (is_full) {
    store_relaxed(&cell->return_address, held & ~abi::kPendingArmed);
    return count_one(&stats_here(consts)->missed);
  }
  store_relaxed(&cell->return_address, (held & ~abi::kPendingArmed) + abi::kPendingAgain);
}

/// At a `ret`: whether it returns from a call that was noted. The note is gone afterwards, unless
/// it stands for more entries than one.
inline bool take_pending(const abi::RtConsts& consts, uint64_t slot, uint64_t number) {
  abi::PendingCell* cell = find_pending(consts, slot, number);
  if (cell == nullptr) return false;
  const uint64_t held = load_relaxed(&cell->return_address);
  const bool same =
      (held & abi::kPendingAddressMask) == *reinterpret_cast<const volatile uint64_t*>(slot);
  if (same && (held & ~abi::kPendingArmed) >> abi::kPendingAgainShift != 0) {
    store_relaxed(&cell->return_address, held - abi::kPendingAgain);
    return true;
  }
  store_release(&cell->key, uint64_t{0});
  return same;
}

/// At a jump out of a function: the call, if it was noted, goes on in another.
inline void arm_pending(const abi::RtConsts& consts, uint64_t slot, uint64_t number) {
  abi::PendingCell* cell = find_pending(consts, slot, number);
  if (cell == nullptr) return;
  store_relaxed(&cell->return_address, load_relaxed(&cell->return_address) | abi::kPendingArmed);
}

/// Whether the returns of the code at `target` are watched.
inline bool is_known_code(const abi::KnownCode* known, uint64_t target) {
  const auto* ranges = reinterpret_cast<const abi::KnownCode::Range*>(known + 1);
  uint64_t low = 0, high = known->count;
  while (low < high) {
    const uint64_t middle = low + (high - low) / 2;
    if (target < ranges[middle].begin) {
      high = middle;
    } else if (target >= ranges[middle].end) {
      low = middle + 1;
    } else {
      return true;
    }
  }
  return false;
}

/// Whether the returns behind `target` are watched by now for calls of this function. One that is
/// met first is noted for the tracer.
inline bool is_watched_stray(const abi::RtConsts& consts, uint64_t target, uint64_t number) {
  if (target >> abi::kStrayAddressBits != 0) return false;
  auto* cells = reinterpret_cast<abi::StrayCell*>(consts.data_base + abi::kStrayOffset);
  const uint64_t key = abi::stray_key(target, number);
  const uint32_t first = abi::stray_index(key);
  for (uint32_t probe = 0; probe < abi::kStrayProbes; ++probe) {
    abi::StrayCell* cell = &cells[(first + probe) & (abi::kStrayCells - 1)];
    if (load_acquire(&cell->key) == 0 && compare_swap(&cell->key, uint64_t{0}, key)) return false;
    if (load_acquire(&cell->key) != key) continue;
    const abi::StrayState state = load_acquire(&cell->state);
    if (state == abi::StrayState::kForgotten) store_release(&cell->state, abi::StrayState::kSeen);
    return state == abi::StrayState::kWatched;
  }
  return false;
}

/// At a jump through a pointer: the call, if it was noted, goes on at `target`, or where the word
/// at that address says. Where its return would not be seen it is counted, and its note dropped.
inline void leave_pending(const abi::RtConsts& consts,
                          uint64_t slot,
                          uint64_t number,
                          uint64_t target,
                          const abi::KnownCode* known,
                          bool is_address) {
  abi::PendingCell* cell = find_pending(consts, slot, number);
  if (cell == nullptr) return;
  uint64_t leads_to = target;
  const bool is_read = !is_address || probe_read(consts, reinterpret_cast<uint8_t*>(&leads_to),
                                                 sizeof leads_to, target) == 0;
  if (is_read && (is_known_code(known, leads_to) || is_watched_stray(consts, leads_to, number))) {
    store_relaxed(&cell->return_address, load_relaxed(&cell->return_address) | abi::kPendingArmed);
    return;
  }
  store_release(&cell->key, uint64_t{0});
  count_one(&stats_here(consts)->unseen_returns);
}

/// At the entry of such another function: a note that no jump has armed is that of a call which is
/// gone, since its slot is used anew.
inline void arrive_pending(const abi::RtConsts& consts, uint64_t slot, uint64_t number) {
  abi::PendingCell* cell = find_pending(consts, slot, number);
  if (cell == nullptr) return;
  const uint64_t held = load_relaxed(&cell->return_address);
  if ((held & abi::kPendingArmed) == 0) {
    store_release(&cell->key, uint64_t{0});
  } else {
    store_relaxed(&cell->return_address, held & ~abi::kPendingArmed);
  }
}

}  // namespace spile::rt
