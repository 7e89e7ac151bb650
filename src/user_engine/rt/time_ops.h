// The time of a hit, in nanoseconds, without a system call where that is right.
#pragma once

#include <stdint.h>

#include "abi/code_region.h"
#include "abi/time.h"
#include "user_engine/rt/atomics.h"
#include "user_engine/rt/cpu.h"
#include "user_engine/rt/identity.h"
#include "user_engine/rt/sys.h"
#include "user_engine/rt/wide.h"

namespace spile::rt {

inline uint64_t ticks_to_ns(const abi::TimeLine& line, uint64_t tsc) {
  if (tsc >= line.base_tsc) {
    return line.base_ns +
           static_cast<uint64_t>(multiply_wide(tsc - line.base_tsc, line.mult) >> abi::kTimeShift);
  }
  return line.base_ns -
         static_cast<uint64_t>(multiply_wide(line.base_tsc - tsc, line.mult) >> abi::kTimeShift);
}

/// Copies the current line. False where the tracer kept changing it (or a hostile target did).
inline bool read_time_line(const abi::TimePage* page, abi::TimeLine* to) {
  constexpr int kTries = 4;
  for (int i = 0; i < kTries; ++i) {
    const uint64_t sequence = load_acquire(&page->sequence);
    const abi::TimeLine* line = &page->line[sequence & 1];
    to->base_tsc = load_acquire(&line->base_tsc);
    to->base_ns = load_acquire(&line->base_ns);
    to->mult = load_acquire(&line->mult);
    to->boot_offset_ns = load_acquire(&line->boot_offset_ns);
    to->valid_until_tsc = load_acquire(&line->valid_until_tsc);
    if (load_relaxed(&page->sequence) == sequence) return true;
  }
  return false;
}

enum class Clock : uint64_t { kMonotonic = 1, kBoottime = 7 };

/// Asks the kernel; 0 where it may not be asked.
inline uint64_t clock_by_call(const abi::RtConsts& consts, Clock clock) {
  if (!may_call(consts, abi::kCallClockGettime)) return 0;
  struct {
    int64_t seconds, nanoseconds;
  } time = {0, 0};
  if (sys_call(Sys::kClockGettime, static_cast<uint64_t>(clock),
               reinterpret_cast<uint64_t>(&time)) != 0)
    return 0;
  return static_cast<uint64_t>(time.seconds) * 1'000'000'000u +
         static_cast<uint64_t>(time.nanoseconds);
}

inline uint64_t clock_ns(const abi::RtConsts& consts, Clock clock) {
  if (consts.flags & abi::kTscIsClock) {
    abi::TimeLine line;
    if (read_time_line(reinterpret_cast<const abi::TimePage*>(consts.time_page), &line)) {
      const uint64_t tsc = read_tsc();
      if (tsc < line.valid_until_tsc) {
        return ticks_to_ns(line, tsc) + (clock == Clock::kBoottime ? line.boot_offset_ns : 0);
      }
    }
  }
  return clock_by_call(consts, clock);
}

}  // namespace spile::rt
