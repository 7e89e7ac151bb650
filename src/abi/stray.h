// Jumps through pointers that took a noted call to code whose returns nobody watched, and what
// became of that code.
//
//   data region + 9216    StrayCell[128]
//
// The target writes a key where there is none, and counts the call as one whose return is not seen.
// The tracer, some milliseconds later, watches the returns behind the target and says so in the
// cell: from then on such calls go on noted. Who writes here fools his own probes only: a key leads
// the tracer to plan the code at an address, as it plans any.
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace spile::abi {

enum class StrayState : uint64_t {
  kSeen,       ///< target: first met
  kWatched,    ///< tracer: every return behind it is
  kGivenUp,    ///< tracer: it cannot be
  kForgotten,  ///< tracer: the code was unloaded; target: whoever comes there next makes it kSeen
};

/// Found by stray_index() and the cells behind it.
struct StrayCell {
  uint64_t key;  ///< stray_key(); 0: free. Target, by compare-and-swap
  StrayState state;
};
static_assert(sizeof(StrayCell) == 16);

inline constexpr uint64_t kStrayOffset = 9216;
inline constexpr uint32_t kStrayCells = 128, kStrayProbes = 8;
inline constexpr unsigned kStrayNumberBits = 16, kStrayAddressBits = 47;

/// `number`: of the tracked function, 1 to kMaxPendingNumber.
constexpr uint64_t stray_key(uint64_t target, uint64_t number) {
  return target << kStrayNumberBits | number;
}
constexpr uint32_t stray_index(uint64_t key) {
  return static_cast<uint32_t>((key * 0x9e37'79b9'7f4a'7c15) >> 57);
}
static_assert(kStrayCells == 1u << (64 - 57));

}  // namespace spile::abi
