// Maps of calls under way: what an entry has noted for the return of the same call.
//
// A key is written and looked for only by the thread that runs on the stack of its slot, so nobody
// waits for anybody: others only claim cells that are free.
//
//   slot 0, call 0 --claim--> slot, call 0 --> slot, call, value --delete--> 0, 0
//
// An entry takes the first cell that is its own or free. What a call has left behind that ended
// otherwise (an exception, longjmp) may stay behind a free cell; a return finds the newer one
// first, and takes only what its own entry has written: where that found no room there was no free
// cell, so that it would have found the old one.
#pragma once

#include <stdint.h>

#include "abi/map.h"
#include "user_engine/rt/atomics.h"

namespace spile::rt {

inline bool is_calls(const abi::RtMap& map) {
  return map.kind == abi::RtMapKind::kCalls;
}

struct CallKey {
  uint64_t slot, call;
};

inline CallKey call_key(const uint8_t* key) {
  const auto* words = reinterpret_cast<const uint64_t*>(key);
  __asm__("" : "+r"(words));  // or compilers warn of maps with shorter keys, which never come here
  return {load_relaxed(&words[0]), load_relaxed(&words[1])};
}

/// Cell `i` of those where the call may be.
inline abi::CallHead* call_cell(const abi::RtMap& map, const CallKey& key, uint32_t i) {
  const uint64_t hash = ((key.slot >> 3) ^ key.call << 20) * 0x9e37'79b9'7f4a'7c15;
  const uint64_t index = ((hash >> 32) + i) & map.bucket_mask;
  return reinterpret_cast<abi::CallHead*>(map.values + index * map.value_stride);
}

inline bool holds_call(const abi::CallHead* cell, const CallKey& key) {
  return load_relaxed(&cell->slot) == key.slot && load_relaxed(&cell->call) == key.call;
}

inline uint64_t* call_value(abi::CallHead* cell) {
  return reinterpret_cast<uint64_t*>(cell + 1);
}

inline abi::CallHead* find_call(const abi::RtMap& map, const CallKey& key) {
  for (uint32_t i = 0; i < abi::kCallCells; ++i) {
    abi::CallHead* cell = call_cell(map, key, i);
    if (holds_call(cell, key)) return cell;
  }
  return nullptr;
}

inline uint64_t* calls_lookup(const abi::RtMap& map, const uint8_t* key) {
  const CallKey words = call_key(key);
  if (words.slot == 0 || words.call == 0) return nullptr;
  abi::CallHead* cell = find_call(map, words);
  return cell == nullptr ? nullptr : call_value(cell);
}

/// The cell to write a call to; null: there is no room.
inline abi::CallHead* claim_call(const abi::RtMap& map, const CallKey& key) {
  for (uint32_t i = 0; i < abi::kCallCells; ++i) {
    abi::CallHead* cell = call_cell(map, key, i);
    if (holds_call(cell, key)) return cell;
    const bool is_free = load_relaxed(&cell->slot) == 0;
    if (is_free && compare_swap(&cell->slot, uint64_t{0}, key.slot)) return cell;
  }
  return nullptr;
}

/// False: no room.
inline bool calls_update(const abi::RtMap& map, const uint8_t* key, const uint8_t* value) {
  const CallKey words = call_key(key);
  if (words.slot == 0 || words.call == 0) return false;
  abi::CallHead* cell = claim_call(map, words);
  if (cell == nullptr) return false;
  store_relaxed(&cell->call, words.call);
  uint64_t* to = call_value(cell);
  for (uint32_t done = 0; done < map.value_size; done += 8, ++to) {
    uint64_t word;
    __builtin_memcpy(&word, value + done, sizeof word);
    store_relaxed(to, word);
  }
  return true;
}

/// The call's word goes first: whoever claims the cell next finds 0 there.
inline bool calls_delete(const abi::RtMap& map, const uint8_t* key) {
  const CallKey words = call_key(key);
  abi::CallHead* cell = words.slot == 0 ? nullptr : find_call(map, words);
  if (cell == nullptr) return false;
  store_relaxed(&cell->call, uint64_t{0});
  store_release(&cell->slot, uint64_t{0});
  return true;
}

}  // namespace spile::rt
