#include "user_engine/patch/placement.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <random>

#include "user_engine/patch/jump_maker.h"
#include "user_engine/patch/testing/placement_oracle.h"
#include "x86/decode.h"
#include "x86/format.h"

namespace spile::patch {
namespace {

using x86::Code;

constexpr uint64_t kText = 0x7f0000100000;
constexpr uint64_t kSite = 0x1010;  ///< offset of the site of most tests
/// Where a full jump reaches, and few others by chance.
constexpr uint64_t kNearPage = kText + 0x200000;

/// Code, the sites asked for, and what became of them.
class Case {
 public:
  Case() : text_(0x3000, 0x06) {}  // 06 is no instruction

  Case& function(uint64_t offset, const Code& code, std::string_view name = "f") {
    put(offset, code);
    module_.functions.push_back({at(offset), at(offset + code.size()), name});
    return *this;
  }
  Case& put(uint64_t offset, const Code& code) {
    std::copy(code.begin(), code.end(), text_.begin() + static_cast<ptrdiff_t>(offset));
    return *this;
  }
  Case& nops(uint64_t offset, size_t count) { return put(offset, Code(count, 0x90)); }
  Case& pointer(uint64_t offset) {
    module_.code_pointers.push_back(at(offset));
    return *this;
  }
  Case& reserve(uint64_t offset, uint64_t size) {
    module_.reserved.push_back({at(offset), at(offset + size), "an rseq critical section"});
    return *this;
  }
  Case& rel32(uint64_t offset, uint64_t next, uint64_t target) {
    const auto value = static_cast<uint32_t>(target - next);
    std::memcpy(&text_[offset], &value, sizeof value);
    return *this;
  }
  Case& free(uint64_t start, uint64_t size) {
    free_.push_back({TargetAddr(start), TargetAddr(start + size)});
    return *this;
  }

  static TargetAddr at(uint64_t offset) { return TargetAddr(kText + offset); }

  /// Plans and places probes at the offsets. With all rules on, the oracle must be content.
  Case& place(const std::vector<uint64_t>& offsets, const PlanRules& rules = {}) {
    module_.text = {{TargetAddr(kText), text_}};
    std::ranges::stable_sort(module_.functions, {}, &Function::start);
    std::ranges::sort(free_, {}, &StoneSpace::Range::start);
    std::vector<TargetAddr> sites;
    for (const uint64_t o : offsets) sites.push_back(at(o));
    plans = plan_windows(module_, sites, rules);
    std::vector<const SitePlan*> pointers;
    for (const SitePlan& p : plans.sites) pointers.push_back(&p);
    StoneSpace space(free_, 1000);
    placements = place_short_sites(module_, pointers, space, rules);
    if (all_on(rules)) {
      std::mt19937_64 random(1);
      EXPECT_EQ(PlacementOracle(module_).check(plans.sites, placements, random), "");
    }
    return *this;
  }

  /// The same with an int3 at another offset.
  Case& place_beside_trap(uint64_t offset, uint64_t trap) {
    module_.text = {{TargetAddr(kText), text_}};
    std::ranges::stable_sort(module_.functions, {}, &Function::start);
    std::ranges::sort(free_, {}, &StoneSpace::Range::start);
    const TargetAddr site = at(offset), trapped = at(trap);
    plans = plan_windows(module_, {&site, 1});
    auto beside = plan_traps(module_, {&trapped, 1});
    EXPECT_TRUE(beside.front().has_value());
    std::vector<const SitePlan*> pointers{&plans.sites.front(), &*beside.front()};
    std::ranges::sort(pointers, {}, &SitePlan::site);
    StoneSpace space(free_, 1000);
    placements = place_short_sites(module_, pointers, space);
    return *this;
  }

  /// How the site of the i-th request was placed; empty: not.
  std::string how(size_t i = 0) const {
    const auto it = placements.placed.find(plans.outcomes.at(i)->site);
    return it == placements.placed.end() ? "" : it->second.how;
  }
  const Placement& placement(size_t i = 0) const {
    return placements.placed.at(plans.outcomes.at(i)->site);
  }

