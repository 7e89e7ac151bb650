// The layout of maps: descriptors in the read-only code region, storage in the shared data region.
//
//   RtMap (code region, read-only)              storage (data region, read-write)
//   +------------------------------+
//   | kind, sizes, masks, limits   |  values -> [cpu 0: value 0, value 1, ...][cpu 1: ...]...   all
//   kinds but rings | addresses of the storage     |  heads  -> HashHead, then bucket words hashes
//   +------------------------------+  entries-> [link, hash, key][link, hash, key]... hashes
//
// Everything that bounds an access comes from the descriptor, so that whatever the shared memory
// holds, an access stays inside the map's storage. A zeroed storage is an empty map.
//
// Values lie CPU by CPU (not entry by entry): no two CPUs share a cache line and nothing is wasted
// on padding.
//   address of a value = values + cpu * per_cpu_stride + index * value_stride
// Maps that are not per-CPU have cpu_mask = 0 and per_cpu_stride = 0, so the same formula holds.
//
// Hash maps are chained. A chain is a lock-free list (Harris 2001, Michael 2002) of entry numbers
// instead of pointers; new entries come in at the bucket word only. A link word holds:
//
//    63            33   32   31               0
//   +----------------+------+------------------+
//   |   generation   | mark |  entry number + 1|     0 in the low half: end of the chain
//   +----------------+------+------------------+
//
//   in an entry:      generation of this entry (+1 each time it is given back); the mark says that
//                     this entry is deleted and its link frozen
//   in a bucket word: +1 at every change, never marked
//   in free_head:     +1 at every change; free entries are chained through their links
//
// Maps of calls are small open tables: a cell of values is a CallHead and then value_size bytes. A
// call's cell is one of the kCallCells from its hash on; rt/call_ops.h says which.
//
// Stack maps keep call stacks by their hash, for good: a slot of values is a StackHead and then
// value_size bytes of addresses. The slot of a stack is the first from `id & bucket_mask` on that
// holds its id or is free (0). rt/stack_ops.h says how slots are filled.
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace spile::abi {

/// Same order as bundle::MapKind.
enum class RtMapKind : uint32_t {
  kHash,
  kArray,
  kPerCpuHash,
  kPerCpuArray,
  kRing,
  kStacks,
  kCalls
};

/// What a program's map pointer points to. Addresses are those of the address space the descriptor
/// is used in: the target's in the code region, the tracer's in the tracer's private copy.
struct RtMap {
  RtMapKind kind;
  uint32_t key_size;        ///< bytes
  uint32_t value_size;      ///< bytes, of one CPU
  uint32_t max_entries;     ///< arrays: indices; hashes: keys. Rings: 0
  uint32_t value_stride;    ///< value_size rounded up to 8; stacks, calls: with their head
  uint32_t cpu_mask;        ///< per-CPU maps and rings: slots - 1 (a power of two); else 0
  uint64_t values;          ///< address of value 0 of CPU 0
  uint64_t per_cpu_stride;  ///< bytes from one CPU's values to the next's, multiple of 64; 0 when
                            ///< not per-CPU

  // Hashes.
  uint64_t heads;         ///< address of the HashHead; the bucket words follow it
  uint64_t entries;       ///< address of entry 0
  uint32_t entry_stride;  ///< sizeof(HashEntry) + key_size rounded up to 8
  uint32_t bucket_mask;   ///< buckets - 1 (a power of two); stacks, calls: slots - 1
  uint64_t seed;          ///< of the hash function, random per map

  // Rings: see ring.h.
  uint64_t rings;        ///< address of CPU 0's RingHead
  uint64_t ring_stride;  ///< bytes from one CPU's RingHead to the next's
  uint32_t ring_size;    ///< bytes of one CPU's data, a power of two
  uint32_t capacity;     ///< hashes: entries there is room for, max_entries + kSpareEntries; else 0
  uint64_t reserved2[4];
};
static_assert(sizeof(RtMap) == 128);

/// Front of a hash map's storage. Written by target and tracer.
struct HashHead {
  uint64_t free_head;  ///< link word: entries given back
  uint32_t bump;       ///< entries [bump, capacity) were never used
  uint32_t live;       ///< keys; a killed thread may leave it one too high or too low
  uint64_t reserved2[6];
};
static_assert(sizeof(HashHead) == 64);

/// Front of an entry; the key follows, padded with zeroes to a multiple of 8. Written by target and
/// tracer.
struct HashEntry {
  uint64_t link;
  uint64_t hash;
};
static_assert(sizeof(HashEntry) == 16);

/// Front of a slot of a stack map; the addresses follow, the innermost first. Written by the
/// target.
struct StackHead {
  uint64_t id;     ///< hash of the addresses, never 0; 0: the slot is free
  uint64_t count;  ///< addresses; 0 until they are all there
};
static_assert(sizeof(StackHead) == 16);

/// Front of a cell of a map of calls. Written by the target.
struct CallHead {
  uint64_t slot;  ///< 0: the cell is free
  uint64_t call;  ///< which call at that slot; 0: the cell is being taken
};
static_assert(sizeof(CallHead) == 16);

/// Cells where one call may be.
inline constexpr uint32_t kCallCells = 16;

/// As deep as the kernel looks (kernel.perf_event_max_stack as it comes).
inline constexpr uint32_t kMaxStackFrames = 127;

/// Entries beyond max_entries, for threads that are about to insert: one that is preempted with an
/// entry in its hands must not make the map look full to others.
inline constexpr uint32_t kSpareEntries = 32;

inline constexpr uint64_t kLinkIndexMask = 0xffff'ffff;
inline constexpr uint64_t kLinkMark = uint64_t{1} << 32;
inline constexpr uint64_t kLinkGeneration = uint64_t{1} << 33;  ///< one unit

/// Limits that make every size computation fit; shm refuses larger maps in words.
inline constexpr uint32_t kMaxKeyBytes = 4096;
inline constexpr uint32_t kMaxValueBytes = 65536;
inline constexpr uint32_t kMaxMapEntries = 1u << 24;

}  // namespace spile::abi
