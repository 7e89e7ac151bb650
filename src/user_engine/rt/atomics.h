// Single memory accesses with an order, on plain integers in shared memory.
//
// The compiler's builtins and not std::atomic: the layouts in abi/ are plain data for both sides,
// and the blob is freestanding. Fences are avoided on purpose (ThreadSanitizer does not see them):
// an acquire load orders what follows.
#pragma once

#include <stdint.h>

namespace spile::rt {

template <typename T>
T load_acquire(const T* p) {
  return __atomic_load_n(p, __ATOMIC_ACQUIRE);
}
template <typename T>
T load_relaxed(const T* p) {
  return __atomic_load_n(p, __ATOMIC_RELAXED);
}
template <typename T>
void store_release(T* p, T value) {
  __atomic_store_n(p, value, __ATOMIC_RELEASE);
}
template <typename T>
void store_relaxed(T* p, T value) {
  __atomic_store_n(p, value, __ATOMIC_RELAXED);
}
/// Success releases and acquires; failure acquires.
template <typename T>
bool compare_swap(T* p, T expected, T desired) {
  return __atomic_compare_exchange_n(p, &expected, desired, false, __ATOMIC_ACQ_REL,
                                     __ATOMIC_ACQUIRE);
}
inline void count_one(uint64_t* p) {
  __atomic_fetch_add(p, 1, __ATOMIC_RELAXED);
}

/// 1..8 bytes of the caller's memory at any alignment, zero-extended.
inline uint64_t read_unaligned(const uint8_t* from, uint32_t bytes) {
  uint64_t word = 0;
  if (bytes >= 8) {
    __builtin_memcpy(&word, from, 8);
    return word;
  }
  for (uint32_t i = 0; i < bytes; ++i) word |= uint64_t{from[i]} << (8 * i);
  return word;
}

}  // namespace spile::rt
