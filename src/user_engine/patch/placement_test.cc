#include "user_engine/patch/placement.h"

#include <gtest/gtest.h>

#include "x86/encode.h"

namespace spile::patch {
namespace {

using x86::Code;

constexpr uint64_t kText = 0x7f0000100000;

/// One function of the given bytes, and the plan of a short site at its start.
struct ShortSite {
  explicit ShortSite(Code code) : bytes(std::move(code)) {
    bytes.resize(64, 0x90);
    module.text = {{TargetAddr(kText), bytes}};
    module.functions = {{TargetAddr(kText), TargetAddr(kText + bytes.size()), "f"}};
    auto planned = plan_short(module, TargetAddr(kText));
    EXPECT_TRUE(planned);
    plan = *planned;
  }
  Placements place(StoneSpace& space) {
    const SitePlan* site = &plan;
    return place_short_sites(module, {&site, 1}, space);
  }

  Code bytes;
  ModuleCode module;
  SitePlan plan;
};

/// All addresses are free.
StoneSpace everywhere() {
  return {{{TargetAddr(0x10000), TargetAddr(0x7fff00000000)}}, 1000};
}

TEST(Placement, APunnedJumpLeadsWhereTheBytesBehindItSay) {
  // push %rbx, then 48 ff cf 75 stay.
  ShortSite site({0x53, 0x48, 0xff, 0xcf, 0x75, 0xfb, 0x5b, 0xc3});
  StoneSpace space = everywhere();
  const auto placed = site.place(space).placed.at(0);
  EXPECT_EQ(placed.stone, TargetAddr(kText + 5 + 0x75cfff48));
  EXPECT_EQ(placed.edits.back().after, Code{0xe9});
  EXPECT_EQ(placed.edits.back().before, Code{0x53});
  EXPECT_FALSE(space.fits(placed.stone)) << "taken";
}

TEST(Placement, OwnBytesChooseAmongPlaces) {
  // mov %rdi,%rax (three bytes), then ff cf stay: a negative distance.
  ShortSite site({0x48, 0x89, 0xf8, 0xff, 0xcf, 0x75, 0xfc, 0xc3});
  const uint64_t first = kText + 5 + 0xcfff0000u - (uint64_t{1} << 32);
  const uint64_t page = (first + 0x8000) & ~uint64_t{4095};
  StoneSpace space({{TargetAddr(page), TargetAddr(page + 4096)}}, 1);
  const auto placed = site.place(space).placed.at(0);
  EXPECT_EQ(placed.stone, TargetAddr(page));
  EXPECT_EQ(placed.edits.back().after.size(), 3u);
}

TEST(Placement, IsRefusedWhereEveryPlaceIsTaken) {
  ShortSite site({0x53, 0x48, 0xff, 0xcf, 0x75, 0xfb, 0x5b, 0xc3});
  StoneSpace space({}, 100);
  const auto placed = site.place(space);
  EXPECT_TRUE(placed.placed.empty());
  EXPECT_TRUE(placed.refused.contains(0));
}

// ---- room for stones
// ---------------------------------------------------------------------------------------------

constexpr TargetAddr kFree(0x10000);

TEST(StoneSpace, StonesShareAPageAndDoNotOverlap) {
  StoneSpace space({{kFree, kFree + 4096}}, 1);
  size_t count = 0;
  while (const auto at = space.find(kFree, kFree + 4095)) {
    space.take(*at);
    ++count;
  }
  EXPECT_EQ(count, 4096 / kStoneBytes);
  ASSERT_EQ(space.pages().size(), 1u);
  EXPECT_EQ(space.pages()[0].start, kFree);
}

TEST(StoneSpace, NoStoneReachesIntoAPageThatIsTaken) {
  StoneSpace space({{kFree, kFree + 4096}}, 10);
  EXPECT_TRUE(space.fits(kFree + 4096 - kStoneBytes));
  EXPECT_FALSE(space.fits(kFree + 4096 - kStoneBytes + 1));
  EXPECT_FALSE(space.fits(kFree - 1));
}

TEST(StoneSpace, TakesNoMorePagesThanAllowed) {
  StoneSpace space({{kFree, kFree + 0x10000}}, 1);
  space.take(kFree + 0x3000);
  EXPECT_FALSE(space.fits(kFree));
  EXPECT_TRUE(space.fits(kFree + 0x3100));
}

TEST(StoneSpace, GivesBackWhatWasTaken) {
  StoneSpace space({{kFree, kFree + 4096}}, 1);
  space.take(kFree);
  EXPECT_FALSE(space.fits(kFree));
  space.give_back(kFree);
  EXPECT_TRUE(space.fits(kFree));
  EXPECT_TRUE(space.pages().empty());
}

TEST(StoneSpace, PrefersAPageThatIsInUse) {
  StoneSpace space({{kFree, kFree + 0x10000}}, 10);
  space.take(kFree + 0x5000);
  EXPECT_EQ(space.find(kFree, kFree + 0xffff), kFree + 0x5000 + kStoneBytes);
}

}  // namespace
}  // namespace spile::patch
