// Keeps the time page: the line by which target and tracer turn the time-stamp counter into
// CLOCK_MONOTONIC.
#pragma once

#include <chrono>
#include <cstdint>

#include "abi/time.h"
#include "base/error.h"

namespace spile::shm {

/// One pair of readings of the same moment.
struct ClockSample {
  uint64_t tsc = 0;
  uint64_t ns = 0;  ///< CLOCK_MONOTONIC
};

/// The best of a few readings: the one with the narrowest bracket of counter reads around it.
ClockSample sample_clock();

/// True where the kernel's own clock is the time-stamp counter: only then all CPUs' counters agree.
bool tsc_is_clock();

class Clock {
 public:
  /// How long the target trusts a line that is not refreshed.
  static constexpr std::chrono::seconds kValidFor{5};
  /// How often refresh() should be called.
  static constexpr std::chrono::milliseconds kRefreshEvery{250};

  /// Takes the first sample; the second is taken by the first refresh, at least 1 ms later (it
  /// waits if need be).
  static Clock start() { return start(sample_clock()); }
  static Clock start(ClockSample first);

  /// Makes a new line from a new sample and publishes it. Time as the line tells it stays
  /// continuous: an error is made good over the next second, unless it is larger than a millisecond
  /// (the machine slept): then it jumps.
  void refresh(abi::TimePage& page);
  /// The same from a given sample, later than the ones before.
  void refresh(abi::TimePage& page, ClockSample now);
  /// The current line for another region.
  void publish(abi::TimePage& page) const;

  /// CLOCK_MONOTONIC at a counter value, by the current line.
  uint64_t to_ns(uint64_t tsc) const;

 private:
  ClockSample anchor_;  ///< the rate is measured from here
  abi::TimeLine line_{};
};

}  // namespace spile::shm
