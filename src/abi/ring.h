// The layout of the ring buffers that carry records from the target to the tracer: one per CPU
// slot.
//
//   RingHead (192 bytes)                     data, ring_size bytes, right behind
//   +---------------+---------------+----+
//   +-----------------+------------+---------------+------------ | producer_pos  | consumer_pos  |
//   |  | header tsc body | header ... | free word ... |
//   +---------------+---------------+----+
//   +-----------------+------------+---------------+------------
//    line 0: producers  line 1: tracer
//
// A position is a count of bytes since the start; position P lives at data offset P % ring_size.
// Positions and lengths are multiples of 8, so the low three bits of a word at a record's start
// tell what it is:
//
//   free word       holds its own position P: 0 in the low bits. A producer claims it by
//   compare-and-swap from exactly
//                   P, so one that was asleep for a whole lap cannot claim a later lap's word by
//                   mistake.
//   record header   63            32 31                     3 2      0
//                  +----------------+------------------------+--------+
//                  |   owner's tid  | length in bytes / 8    | state  |
//                  +----------------+------------------------+--------+
//
// Positions start at kRingFirstPosition, a number that data hardly ever holds, so that a free word
// cannot be mistaken for a body word either.
//
// Life of a position: free(P) -> busy -> committed or discarded -> free(P + ring_size). The
// producer makes the first two steps, the consumer the last, for every word of the record, before
// it moves consumer_pos past it (release; the producer's load of consumer_pos acquires it).
// producer_pos may be moved on by anybody who sees the claimed header.
//
// A record never wraps: where it does not fit before the end, the rest is claimed as one padding
// record.
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace spile::abi {

struct RingHead {
  uint64_t producer_pos;  ///< written by producers
  uint64_t reserved[7];
  uint64_t consumer_pos;  ///< written by the tracer only; a hostile target that writes it breaks
                          ///< only its own trace
  uint64_t reserved2[7];
  uint64_t reserved3[8];
};
static_assert(sizeof(RingHead) == 192 && offsetof(RingHead, consumer_pos) == 64);

enum class RecordState : uint64_t {
  kFree = 0,
  kBusy = 1,       ///< claimed, being written
  kCommitted = 2,  ///< complete: written with release, the consumer's load acquires
  kDiscarded = 3,  ///< to be skipped
  kPadding = 4,    ///< to be skipped; complete from the start
};

inline constexpr uint64_t kRecordStateMask = 7;
inline constexpr uint64_t kRecordLengthMask = 0xffff'fff8;

/// Bytes in front of a record's body: header word, raw time-stamp counter.
inline constexpr uint64_t kRecordPrefixBytes = 16;
/// Longest body a program can reserve.
inline constexpr uint64_t kMaxRecordBytes = 32768;
/// Smallest ring of one CPU.
inline constexpr uint64_t kMinRingBytes = 65536;

inline constexpr uint64_t kRingFirstPosition = 0x5a17'c000'0000'0000;
static_assert(kRingFirstPosition % (uint64_t{1} << 30) == 0,
              "offset 0 is position 0 modulo every ring size");

constexpr uint64_t record_header(RecordState state, uint64_t length_bytes, uint32_t tid) {
  return uint64_t{tid} << 32 | (length_bytes & kRecordLengthMask) | static_cast<uint64_t>(state);
}
constexpr RecordState record_state(uint64_t header) {
  return static_cast<RecordState>(header & kRecordStateMask);
}
constexpr uint64_t record_length(uint64_t header) {
  return header & kRecordLengthMask;
}
constexpr uint32_t record_owner(uint64_t header) {
  return static_cast<uint32_t>(header >> 32);
}

}  // namespace spile::abi
