// Map operations, the same code in the target's blob and in the tracer.
//
// Invariants
//   * No lock, no waiting: an operation that others keep disturbing gives up after a stated number
//   of steps, says
//     -EBUSY and counts it. Any step may be the last of a killed thread, or be interrupted by a
//     handler that does the same operation: what it leaves is a map that works. The worst case is
//     one entry lost per killed thread.
//   * Whatever the shared memory holds, accesses stay in the map's storage: entry numbers are
//   checked against the
//     descriptor, loops are bounded.
//   * A key occurs once: entries come in at the bucket word only, by compare-and-swap from the very
//   word from which the
//     search for the key began.
//
// How a walk knows that the entry in its hands still belongs to its chain: after reading the entry
// it reads the link that led there again. A link word never comes back to an earlier value while
// its owner lives (bucket words carry a version; what follows an entry in its chain is always older
// than the entry), so an unchanged link means that the entry was in the chain all the time in
// between, and its key was not being rewritten.
//
// As in the kernel's preallocated hash maps, a value pointer stays valid memory for ever, but if
// another thread deletes the key meanwhile and inserts a new one, the pointer may have become the
// new key's value. Values of up to 8 bytes are never torn; longer ones may be seen half-written
// while another thread updates the same key.
#pragma once

#include <stdint.h>

#include "abi/code_region.h"
#include "abi/map.h"
#include "user_engine/rt/atomics.h"
#include "user_engine/rt/call_ops.h"
#include "user_engine/rt/cpu.h"
#include "user_engine/rt/stats.h"
#include "user_engine/rt/wide.h"