  Plans plans;
  Placements placements;

 private:
  static bool all_on(const PlanRules& r) {
    return r.direct_branches && r.jump_tables && r.code_pointers && r.code_references &&
           r.shared_bytes && r.padding_before_code && r.endbr_inside && r.other_functions &&
           r.other_sites && r.padding_only && r.page_boundary && r.reserved && r.known_code &&
           r.restore_rt && r.breakpoints && r.call_last;
  }

  Code text_;
  ModuleCode module_;
  std::vector<StoneSpace::Range> free_;
};

/// Bytes as they are written.
Code bytes(const Edit& e) {
  return {e.after.begin(), e.after.end()};
}

/// mov %rdi,%rax; loop: dec %edi; jne loop; ret: three bytes of its own.
const Code kThree = {0x48, 0x89, 0xf8, 0xff, 0xcf, 0x75, 0xfc, 0xc3};
/// xor %eax,%eax, then as before: two.
const Code kTwo = {0x31, 0xc0, 0xff, 0xcf, 0x75, 0xfc, 0xc3};
/// push %rbx; loop: dec %rdi; jne loop; pop %rbx; ret: one.
const Code kOne = {0x53, 0x48, 0xff, 0xcf, 0x75, 0xfb, 0x5b, 0xc3};

// ---- ways

TEST(Placement, APunnedJumpLeadsWhereTheBytesBehindItSay) {
  const uint64_t only = kText + kSite + 5 + 0x75cfff48;
  Case c;
  c.function(kSite, kOne).free(only & ~uint64_t{4095}, 8192).place({kSite});
  EXPECT_EQ(c.how(), "punned jump");
  EXPECT_EQ(c.placement().stone, TargetAddr(only));
  EXPECT_EQ(bytes(c.placement().edits.back()), Code{0xe9});
  ASSERT_EQ(c.placement().relies_on.size(), 1u);
  EXPECT_EQ(c.placement().relies_on[0].start, Case::at(kSite + 1));
  EXPECT_EQ(c.placement().relies_on[0].end, Case::at(kSite + 5));
}

TEST(Placement, OwnBytesChooseAmongPlaces) {
  // ff cf stay: a negative distance.
  const uint64_t first = kText + kSite + 5 + 0xcfff0000u - (uint64_t{1} << 32);
  const uint64_t page = (first + 0x8000) & ~uint64_t{4095};
  Case c;
  c.function(kSite, kThree).free(page, 4096).place({kSite});
  EXPECT_EQ(c.placement().stone, TargetAddr(page));
  EXPECT_EQ(c.placement().edits.back().after.size(), 3u);
}

TEST(Placement, APrefixMovesTheFixedBytes) {
  // 2e e9 xx | ff cf 75
  const uint64_t first = kText + kSite + 6 + 0x75cfff00;
  Case c;
  c.function(kSite, kThree).free(first & ~uint64_t{4095}, 8192).place({kSite});
  EXPECT_EQ(c.how(), "punned jump behind prefixes");
  const Code written = bytes(c.placement().edits.back());
  EXPECT_EQ(Code(written.begin(), written.begin() + 2), (Code{0x2e, 0xe9}));
}

TEST(Placement, TwoBytesHopToPadding) {
  Case c;
  c.function(kSite, kTwo).nops(kSite + 7, 9).free(kNearPage, 4096).place({kSite});
  EXPECT_EQ(c.how(), "hop to a jump at 0x7f000010101b");
  const auto& edits = c.placement().edits;
  ASSERT_EQ(edits.size(), 2u);
  EXPECT_EQ(edits[0].after[0], 0xe9);
  EXPECT_EQ(bytes(edits[1]), (Code{0xeb, 0x09}));
  EXPECT_LT(edits[0].level, edits[1].level) << "the hop is written when the jump is there";
}

TEST(Placement, TwoBytesHopBehindTheJumpOfALongInstruction) {
  // movabs: ten bytes, of which an ordinary jump leaves five that are never reached
  Code code = {0x48, 0xb8, 1, 2, 3, 4, 5, 6, 7, 8};
  code.insert(code.end(), kTwo.begin(), kTwo.end());
  Case c;
  c.function(kSite, code).put(kSite + 5, {0x75, 0x03}).free(kNearPage, 4096);
  // A branch from elsewhere makes the second site short.
  c.function(0x2000, {0xe9, 0, 0, 0, 0}, "g").rel32(0x2001, 0x2005, kSite + 10);
  c.place({kSite, kSite + 10});
  EXPECT_EQ(c.how(0), "") << "an ordinary jump";
  EXPECT_EQ(c.how(1), "hop to a jump at 0x7f0000101015");
  EXPECT_GE(c.placement(1).edits[0].level, 1) << "behind the ordinary jump";
}

TEST(Placement, ThePaddingMayBeShort) {
  // Three bytes of padding, then the next function's 55 48: e9 xx xx | 55 48.
  const uint64_t first = kText + kSite + 7 + 5 + 0x48550000;
  Case c;
  c.function(kSite, kTwo)
      .nops(kSite + 7, 3)
      .function(kSite + 10, {0x55, 0x48, 0x89, 0xe5, 0x5d, 0xc3}, "g");
  c.free((first + 0x4000) & ~uint64_t{4095}, 4096).place({kSite});
  EXPECT_EQ(c.how(), "hop to a punned jump at 0x7f0000101017");
}

TEST(Placement, OneByteHopsAsFarAsTheNextByteSays) {
  // 53 48: eb 48 hops to site + 2 + 0x48.
  Case c;
  c.function(kSite, kOne).function(kSite + 0x48, {0xc3}, "g").nops(kSite + 0x49, 7);
  c.free(kNearPage, 4096).place({kSite});
  EXPECT_EQ(c.how(), "hop to a jump at 0x7f000010105a");
  EXPECT_EQ(bytes(c.placement().edits.back()), Code{0xeb});
}

/// push %rbx, and behind it an instruction of seven bytes that others jump to.
Case one_before_seven() {
  Case c;
  c.function(kSite, {0x53, 0x48, 0xc7, 0xc0, 0x11, 0x22, 0x33, 0x44, 0x5b, 0xc3});
  c.function(0x2000, {0xe9, 0, 0, 0, 0}, "g").rel32(0x2001, 0x2005, kSite + 1);
  c.free(kText + 0x40000000, 0x30000000);
  return c;
}

TEST(Placement, TheNextInstructionIsMovedToMakeItsBytesRight) {
  Case c = one_before_seven();
  c.place({kSite});
  EXPECT_EQ(c.how(), "punned jump over a moved instruction");
  ASSERT_EQ(c.placements.evicted.size(), 1u);
  const Evicted& moved = c.placements.evicted[0];
  EXPECT_EQ(moved.plan.site, Case::at(kSite + 1));
  EXPECT_TRUE(moved.plan.probed.empty());
  EXPECT_LT(moved.placement.edits[0].level, c.placement().edits[0].level);
}

TEST(Placement, AnOrdinaryNextSiteIsPlacedToo) {
  Case c = one_before_seven();
  c.place({kSite, kSite + 1});
  EXPECT_EQ(c.how(0), "punned jump over a moved instruction");
  EXPECT_EQ(c.how(1), "jump") << "it must not depend on where its detour goes";
  EXPECT_TRUE(c.placements.evicted.empty());
}

TEST(Placement, LeavesAnInt3AndItsInstructionAlone) {
  // Without the int3 the next instruction would be moved away, or placed too.
  Case c = one_before_seven();
  c.place_beside_trap(kSite, kSite + 1);
  EXPECT_TRUE(c.placements.evicted.empty());
  for (const auto& [i, placed] : c.placements.placed) {
    for (const Edit& e : placed.edits)
      EXPECT_TRUE(e.at + e.after.size() <= Case::at(kSite + 1) || e.at >= Case::at(kSite + 8));
    for (const auto& r : placed.relies_on)
      EXPECT_FALSE(r.start <= Case::at(kSite + 1) && Case::at(kSite + 1) < r.end);
  }
  EXPECT_EQ(c.placements.refused.size(), 1u);
}

TEST(Placement, AHopLeadsBehindInstructionsThatWereMoved) {
  // No padding. Far from the site, ten bytes in a row: mov $1,%ecx; mov $2,%edx.
  Code code = kTwo;
  code.back() = 0x90;  // nop instead of ret
  code.insert(code.end(), {0xb9, 1, 0, 0, 0, 0xba, 2, 0, 0, 0, 0xc3});
  Case c;
  c.function(kSite, code).free(kNearPage, 4096).place({kSite});
  EXPECT_TRUE(c.how().starts_with("hop to a jump at")) << c.how();
  ASSERT_EQ(c.placements.evicted.size(), 1u);
  const SitePlan& moved = c.placements.evicted[0].plan;
  EXPECT_GE(moved.window.size(), 10u);
  EXPECT_EQ(moved.written, moved.window.size()) << "a thread may stand nowhere in it";
  EXPECT_GT(c.placement().edits[0].level, c.placements.evicted[0].placement.edits[0].level);
}

TEST(Placement, APrefixOfTheNextJumpIsTheDistanceOfAHop) {
  // The next instruction's jump: 2e e9 xx xx xx | 00. The hop: eb 2e.
  Case c;
  c.function(kSite, {0x53, 0x48, 0xc7, 0xc0, 0, 0, 0, 0, 0x5b, 0xc3});
  c.function(0x2000, {0xe9, 0, 0, 0, 0}, "g").rel32(0x2001, 0x2005, kSite + 1);
  c.function(kSite + 0x20, {0xc3}, "h").nops(kSite + 0x21, 0x1f).free(kNearPage, 4096);
  c.place({kSite});
  EXPECT_TRUE(c.how().starts_with("hop to a jump at")) << c.how();
  ASSERT_EQ(c.placements.evicted.size(), 1u);
  EXPECT_EQ(c.placements.evicted[0].placement.edits[0].after[0], 0x2e);
}

TEST(Placement, IsRefusedWhereEveryPlaceIsTaken) {
  Case c;
  c.function(kSite, kOne).place({kSite});
  EXPECT_TRUE(c.placements.placed.empty());
  ASSERT_TRUE(c.placements.refused.contains(0));
  EXPECT_NE(c.placements.refused.at(0).reason.find("taken"), std::string::npos);
}

TEST(Placement, ManySitesShareAPage) {
  Case c;
  std::vector<uint64_t> sites;
  for (uint64_t i = 0; i < 20; ++i) {
    c.function(kSite + i * 16, kTwo, "f").nops(kSite + i * 16 + 7, 9);
    sites.push_back(kSite + i * 16);
  }
  c.free(kNearPage, 4096).place(sites);
  EXPECT_EQ(c.placements.placed.size(), 20u);
}

TEST(Placement, EveryPrefixIsOneJump) {
  for (const uint8_t first : JumpMaker::first_bytes()) {
    Code code = {first};
    if (first != 0xe9) code.push_back(0xe9);
    code.insert(code.end(), {1, 2, 3, 4});
    const auto insn = x86::decode(code);
    ASSERT_TRUE(insn);
    EXPECT_EQ(insn->kind, x86::Kind::kJmp) << x86::hex(code);
    EXPECT_EQ(insn->length, code.size());
    EXPECT_FALSE(insn->operand16);
  }
}

// ---- rules

/// Not placed with the rule; without it, a hop to bytes that somebody needs.
void expect_rule(const Case& made, bool PlanRules::* rule) {
  Case with = made;
  with.place({kSite});
  EXPECT_EQ(with.how(), "");
  PlanRules off;
  off.*rule = false;
  Case without = made;
  without.place({kSite}, off);
  EXPECT_TRUE(without.how().starts_with("hop to")) << without.how();
}

/// Two own bytes, nine of padding, up to where code may begin.
Case before_padding() {
  Case c;
  c.function(kSite, kTwo).nops(kSite + 7, 9).free(kNearPage, 4096);
  return c;
}

TEST(PlacementRule, NoHopToPaddingThatIsEntered) {
  expect_rule(before_padding().pointer(kSite + 8), &PlanRules::code_pointers);
  // A branch: without that rule the site itself would be an ordinary one.
  Case c = before_padding();
  EXPECT_TRUE(Case(c).place({kSite}).how().starts_with("hop to"));
  c.function(0x2000, {0xe9, 0, 0, 0, 0}, "g").rel32(0x2001, 0x2005, kSite + 8).place({kSite});
  EXPECT_EQ(c.how(), "") << "from where it is entered on, the padding runs";
}

TEST(PlacementRule, NoHopToNopsThatAreAFunction) {
  Case c = before_padding();
  c.function(kSite + 8, Code(7, 0x90), "g").place({kSite});
  EXPECT_EQ(c.how(), "");
}

TEST(PlacementRule, NoHopToPaddingThatIsReadOrReserved) {
  // cmpb $0x7f,padding(%rip)
  expect_rule(before_padding()
                  .function(0x2000, {0x80, 0x3d, 0, 0, 0, 0, 0x7f, 0xc3}, "g")
                  .rel32(0x2002, 0x2007, kSite + 10),
              &PlanRules::code_references);
  expect_rule(before_padding().reserve(kSite + 9, 2), &PlanRules::reserved);
}

TEST(PlacementRule, NoHopToNopsThatBeginData) {
  // Behind eight nops, not at a multiple of 16: nobody knows whose byte it is.
  Case c;
  c.function(kSite, kTwo).nops(kSite + 7, 8).free(kNearPage, 4096);
  expect_rule(c, &PlanRules::padding_before_code);
  // Inside a function that no branch enters there; then one that does.
  Code code = kTwo;
  code.insert(code.end(), 8, 0x90);
  code.insert(code.end(), {0x31, 0xc9, 0xc3});
  Case inside;
  inside.function(kSite, code).free(kNearPage, 4096);
  expect_rule(inside, &PlanRules::padding_before_code);
  Case entered = inside;
  entered.function(0x2000, {0xe9, 0, 0, 0, 0}, "g").rel32(0x2001, 0x2005, kSite + 15);
  EXPECT_TRUE(entered.place({kSite}).how().starts_with("hop to")) << entered.how();
}

TEST(PlacementRule, NoHopToAnotherPage) {
  // The site ends a page, the padding begins the next.
  Case made;
  made.function(0x1ff9, kTwo).nops(0x2000, 16).free(kNearPage, 4096);
  Case with = made;
  with.place({0x1ff9});
  EXPECT_EQ(with.how(), "") << "the program may unmap the other page";
  PlanRules off;
  off.page_boundary = false;
  EXPECT_TRUE(made.place({0x1ff9}, off).how().starts_with("hop to"));
}

TEST(PlacementRule, NoJumpOnTwoPages) {
  // ret, the last byte of a page; its jump would rely on the next function's bytes.
  const uint64_t site = 0x1fff;
  const uint64_t only = kText + site + 5 + 0x75cfff48;
  Case made;
  made.function(site, {0xc3}).function(site + 1, {0x48, 0xff, 0xcf, 0x75, 0xfb, 0x5b, 0xc3}, "g");
  made.free(only & ~uint64_t{4095}, 8192);
  Case with = made;
  with.place({site});
  EXPECT_EQ(with.how(), "") << "the program may unmap the other page";
  PlanRules off;
  off.page_boundary = false;
  EXPECT_EQ(made.place({site}, off).how(), "punned jump");
}

TEST(Placement, AJumpMayRelyOnThePageThatTheProgramRunsIntoAnyhow) {
  const uint64_t site = 0x1fff;  // push %rbx, and on the next page what it falls into
  const uint64_t only = kText + site + 5 + 0x75cfff48;
  Case made;
  made.function(site, kOne).free(only & ~uint64_t{4095}, 8192).place({site});
  EXPECT_EQ(made.how(), "punned jump");
  EXPECT_EQ(made.placement().edits.back().after.size(), 1u) << "written on one page";
}

TEST(PlacementRule, NoHopToNopsThatControlFallsInto) {
  // xor %eax,%eax; ... call: it comes back to the nops.
  Code code = kTwo;
  code.pop_back();
  code.insert(code.end(), {0xff, 0xd0});
  Case c;
  c.function(kSite, code).nops(kSite + 8, 9).free(kNearPage, 4096).place({kSite});
  EXPECT_EQ(c.how(), "");
}

TEST(PlacementRule, NoHopToPaddingBehindCodeThatIsCopied) {
  // V8's built-ins, with a function behind the site that ends in padding.
  Case made;
  made.function(kSite, kTwo).function(kSite + 7, {0xc3}, "Builtins_Abort").nops(kSite + 8, 9);
  expect_rule(made.free(kNearPage, 4096), &PlanRules::known_code);
}

/// Two own bytes and, behind a jump, twelve that might be moved: pop %rbp...
Case before_evictable(const Code& victim, std::string_view name = "g") {
  Case c;
  c.function(kSite, kTwo).function(kSite + 7, victim, name).free(kNearPage, 4096);
  return c;
}
/// mov $1,%ecx; mov $2,%edx; ret
const Code kEvictable = {0xb9, 1, 0, 0, 0, 0xba, 2, 0, 0, 0, 0xc3};

TEST(PlacementRule, MovesOnlyWhatMayBeMoved) {
  Case plain = before_evictable(kEvictable);
  plain.place({kSite});
  EXPECT_TRUE(plain.how().starts_with("hop to")) << "else this test shows nothing: " << plain.how();
  expect_rule(before_evictable(kEvictable, "Builtins_Abort"), &PlanRules::known_code);
  expect_rule(before_evictable(kEvictable).reserve(kSite + 13, 1), &PlanRules::reserved);
  expect_rule(before_evictable(kEvictable).pointer(kSite + 12), &PlanRules::code_pointers);
  // A debugger's breakpoint, and an instruction whose address a handler looks at.
  Case trap = before_evictable({0xb9, 1, 0, 0, 0, 0x0f, 0x0b, 0, 0, 0, 0, 0xc3});
  EXPECT_EQ(trap.place({kSite}).how(), "");
}

TEST(PlacementRule, NeverMovesAnEndbr) {
  Code code = {0xf3, 0x0f, 0x1e, 0xfa};
  code.insert(code.end(), kEvictable.begin(), kEvictable.end());
  Case c = before_evictable(code);
  c.place({kSite});
  for (const Evicted& e : c.placements.evicted) EXPECT_GE(e.plan.site, Case::at(kSite + 11));
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
  EXPECT_EQ(count, 256u);
  ASSERT_EQ(space.pages().size(), 1u);
  EXPECT_EQ(space.pages()[0].start, kFree);
}

TEST(StoneSpace, AStoneReadsItsAddressAligned) {
  for (uint64_t i = 0; i < 8; ++i) {
    const TargetAddr at = kFree + i, to(0x123456789abc);
    const auto bytes = stone_bytes(at, to);
    EXPECT_EQ(at + bytes.size(), stone_end(at));
    const auto jump = x86::decode(bytes);
    ASSERT_TRUE(jump);
    EXPECT_EQ(jump->kind, x86::Kind::kJmpIndirect);
    const TargetAddr literal = jump->rip_target(at);
    EXPECT_EQ(literal.value % 8, 0u) << "a program with the alignment check on would get SIGBUS";
    EXPECT_EQ(std::memcmp(&bytes[static_cast<size_t>(literal - at)], &to.value, 8), 0);
  }
}

TEST(StoneSpace, NoStoneReachesIntoAPageThatIsTaken) {
  StoneSpace space({{kFree, kFree + 4096}}, 10);
  EXPECT_TRUE(space.fits(kFree + 4096 - kMinStoneBytes));
  EXPECT_FALSE(space.fits(kFree + 4096 - kMinStoneBytes + 1));
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
  EXPECT_EQ(space.find(kFree, kFree + 0xffff), stone_end(kFree + 0x5000));
}

}  // namespace
}  // namespace spile::patch
