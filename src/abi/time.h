// The time page: how the target turns the time-stamp counter into nanoseconds.
//
// A latched pair: readers use line[sequence & 1]; the tracer writes the other line, then adds one
// to `sequence` (release; the reader's load acquires). A reader that finds another `sequence` after
// reading its line reads again, a few times at most. A line says ns = base_ns + ((tsc - base_tsc) *
// mult >> 32).
//
// A tracer that is stopped or dead no longer refreshes it: past valid_until_tsc the target asks the
// kernel instead.
#pragma once

#include <stdint.h>

namespace spile::abi {

struct TimeLine {
  uint64_t base_tsc;
  uint64_t base_ns;          ///< CLOCK_MONOTONIC at base_tsc
  uint64_t mult;             ///< ns per tick * 2^32
  uint64_t boot_offset_ns;   ///< CLOCK_BOOTTIME - CLOCK_MONOTONIC
  uint64_t valid_until_tsc;  ///< 0: never valid
  uint64_t reserved[3];
};
static_assert(sizeof(TimeLine) == 64);

/// Written by the tracer only.
struct TimePage {
  uint64_t sequence;
  uint64_t reserved[7];
  TimeLine line[2];
};
static_assert(sizeof(TimePage) == 192);

inline constexpr int kTimeShift = 32;

}  // namespace spile::abi