namespace spile::rt {

// Results of map operations: the kernel's -errno.
inline constexpr int64_t kErrNoEntry = -2, kErrTooBig = -7, kErrBusy = -16, kErrExists = -17,
                         kErrInvalid = -22;
// Flags of update, as bpf(2) has them.
inline constexpr uint64_t kFlagAny = 0, kFlagNoExist = 1, kFlagExist = 2;

/// Entries one operation may look at, and attempts to change something that may fail, before it
/// gives up.
inline constexpr uint32_t kMaxSteps = 4096;
inline constexpr uint32_t kMaxTries = 256;

inline bool is_hash(const abi::RtMap& map) {
  return map.kind == abi::RtMapKind::kHash || map.kind == abi::RtMapKind::kPerCpuHash;
}
inline bool is_array(const abi::RtMap& map) {
  return map.kind == abi::RtMapKind::kArray || map.kind == abi::RtMapKind::kPerCpuArray;
}

// ---- values
// -------------------------------------------------------------------------------------------------------

/// Value `index` (below max_entries, or capacity in a hash) of one CPU slot; cpu_mask keeps it
/// inside.
inline uint64_t* value_of(const abi::RtMap& map, uint32_t index, uint32_t cpu) {
  return reinterpret_cast<uint64_t*>(map.values + (cpu & map.cpu_mask) * map.per_cpu_stride +
                                     uint64_t{index} * map.value_stride);
}

/// Word by word, so that a reader of a value of up to 8 bytes sees the old or the new one.
inline void store_value(const abi::RtMap& map, uint64_t* to, const uint8_t* from) {
  uint32_t left = map.value_size;
  for (; left >= 8; left -= 8, from += 8, ++to) store_relaxed(to, read_unaligned(from, 8));
  if (left != 0) store_relaxed(to, read_unaligned(from, left));
}

inline void zero_value(const abi::RtMap& map, uint64_t* to) {
  for (uint32_t i = 0; i < map.value_stride / 8; ++i) store_relaxed(to + i, uint64_t{0});
}

// ---- hash: words, entries
// ----------------------------------------------------------------------------------------

inline uint64_t link_index(uint64_t link) {
  return link & abi::kLinkIndexMask;
}
inline bool link_marked(uint64_t link) {
  return (link & abi::kLinkMark) != 0;
}
/// `link` with another follower, the same generation and no mark.
inline uint64_t link_to(uint64_t link, uint64_t index) {
  return (link & ~(abi::kLinkIndexMask | abi::kLinkMark)) | index;
}
inline uint64_t next_generation(uint64_t link) {
  return link + abi::kLinkGeneration;
}

inline abi::HashHead* head_of(const abi::RtMap& map) {
  return reinterpret_cast<abi::HashHead*>(map.heads);
}
inline uint64_t* bucket_of(const abi::RtMap& map, uint64_t hash) {
  auto* buckets = reinterpret_cast<uint64_t*>(map.heads + sizeof(abi::HashHead));
  return buckets + (static_cast<uint32_t>(hash) & map.bucket_mask);
}
/// `index` counts from 0 and is below capacity.
inline abi::HashEntry* entry_of(const abi::RtMap& map, uint64_t index) {
  return reinterpret_cast<abi::HashEntry*>(map.entries + index * map.entry_stride);
}
inline uint64_t* key_of(abi::HashEntry* entry) {
  return reinterpret_cast<uint64_t*>(entry + 1);
}

/// Multiply-and-fold of each word; the seed keeps chosen keys from colliding.
inline uint64_t hash_word(uint64_t hash, uint64_t word) {
  constexpr uint64_t kFactor = 0x9e37'79b9'7f4a'7c15;
  const Wide product = multiply_wide(hash ^ word, kFactor);
  return static_cast<uint64_t>(product) ^ static_cast<uint64_t>(product >> 64);
}
inline uint64_t hash_key(const abi::RtMap& map, const uint8_t* key) {
  uint64_t hash = map.seed;
  uint32_t left = map.key_size;
  for (; left >= 8; left -= 8, key += 8) hash = hash_word(hash, read_unaligned(key, 8));
  if (left != 0) hash = hash_word(hash, read_unaligned(key, left));
  return hash ^ hash >> 32;
}

/// Acquire, so that the check of the link that led here cannot be done before.
inline bool key_equals(const abi::RtMap& map, abi::HashEntry* entry, const uint8_t* key) {
  const uint64_t* stored = key_of(entry);
  uint32_t left = map.key_size;
  for (; left >= 8; left -= 8, key += 8, ++stored) {
    if (load_acquire(stored) != read_unaligned(key, 8)) return false;
  }
  return left == 0 || load_acquire(stored) == read_unaligned(key, left);
}

inline void store_key(const abi::RtMap& map, abi::HashEntry* entry, const uint8_t* key) {
  uint64_t* to = key_of(entry);
  uint32_t left = map.key_size;
  for (; left >= 8; left -= 8, key += 8, ++to) store_relaxed(to, read_unaligned(key, 8));
  if (left != 0) store_relaxed(to, read_unaligned(key, left));
}

// ---- hash: free entries
// -------------------------------------------------------------------------------------------

/// Gives an entry that is in no chain back. If others keep disturbing, the entry stays unused.
///
/// It becomes a new generation before it can be anything else: otherwise its link could come to
/// equal the one it had in its chain (the entry freed before it is often the one that followed it),
/// and a sleeping walk would take it for that.
inline void free_entry(const abi::RtMap& map, uint64_t index) {
  abi::HashEntry* entry = entry_of(map, index);
  uint64_t* free_head = &head_of(map)->free_head;
  const uint64_t link = next_generation(load_relaxed(&entry->link));
  for (uint32_t i = 0; i < kMaxTries; ++i) {
    const uint64_t head = load_acquire(free_head);
    store_release(&entry->link, link_to(link, link_index(head)));
    if (compare_swap(free_head, head, link_to(next_generation(head), index + 1))) return;
  }
}

/// An entry given back earlier. -1: there is none.
inline int64_t take_freed_entry(const abi::RtMap& map) {
  uint64_t* free_head = &head_of(map)->free_head;
  for (uint32_t i = 0; i < kMaxTries; ++i) {
    const uint64_t head = load_acquire(free_head);
    if (link_index(head) == 0 || link_index(head) > map.capacity) return -1;
    const uint64_t index = link_index(head) - 1;
    const uint64_t next = link_index(load_acquire(&entry_of(map, index)->link));
    if (compare_swap(free_head, head, link_to(next_generation(head), next)))
      return static_cast<int64_t>(index);
  }
  return -1;
}

/// An entry that was never used. -1: there is none.
inline int64_t take_fresh_entry(const abi::RtMap& map) {
  uint32_t* bump = &head_of(map)->bump;
  for (uint32_t i = 0; i < kMaxTries; ++i) {
    const uint32_t index = load_acquire(bump);
    if (index >= map.capacity) return -1;
    if (compare_swap(bump, index, index + 1)) return index;
  }
  return -1;
}

/// An entry of our own, in no chain. -1: the map is full. Threads that ask at the same moment may
/// together bring in a few keys more than max_entries, never fewer.
inline int64_t take_entry(const abi::RtMap& map) {
  // Below zero for the moment between another's insert and its count, or for ever if it died there.
  const auto live = static_cast<int32_t>(load_relaxed(&head_of(map)->live));
  if (live >= static_cast<int32_t>(map.max_entries)) return -1;
  const int64_t index = take_freed_entry(map);
  return index >= 0 ? index : take_fresh_entry(map);
}

// ---- hash: search
// -------------------------------------------------------------------------------------------------

enum class Walk { kFound, kAbsent, kDisturbed, kCorrupt };

struct Position {
  Walk walk;
  uint64_t start;  ///< the bucket word when the walk began; exact for kAbsent
  uint64_t index;  ///< kFound: the entry, from 0
  uint64_t link;   ///< kFound: its link, unmarked
};

/// Walks one chain from its bucket word; helps to take deleted entries out.
///
/// `match(entry, index)` looks at an entry that may be changing; what it saw counts only after the
/// link that led there was found unchanged: then the walk ends with kFound where it said yes, else
/// `passed(index)` is called and the walk goes on. Each entry costs one of `*steps`.
template <typename Match, typename Passed>
inline Position walk_chain(
    const abi::RtMap& map, uint64_t* bucket, uint32_t* steps, Match match, Passed passed) {
  uint64_t* from = bucket;
  uint64_t from_link = load_acquire(from);
  Position at = {Walk::kAbsent, from_link, 0, 0};
  while (link_index(from_link) != 0) {
    at.walk = Walk::kDisturbed;
    if (*steps == 0) return at;
    --*steps;
    at.index = link_index(from_link) - 1;
    if (at.index >= map.capacity) {
      at.walk = Walk::kCorrupt;
      return at;
    }
    abi::HashEntry* entry = entry_of(map, at.index);
    at.link = load_acquire(&entry->link);
    const bool matched = match(entry, static_cast<uint32_t>(at.index));
    if (load_acquire(from) != from_link) return at;
    if (link_marked(at.link)) {
      uint64_t unlinked = link_to(from_link, link_index(at.link));
      if (from == bucket) unlinked = next_generation(unlinked);
      if (!compare_swap(from, from_link, unlinked)) return at;
      free_entry(map, at.index);
      // We changed the bucket word ourselves, before walking past anything: the walk begins anew
      // here.
      if (from == bucket) at.start = unlinked;
      from_link = unlinked;
    } else if (matched) {
      at.walk = Walk::kFound;
      return at;
    } else {
      passed(static_cast<uint32_t>(at.index));
      from = &entry->link;
      from_link = at.link;
    }
    at.walk = Walk::kAbsent;
  }
  return at;
}

inline Position walk_once(const abi::RtMap& map,
                          uint64_t hash,
                          const uint8_t* key,
                          uint32_t* steps) {
  return walk_chain(
      map, bucket_of(map, hash), steps,
      [&](abi::HashEntry* entry, uint32_t) {
        return load_acquire(&entry->hash) == hash && key_equals(map, entry, key);
      },
      [](uint32_t) {});
}

/// kFound or kAbsent; kDisturbed and kCorrupt are counted.
inline Position find(const abi::RtConsts& consts,
                     const abi::RtMap& map,
                     uint64_t hash,
                     const uint8_t* key) {
  uint32_t steps = kMaxSteps;
  Position at = {Walk::kDisturbed, 0, 0, 0};
  for (uint32_t i = 0; i < kMaxTries; ++i) {
    at = walk_once(map, hash, key, &steps);
    if (at.walk == Walk::kFound || at.walk == Walk::kAbsent) return at;
    if (at.walk == Walk::kCorrupt) {
      count_corrupt(consts);
      return at;
    }
    if (steps == 0) break;
  }
  count_map_contended(consts);
  return at;
}

/// The usual case in a few instructions: the first entry of the chain is the one, and nothing
/// disturbs. -1: look properly.
inline int64_t find_first(const abi::RtMap& map, uint64_t hash, const uint8_t* key) {
  const uint64_t* bucket = bucket_of(map, hash);
  const uint64_t start = load_acquire(bucket);
  const uint64_t index = link_index(start) - 1;
  if (index >= map.capacity) return -1;
  abi::HashEntry* entry = entry_of(map, index);
  const uint64_t link = load_acquire(&entry->link);
  if (load_acquire(&entry->hash) != hash || !key_equals(map, entry, key)) return -1;
  if (link_marked(link) || load_acquire(bucket) != start) return -1;
  return static_cast<int64_t>(index);
}

// ---- hash: operations
// ---------------------------------------------------------------------------------------------

/// Fills entry `index`, which nobody else sees: the value on `cpu`, zero on the others.
inline void fill_entry(const abi::RtMap& map,
                       uint64_t index,
                       uint64_t hash,
                       const uint8_t* key,
                       const uint8_t* value,
                       uint32_t cpu) {
  abi::HashEntry* entry = entry_of(map, index);
  store_relaxed(&entry->hash, hash);
  store_key(map, entry, key);
  const auto number = static_cast<uint32_t>(index);
  for (uint32_t i = 0; i <= map.cpu_mask; ++i) {
    if (i != (cpu & map.cpu_mask)) zero_value(map, value_of(map, number, i));
  }
  store_value(map, value_of(map, number, cpu), value);
}

inline int64_t hash_update(const abi::RtConsts& consts,
                           const abi::RtMap& map,
                           const uint8_t* key,
                           const uint8_t* value,
                           uint64_t flags,
                           uint32_t cpu) {
  const uint64_t hash = hash_key(map, key);
  const int64_t first = flags == kFlagNoExist ? -1 : find_first(map, hash, key);
  if (__builtin_expect(first >= 0, 1)) {
    store_value(map, value_of(map, static_cast<uint32_t>(first), cpu), value);
    return 0;
  }
  int64_t ours = -1;
  int64_t result = kErrBusy;
  bool searched_again = false;
  uint32_t tries = 0;
  for (; tries < kMaxTries; ++tries) {
    const Position at = find(consts, map, hash, key);
    if (at.walk == Walk::kFound) {
      result = flags == kFlagNoExist ? kErrExists : 0;
      if (result == 0) store_value(map, value_of(map, static_cast<uint32_t>(at.index), cpu), value);
      break;
    }
    if (at.walk != Walk::kAbsent) break;
    if (flags == kFlagExist) {
      result = kErrNoEntry;
      break;
    }
    if (ours < 0) {
      ours = take_entry(map);
      if (ours < 0 && searched_again) {
        result = kErrTooBig;
        break;
      }
      if (ours < 0) {
        // The last entry may have gone to this very key.
        searched_again = true;
        continue;
      }
      fill_entry(map, static_cast<uint64_t>(ours), hash, key, value, cpu);
    }
    abi::HashEntry* entry = entry_of(map, static_cast<uint64_t>(ours));
    store_release(&entry->link, link_to(load_relaxed(&entry->link), link_index(at.start)));
    const uint64_t published = link_to(next_generation(at.start), static_cast<uint64_t>(ours) + 1);
    if (compare_swap(bucket_of(map, hash), at.start, published)) {
      __atomic_fetch_add(&head_of(map)->live, 1, __ATOMIC_RELAXED);
      return 0;
    }
  }
  if (ours >= 0) free_entry(map, static_cast<uint64_t>(ours));
  if (tries == kMaxTries) count_map_contended(consts);
  return result;
}

inline int64_t hash_delete(const abi::RtConsts& consts, const abi::RtMap& map, const uint8_t* key) {
  const uint64_t hash = hash_key(map, key);
  for (uint32_t i = 0; i < kMaxTries; ++i) {
    const Position at = find(consts, map, hash, key);
    if (at.walk == Walk::kAbsent) return kErrNoEntry;
    if (at.walk != Walk::kFound) return kErrBusy;
    // The mark is the deletion; from here on whoever walks past takes the entry out. We walk past.
    if (compare_swap(&entry_of(map, at.index)->link, at.link, at.link | abi::kLinkMark)) {
      __atomic_fetch_sub(&head_of(map)->live, 1, __ATOMIC_RELAXED);
      find(consts, map, hash, key);
      return 0;
    }
  }
  count_map_contended(consts);
  return kErrBusy;
}

inline uint64_t* hash_lookup(const abi::RtConsts& consts,
                             const abi::RtMap& map,
                             const uint8_t* key,
                             uint32_t cpu) {
  const uint64_t hash = hash_key(map, key);
  const int64_t first = find_first(map, hash, key);
  if (__builtin_expect(first >= 0, 1)) return value_of(map, static_cast<uint32_t>(first), cpu);
  const Position at = find(consts, map, hash, key);
  return at.walk == Walk::kFound ? value_of(map, static_cast<uint32_t>(at.index), cpu) : nullptr;
}

// ---- arrays
// -------------------------------------------------------------------------------------------------------

inline uint32_t array_index(const uint8_t* key) {
  uint32_t index;
  __builtin_memcpy(&index, key, sizeof index);
  return index;
}

inline uint64_t* array_lookup(const abi::RtMap& map, const uint8_t* key, uint32_t cpu) {
  const uint32_t index = array_index(key);
  return index < map.max_entries ? value_of(map, index, cpu) : nullptr;
}

inline int64_t array_update(
    const abi::RtMap& map, const uint8_t* key, const uint8_t* value, uint64_t flags, uint32_t cpu) {
  const uint32_t index = array_index(key);
  if (index >= map.max_entries) return kErrTooBig;
  if (flags == kFlagNoExist) return kErrExists;
  store_value(map, value_of(map, index, cpu), value);
  return 0;
}

// ---- any map: what programs call
// ----------------------------------------------------------------------------------

/// The value of this CPU, or null. `cpu` is a slot or any number (it is masked).
inline uint64_t* map_lookup(const abi::RtConsts& consts,
                            const abi::RtMap& map,
                            const uint8_t* key,
                            uint32_t cpu) {
  if (is_hash(map)) return hash_lookup(consts, map, key, cpu);
  if (is_calls(map)) return calls_lookup(map, key);
  return is_array(map) ? array_lookup(map, key, cpu) : nullptr;
}

/// Sets the value of this CPU; the other CPUs' values of a new key are zero. 0 or -errno.
inline int64_t map_update(const abi::RtConsts& consts,
                          const abi::RtMap& map,
                          const uint8_t* key,
                          const uint8_t* value,
                          uint64_t flags,
                          uint32_t cpu) {
  if (flags > kFlagExist) return kErrInvalid;
  if (is_hash(map)) return hash_update(consts, map, key, value, flags, cpu);
  if (is_calls(map)) return calls_update(map, key, value) ? 0 : kErrTooBig;
  return is_array(map) ? array_update(map, key, value, flags, cpu) : kErrInvalid;
}

/// Copies a key that others may be writing.
inline void load_key(const abi::RtMap& map, abi::HashEntry* entry, uint8_t* key) {
  const uint64_t* stored = key_of(entry);
  uint32_t left = map.key_size;
  for (; left >= 8; left -= 8, key += 8, ++stored) {
    const uint64_t word = load_acquire(stored);
    __builtin_memcpy(key, &word, sizeof word);
  }
  uint64_t last = left == 0 ? 0 : load_acquire(stored);
  for (; left != 0; --left, ++key, last >>= 8) *key = static_cast<uint8_t>(last);
}

/// Writes the key of the first element from entry `position` on, gives the position behind it, or
/// 0. An element that is there during all of a walk is met once: as long as it lives it keeps its
/// entry. After kMaxSteps entries that hold nothing, or as many steps along chains, it gives a key
/// that may not be there, so that whoever counts rounds counts these.
inline uint64_t map_next_key(const abi::RtMap& map, uint64_t position, uint8_t* key) {
  if (!is_hash(map)) return 0;
  const uint32_t used = load_acquire(&head_of(map)->bump);
  uint32_t steps = kMaxSteps, empty = 0;
  for (uint64_t index = position; index < used && index < map.capacity; ++index) {
    load_key(map, entry_of(map, index), key);
    // What was deleted keeps its key: it is an element only where a search for the key ends here.
    const uint64_t hash = hash_key(map, key);
    Position at = walk_once(map, hash, key, &steps);
    while (at.walk == Walk::kDisturbed && steps != 0) at = walk_once(map, hash, key, &steps);
    if (at.walk == Walk::kFound && at.index == index) return index + 1;
    if (steps == 0 || ++empty == kMaxSteps) return index + 1;
  }
  return 0;
}

/// 0 or -errno; arrays have nothing to delete.
inline int64_t map_delete(const abi::RtConsts& consts, const abi::RtMap& map, const uint8_t* key) {
  if (is_calls(map)) return calls_delete(map, key) ? 0 : kErrNoEntry;
  return is_hash(map) ? hash_delete(consts, map, key) : kErrInvalid;
}

}  // namespace spile::rt
