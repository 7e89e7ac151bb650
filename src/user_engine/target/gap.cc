// Free address space near code: a pure function of the maps.
#include "user_engine/target/gap.h"

#include <algorithm>

namespace spile::target {
namespace {

constexpr uint64_t kPage = 4096;
constexpr uint64_t kGuard = 64 << 10;
constexpr uint64_t kBreakRoom = 1ull << 30;
/// A 32-bit displacement, less the length of the longest instruction and a page for good measure.
constexpr uint64_t kReach = (1ull << 31) - 2 * kPage;
/// Null pointers with offsets must keep faulting.
constexpr uint64_t kLowest = 1 << 20;
constexpr uint64_t kHighest = 0x7fff'ffff'0000;
/// RLIMIT_STACK may be "unlimited"; the kernel then keeps at most a sixth of the address space,
/// nobody uses more.
constexpr uint64_t kMaxStackRoom = 1ull << 30;

struct Interval {
  uint64_t start, end;
};

uint64_t minus(uint64_t a, uint64_t b) {
  return a > b ? a - b : 0;
}
uint64_t plus(uint64_t a, uint64_t b) {
  return a > ~0ull - b ? ~0ull : a + b;
}

}  // namespace

uint64_t stack_room_bytes(const GapRules& rules) {
  return std::clamp<uint64_t>(rules.stack_limit_bytes, 8 << 20, kMaxStackRoom) + (1 << 20);
}

namespace {

/// Everything that must stay free, guard gaps included; sorted.
std::vector<Interval> forbidden(const std::vector<os::MapEntry>& maps, const GapRules& rules) {
  std::vector<Interval> out;
  for (const os::MapEntry& map : maps) {
    uint64_t start = minus(map.start.value, kGuard), end = plus(map.end.value, kGuard);
    if (map.path == "[stack]") {
      start = std::min(start, minus(map.end.value, stack_room_bytes(rules)));
    }
    if (map.path == "[heap]") end = plus(map.end.value, kBreakRoom);
    out.push_back({start, end});
  }
  if (rules.start_brk != 0)
    out.push_back({minus(rules.start_brk, kGuard), plus(rules.start_brk, kBreakRoom)});
  std::sort(out.begin(), out.end(),
            [](const Interval& a, const Interval& b) { return a.start < b.start; });
  return out;
}

std::vector<Interval> gaps_between(const std::vector<Interval>& taken, Interval bounds) {
  std::vector<Interval> gaps;
  uint64_t free_from = bounds.start;
  for (const Interval& t : taken) {
    if (t.start > free_from) gaps.push_back({free_from, std::min(t.start, bounds.end)});
    free_from = std::max(free_from, t.end);
    if (free_from >= bounds.end) return gaps;
  }
  if (free_from < bounds.end) gaps.push_back({free_from, bounds.end});
  return gaps;
}

}  // namespace

Result<TargetAddr> find_gap(const std::vector<os::MapEntry>& maps,
                            const GapRules& rules,
                            std::span<const AddressRange> near,
                            uint64_t size_bytes) {
  if (size_bytes == 0 || size_bytes > kReach)
    return fail(ErrorCode::kInvalid, "a gap of {} bytes", size_bytes);
  const uint64_t size = (size_bytes + kPage - 1) & ~(kPage - 1);
  uint64_t low = kHighest, high = kLowest;
  for (const AddressRange& range : near) {
    low = std::min(low, range.start.value);
    high = std::max(high, range.end.value);
  }
  const Interval bounds = near.empty() ? Interval{kLowest, kHighest}
                                       : Interval{std::max(kLowest, minus(high, kReach)),
                                                  std::min(kHighest, plus(low, kReach))};
  uint64_t below = 0, above = ~0ull;
  for (const Interval& gap : gaps_between(forbidden(maps, rules), bounds)) {
    const uint64_t first = (gap.start + kPage - 1) & ~(kPage - 1);
    if (gap.end < size || first > gap.end - size) continue;
    const uint64_t last =
        std::min(gap.end, low) >= size ? (std::min(gap.end, low) - size) & ~(kPage - 1) : 0;
    if (last >= first)
      below = std::max(below, last);
    else
      above = std::min(above, first);
  }
  if (below != 0) return TargetAddr(below);
  if (above != ~0ull) return TargetAddr(above);
  return fail(ErrorCode::kUnsupported,
              "no free {} bytes of address space within 2 GiB of {:#x}-{:#x}", size, low, high);
}

}  // namespace spile::target
