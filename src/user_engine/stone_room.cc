#include "user_engine/stone_room.h"

#include <algorithm>

#include "user_engine/target/gap.h"

namespace spile::user_engine {

using target::AddressRange;

namespace {

constexpr uint64_t kPageBytes = patch::StoneSpace::kPageBytes;
constexpr uint64_t kBrkRoomBytes = uint64_t{1} << 30;
constexpr uint64_t kLowestAddress = 64 << 10, kHighestAddress = uint64_t{0x7fff} << 32;

uint64_t round_up(uint64_t value) {
  return (value + kPageBytes - 1) & ~(kPageBytes - 1);
}

}  // namespace

std::vector<patch::StoneSpace::Range> stone_room(const std::vector<os::MapEntry>& maps,
                                                 const target::GapRules& rules) {
  std::vector<AddressRange> taken;
  for (const os::MapEntry& m : maps) {
    AddressRange range{m.start, m.end};
    if (m.path == "[stack]") {
      const uint64_t room = std::min(m.end.value, target::stack_room_bytes(rules));
      range.start = std::min(m.start, TargetAddr(m.end.value - room));
    }
    if (m.path == "[heap]") range.end = m.end + kBrkRoomBytes;
    taken.push_back(range);
  }
  if (rules.start_brk != 0) {
    taken.push_back({TargetAddr(rules.start_brk), TargetAddr(rules.start_brk + kBrkRoomBytes)});
  }
  std::ranges::sort(taken, {}, &AddressRange::start);
  std::vector<patch::StoneSpace::Range> free;
  uint64_t at = kLowestAddress;
  for (const AddressRange& range : taken) {
    uint64_t end = std::min(range.start.value & ~(kPageBytes - 1), kHighestAddress);
    if (end > at) free.push_back({TargetAddr(at), TargetAddr(end)});
    at = std::max(at, round_up(range.end.value));
  }
  if (at < kHighestAddress) free.push_back({TargetAddr(at), TargetAddr(kHighestAddress)});
  return free;
}

}  // namespace spile::user_engine
