// Where a thread that has loaded a library waits until the library's probes are set.
//
//   data region + 3072    LoaderGate
//
// A hidden place of ours at the dynamic loader's _dl_debug_state adds 1 to `asked`, wakes the
// tracer and waits until `answered` has come as far. Only what holds of the words may be relied on:
// a target that writes them fools its own probes, and makes its own threads wait at most
// kMaxWaitNs.
//
// The wait ends by itself: after kMaxStillLooks looks of kLookNs without a change of `beat` (a
// tracer that is dead, or stopped), in any case after kMaxWaitNs. Who waited in vain closes the
// gate, so a dead tracer costs one such wait in all. A tracer that is only late opens it again, and
// tells.
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace spile::abi {

/// Words that are waited on are of 32 bits, as the kernel's futexes are; both sides map one file.
struct LoaderGate {
  uint32_t open;      ///< 1: whoever comes waits. Tracer; the target clears it
  uint32_t asked;     ///< number of the latest request. Target, by locked addition; futex
  uint32_t answered;  ///< requests up to this one are done. Tracer; futex
  uint32_t beat;      ///< changes while the tracer is at work on a request. Tracer
  uint32_t in_vain;   ///< waits without an answer, and none for one. Target, by locked addition
  uint32_t reserved;
};
static_assert(sizeof(LoaderGate) == 24);

inline constexpr uint64_t kLoaderGateOffset = 3072;
inline constexpr uint64_t kLookNs = 1'000'000, kMaxWaitNs = 500'000'000;
inline constexpr uint32_t kMaxStillLooks = 20;

/// Whether request number `request` is done: numbers wrap.
constexpr bool is_answered(uint32_t request, uint32_t answered) {
  return static_cast<int32_t>(answered - request) >= 0;
}

}  // namespace spile::abi
