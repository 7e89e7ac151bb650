// Ring operations of a producer: reserve, fill, commit. The layout and the life of a word are in
// abi/ring.h.
//
// Claiming is one compare-and-swap on the header word at the producer position; moving the position
// on is a second one that anybody can make who sees the claimed header. So a producer that stops
// for ever between any two steps (killed, or a handler jumped out) blocks no other producer; the
// consumer finds its record busy and judges by the owner's tid. A handler that interrupts a
// producer at any step just takes the next record.
#pragma once

#include <stdint.h>

#include "abi/code_region.h"
#include "abi/ring.h"
#include "user_engine/rt/atomics.h"
#include "user_engine/rt/cpu.h"
#include "user_engine/rt/identity.h"
#include "user_engine/rt/stats.h"

namespace spile::rt {

/// Attempts at claiming that may fail before the record is given up.
inline constexpr uint32_t kMaxClaims = 256;
/// Rings tried when this CPU's is full (a stuck record fills one).
inline constexpr uint32_t kMaxRingsTried = 2;

struct Ring {
  abi::RingHead* head;
  uint8_t* data;
  uint64_t size;  ///< bytes, a power of two
  uint64_t* word_at(uint64_t position) const {
    return reinterpret_cast<uint64_t*>(data + (position & (size - 1)));
  }
};

inline Ring ring_of(const abi::RtMap& map, uint32_t cpu) {
  auto* head = reinterpret_cast<abi::RingHead*>(map.rings + (cpu & map.cpu_mask) * map.ring_stride);
  return {head, reinterpret_cast<uint8_t*>(head + 1), map.ring_size};
}

/// Bytes that a record with this body takes.
inline uint64_t record_bytes(uint64_t body_bytes) {
  return abi::kRecordPrefixBytes + ((body_bytes + 7) & ~uint64_t{7});
}

enum class Claim { kClaimed, kAgain, kFull };

/// One attempt to claim `length` bytes at the producer position; `*position` is where, when
/// claimed.
inline Claim claim_once(const Ring& ring, uint64_t length, uint32_t tid, uint64_t* position) {
  const uint64_t at = load_acquire(&ring.head->producer_pos);
  const uint64_t limit = load_acquire(&ring.head->consumer_pos) + ring.size;
  if ((at & 7) != 0) return Claim::kFull;  // Hostile: ours are multiples of 8.
  const uint64_t room = ring.size - (at & (ring.size - 1));
  const bool pad = length > room;
  const uint64_t take = pad ? room : length;
  // Positions are compared by difference: `at` may already be behind a consumer that went on.
  if (static_cast<int64_t>(limit - (at + take)) < 0) return Claim::kFull;
  uint64_t* word = ring.word_at(at);
  const uint64_t seen = load_acquire(word);
  if (seen != at) {
    // Claimed by another: move on for it. If `seen` is of another lap the position is no longer
    // `at` and this fails.
    const uint64_t theirs = abi::record_length(seen);
    const bool claimed = abi::record_state(seen) != abi::RecordState::kFree;
    if (claimed && theirs != 0 && theirs <= room)
      compare_swap(&ring.head->producer_pos, at, at + theirs);
    return Claim::kAgain;
  }
  const auto state = pad ? abi::RecordState::kPadding : abi::RecordState::kBusy;
  if (!compare_swap(word, at, abi::record_header(state, take, pad ? 0 : tid))) return Claim::kAgain;
  compare_swap(&ring.head->producer_pos, at, at + take);
  *position = at;
  return pad ? Claim::kAgain : Claim::kClaimed;
}

/// Claims a record in this ring. Null: no room, or (counted) too many others claim.
inline uint64_t* claim_record(const abi::RtConsts& consts,
                              const Ring& ring,
                              uint64_t length,
                              uint32_t tid) {
  for (uint32_t i = 0; i < kMaxClaims; ++i) {
    uint64_t position;
    const Claim claim = claim_once(ring, length, tid, &position);
    if (claim == Claim::kClaimed) return ring.word_at(position);
    if (claim == Claim::kFull) return nullptr;
  }
  count_ring_contended(consts);
  return nullptr;
}

/// Room for a record's body, to be given to ring_submit or ring_discard. Null: full.
inline uint8_t* ring_reserve(const abi::RtConsts& consts,
                             const abi::RtMap& map,
                             uint64_t body_bytes) {
  if (map.kind != abi::RtMapKind::kRing || body_bytes > abi::kMaxRecordBytes) return nullptr;
  const uint64_t length = record_bytes(body_bytes);
  const uint32_t tid = tid_inside(consts);
  const uint32_t cpu = current_cpu(consts);
  const uint32_t rings = map.cpu_mask + 1 < kMaxRingsTried ? map.cpu_mask + 1 : kMaxRingsTried;
  for (uint32_t i = 0; i < rings; ++i) {
    uint64_t* record = claim_record(consts, ring_of(map, cpu + i), length, tid);
    if (record == nullptr) continue;
    // Read after the claim: whoever finds the word free at time T knows that its record will be
    // later than T.
    store_release(record + 1, read_tsc());
    return reinterpret_cast<uint8_t*>(record + 2);
  }
  return nullptr;
}

/// Ends a reserved record. A pointer that is not into the shared memory, or a record that is not
/// (or no longer) being written, is left alone.
inline void ring_finish(const abi::RtConsts& consts, uint8_t* body, abi::RecordState state) {
  const uint64_t address = reinterpret_cast<uint64_t>(body) - abi::kRecordPrefixBytes;
  if (address - consts.data_base >= consts.data_size || (address & 7) != 0) return;
  auto* word = reinterpret_cast<uint64_t*>(address);
  const uint64_t header = load_relaxed(word);
  // Abandoned for us: the consumer took us for dead.
  if (abi::record_state(header) != abi::RecordState::kBusy) return;
  store_release(word, (header & ~abi::kRecordStateMask) | static_cast<uint64_t>(state));
}

inline void ring_submit(const abi::RtConsts& consts, uint8_t* body) {
  ring_finish(consts, body, abi::RecordState::kCommitted);
}
inline void ring_discard(const abi::RtConsts& consts, uint8_t* body) {
  ring_finish(consts, body, abi::RecordState::kDiscarded);
}

/// Copies a whole record in. 0, or -errno as the kernel's ringbuf_output has them.
inline int64_t ring_output(const abi::RtConsts& consts,
                           const abi::RtMap& map,
                           const uint8_t* from,
                           uint64_t bytes) {
  constexpr int64_t kErrAgain = -11, kErrTooLong = -7;
  if (bytes > abi::kMaxRecordBytes) return kErrTooLong;
  uint8_t* body = ring_reserve(consts, map, bytes);
  if (body == nullptr) return kErrAgain;
  for (uint64_t i = 0; i < bytes; ++i) body[i] = from[i];
  ring_submit(consts, body);
  return 0;
}

}  // namespace spile::rt
