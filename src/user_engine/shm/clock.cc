#include "user_engine/shm/clock.h"

#include <time.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <string>
#include <thread>

#include "user_engine/rt/atomics.h"
#include "user_engine/rt/cpu.h"
#include "user_engine/rt/time_ops.h"

namespace spile::shm {
namespace {

constexpr uint64_t kNsPerSecond = 1'000'000'000;

uint64_t read_clock_ns(clockid_t clock) {
  timespec t{};
  clock_gettime(clock, &t);
  return static_cast<uint64_t>(t.tv_sec) * kNsPerSecond + static_cast<uint64_t>(t.tv_nsec);
}

/// Writes the line that readers do not use, then turns them to it.
void publish_line(abi::TimePage& page, const abi::TimeLine& line) {
  const uint64_t sequence = rt::load_relaxed(&page.sequence);
  abi::TimeLine& to = page.line[(sequence + 1) & 1];
  // A reader still on the line before last sees the sequence change: it is two behind.
  rt::store_release(&to.base_tsc, line.base_tsc);
  rt::store_release(&to.base_ns, line.base_ns);
  rt::store_release(&to.mult, line.mult);
  rt::store_release(&to.boot_offset_ns, line.boot_offset_ns);
  rt::store_release(&to.valid_until_tsc, line.valid_until_tsc);
  rt::store_release(&page.sequence, sequence + 1);
}

double ns_per_tick(const ClockSample& from, const ClockSample& to) {
  return static_cast<double>(to.ns - from.ns) / static_cast<double>(to.tsc - from.tsc);
}

uint64_t scaled(double ratio) {
  return static_cast<uint64_t>(std::llround(std::ldexp(ratio, abi::kTimeShift)));
}

}  // namespace

ClockSample sample_clock() {
  ClockSample best;
  uint64_t narrowest = ~uint64_t{0};
  for (int i = 0; i < 7; ++i) {
    const uint64_t before = rt::read_tsc();
    const uint64_t ns = read_clock_ns(CLOCK_MONOTONIC);
    const uint64_t after = rt::read_tsc();
    if (after - before >= narrowest) continue;
    narrowest = after - before;
    best = {before + narrowest / 2, ns};
  }
  return best;
}

bool tsc_is_clock() {
  std::ifstream file("/sys/devices/system/clocksource/clocksource0/current_clocksource");
  std::string name;
  return file >> name && name == "tsc";
}

Clock Clock::start(ClockSample first) {
  Clock clock;
  clock.anchor_ = first;
  return clock;
}

void Clock::refresh(abi::TimePage& page) {
  ClockSample now = sample_clock();
  constexpr uint64_t kShortestNs = 1'000'000;
  if (now.ns - anchor_.ns < kShortestNs || now.tsc <= anchor_.tsc) {
    std::this_thread::sleep_for(std::chrono::nanoseconds(kShortestNs));
    now = sample_clock();
  }
  refresh(page, now);
}

void Clock::refresh(abi::TimePage& page, ClockSample now) {
  double rate = ns_per_tick(anchor_, now);
  uint64_t base_ns = now.ns;
  if (line_.mult != 0) {
    constexpr int64_t kJumpNs = 1'000'000;
    const uint64_t told = rt::ticks_to_ns(line_, now.tsc);
    const auto error = static_cast<int64_t>(now.ns - told);
    if (error > -kJumpNs && error < kJumpNs) {
      base_ns = told;
      rate *= 1 + static_cast<double>(error) / kNsPerSecond;
    } else {
      anchor_ = now;  // The two clocks parted: the rate since then says nothing.
      rate = std::ldexp(static_cast<double>(line_.mult), -abi::kTimeShift);
    }
  }
  line_ = {.base_tsc = now.tsc, .base_ns = base_ns, .mult = scaled(rate)};
  line_.boot_offset_ns = read_clock_ns(CLOCK_BOOTTIME) - read_clock_ns(CLOCK_MONOTONIC);
  constexpr double kValidNs = std::chrono::nanoseconds(kValidFor).count();
  line_.valid_until_tsc = now.tsc + static_cast<uint64_t>(kValidNs / rate);
  // The kernel steers its clock: measure the rate over the last minute, not since the start.
  constexpr uint64_t kAnchorAgeNs = 60 * kNsPerSecond;
  if (now.ns - anchor_.ns > kAnchorAgeNs) anchor_ = now;
  publish_line(page, line_);
}

void Clock::publish(abi::TimePage& page) const {
  publish_line(page, line_);
}

uint64_t Clock::to_ns(uint64_t tsc) const {
  return rt::ticks_to_ns(line_, tsc);
}

}  // namespace spile::shm
