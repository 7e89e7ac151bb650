#include "user_engine/stone_room.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <limits>

namespace spile::user_engine {
namespace {

os::MapEntry map(uint64_t start, uint64_t end, const char* path = "") {
  os::MapEntry entry;
  entry.start = TargetAddr(start);
  entry.end = TargetAddr(end);
  entry.path = path;
  return entry;
}

bool is_free(const std::vector<patch::StoneSpace::Range>& ranges, uint64_t at) {
  return std::ranges::any_of(
      ranges, [&](const auto& r) { return at >= r.start.value && at < r.end.value; });
}

constexpr uint64_t kPage = 4096, kMiB = 1 << 20, kGiB = 1 << 30;
constexpr uint64_t kBreak = 0x5555'5560'0000, kStackTop = 0x7ffd'0002'1000;

TEST(StoneRoom, HoldNoPageThatIsMapped) {
  const auto free = stone_room({map(0x40'0000, 0x40'1000), map(0x40'3000, 0x40'5000)}, {});
  for (uint64_t page = 0x3f'f000; page < 0x40'6000; page += kPage) {
    const bool is_mapped = page == 0x40'0000 || (page >= 0x40'3000 && page < 0x40'5000);
    EXPECT_EQ(is_free(free, page), !is_mapped) << std::hex << page;
  }
}

TEST(StoneRoom, LeaveTheBreakRoomToGrow) {
  target::GapRules rules;
  rules.start_brk = kBreak;
  const auto free = stone_room({map(kBreak - kMiB, kBreak, "/bin/x")}, rules);
  EXPECT_FALSE(is_free(free, kBreak));
  EXPECT_FALSE(is_free(free, kBreak + kGiB - kPage));
  EXPECT_TRUE(is_free(free, kBreak + kGiB));
}

TEST(StoneRoom, LeaveTheStackRoomToGrowWhateverItsLimit) {
  const std::vector maps{map(kStackTop - 0x21000, kStackTop, "[stack]")};
  for (const uint64_t limit :
       {uint64_t{64} << 10, 8 * kMiB, 64 * kMiB, 16 * kGiB, std::numeric_limits<uint64_t>::max()}) {
    target::GapRules rules;
    rules.stack_limit_bytes = limit;
    const auto free = stone_room(maps, rules);
    // No limit may be raised later; of those that are no limits a GiB is used in practice.
    const uint64_t room = std::clamp(limit, 8 * kMiB, kGiB);
    EXPECT_FALSE(is_free(free, kStackTop - room)) << limit;
    EXPECT_FALSE(is_free(free, kStackTop - 0x21000 - kPage)) << limit;
    EXPECT_TRUE(is_free(free, kStackTop - 2 * kGiB)) << limit;
  }
}

}  // namespace
}  // namespace spile::user_engine
