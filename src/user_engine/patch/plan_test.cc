#include "user_engine/patch/plan.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>

#include "x86/format.h"

namespace spile::patch {
namespace {

/// The rules without the last resort: what is refused then says why five bytes are too many.
PlanRules no_puns() {
  PlanRules rules;
  rules.puns = false;
  return rules;
}

using x86::Code;

std::vector<Segment> segments(const x86::RelocatedCode& copy) {
  return {{copy.address, copy}};
}

/// A module made of bytes, with a function wherever one is named.
class Module {
 public:
  static constexpr uint64_t kText = 0x7f0000100000, kRodata = 0x7f0000200000;

  Module() : text_(0x3000, 0x90), rodata_(0x200, 0xff) {}

  /// Puts code at an offset and calls it a function.
  Module& function(uint64_t offset, const Code& code, std::string_view name = "f") {
    put(offset, code);
    functions_.push_back({at(offset), at(offset + code.size()), name});
    return *this;
  }
  Module& put(uint64_t offset, const Code& code) {
    std::copy(code.begin(), code.end(), text_.begin() + static_cast<ptrdiff_t>(offset));
    return *this;
  }
  Module& symbol(uint64_t offset, uint64_t size, std::string_view name) {
    functions_.push_back({at(offset), at(offset + size), name});
    return *this;
  }
  Module& pointer(uint64_t offset) {
    pointers_.push_back(at(offset));
    return *this;
  }
  Module& reserve(uint64_t offset, uint64_t size, std::string reason) {
    reserved_.push_back({at(offset), at(offset + size), std::move(reason)});
    return *this;
  }
  template <typename T>
  Module& data(uint64_t offset, T value) {
    std::memcpy(&rodata_[offset], &value, sizeof value);
    return *this;
  }
  /// A 32-bit field at `offset` that names `target` relative to `next`.
  Module& rel32(uint64_t offset, uint64_t next, uint64_t target) {
    const auto value = static_cast<uint32_t>(target - next);
    std::memcpy(&text_[offset], &value, sizeof value);
    return *this;
  }

  static TargetAddr at(uint64_t offset) { return TargetAddr(kText + offset); }

  ModuleCode code() const {
    ModuleCode m{{{TargetAddr(kText), text_}},
                 functions_,
                 pointers_,
                 {{TargetAddr(kRodata), rodata_}},
                 reserved_};
    std::stable_sort(m.functions.begin(), m.functions.end(),
                     [](auto& a, auto& b) { return a.start < b.start; });
    std::sort(m.code_pointers.begin(), m.code_pointers.end());
    return m;
  }
  Outcome plan(uint64_t offset, const PlanRules& rules = no_puns()) const {
    const ModuleCode m = code();
    return plan_entry(m, at(offset), rules);
  }

 private:
  Code text_, rodata_;
  std::vector<Function> functions_;
  std::vector<TargetAddr> pointers_;
  std::vector<Reserved> reserved_;
};

constexpr uint64_t kSite = 0x1000;
/// push %rbp; mov %rsp,%rbp; push %r12; pop %r12; pop %rbp; ret
const Code kPlain = {0x55, 0x48, 0x89, 0xe5, 0x41, 0x54, 0x41, 0x5c, 0x5d, 0xc3};

/// Refused with the rule on; with the rule off, a plan that overwrites what somebody enters or
/// reads.
void expect_rule(const Module& m, uint64_t site, bool PlanRules::* rule, RefusalKind kind) {
  const Outcome with = m.plan(site);
  ASSERT_FALSE(with) << "accepted: " << with->reason;
  EXPECT_EQ(with.error().kind, kind) << with.error().reason;
  EXPECT_FALSE(with.error().reason.empty());
  PlanRules off = no_puns();
  off.*rule = false;
  const Outcome without = m.plan(site, off);
  EXPECT_TRUE(without) << "another rule refuses it too, so this test shows nothing: "
                       << without.error().reason;
}

TEST(Plan, JumpsOverSeveralInstructions) {
  const auto plan = Module().function(kSite, kPlain).plan(kSite);
  ASSERT_TRUE(plan) << plan.error().reason;
  EXPECT_EQ(plan->mechanism, Mechanism::kJump);
  EXPECT_EQ(x86::hex(plan->window), "55 48 89 e5 41 54");
  EXPECT_EQ(x86::hex(plan->before), "55 48 89 e5 41");
  EXPECT_EQ(plan->heads, (std::vector<uint8_t>{0, 1, 4}));
  EXPECT_EQ(plan->reason, "jump over 3 instructions");
  EXPECT_TRUE(plan->falls_through);
}

TEST(Plan, GoesBehindAnEndbr) {
  Code code = {0xf3, 0x0f, 0x1e, 0xfa};
  code.insert(code.end(), kPlain.begin(), kPlain.end());
  const auto plan = Module().function(kSite, code).plan(kSite);
  ASSERT_TRUE(plan) << plan.error().reason;
  EXPECT_EQ(plan->site, Module::at(kSite + 4));
  EXPECT_EQ(plan->function, Module::at(kSite));
}

TEST(Plan, UsesEntryNopsOfEveryForm) {
  const Code forms[] = {
      {0x90, 0x90, 0x90, 0x90, 0x90, 0xc3},                    // -fpatchable-function-entry=5
      {0x0f, 0x1f, 0x44, 0x00, 0x00, 0xc3},                    // -mfentry -mnop-mcount
      {0xf3, 0x0f, 0x1e, 0xfa, 0x0f, 0x1f, 0x44, 0, 0, 0xc3},  // with -fcf-protection
      {0x66, 0x90, 0x0f, 0x1f, 0x00, 0xc3},
  };
  for (const Code& code : forms) {
    const auto plan = Module().function(kSite, code).plan(kSite);
    ASSERT_TRUE(plan) << plan.error().reason;
    EXPECT_EQ(plan->mechanism, Mechanism::kEntryNops);
    EXPECT_EQ(displaced_code(*plan, Module::at(0x100000))->bytes.size(), 5u)
        << "only the jump back";
  }
}

TEST(Plan, UsesThePaddingOfShortFunctions) {
  for (const Code& code :
       {Code{0xc3}, Code{0x31, 0xc0, 0xc3}, Code{0xeb, 0x40}, Code{0xf3, 0xc3}}) {
    const auto plan = Module().function(kSite, code).plan(kSite);
    ASSERT_TRUE(plan) << plan.error().reason;
    EXPECT_EQ(plan->mechanism, Mechanism::kPadding);
    EXPECT_EQ(plan->window, code);
    EXPECT_FALSE(plan->falls_through);
  }
}

TEST(Plan, UsesPaddingOfInt3AndLongNops) {
  EXPECT_TRUE(
      Module().function(kSite, {0xc3}).put(kSite + 1, {0xcc, 0xcc, 0xcc, 0xcc}).plan(kSite));
  EXPECT_TRUE(Module()
                  .function(kSite, {0xc3})
                  .put(kSite + 1, {0x66, 0x2e, 0x0f, 0x1f, 0x84, 0, 0, 0, 0, 0})
                  .plan(kSite));
}

TEST(Plan, DisplacesPaddingThatControlFallsInto) {
  // xor %eax,%eax falls through nops into the next function
  const auto plan =
      Module().function(kSite, {0x31, 0xc0}).function(kSite + 16, kPlain, "g").plan(kSite);
  ASSERT_TRUE(plan) << plan.error().reason;
  EXPECT_TRUE(plan->falls_through);
  EXPECT_EQ(plan->window.size(), 5u);
}

TEST(Plan, RefusesAFunctionThatFallsIntoOtherCode) {
  const auto plan =
      Module().function(kSite, {0x31, 0xc0}).put(kSite + 2, {0x55, 0x55, 0x55}).plan(kSite);
  ASSERT_FALSE(plan);
  EXPECT_EQ(plan.error().kind, RefusalKind::kTooShort);
}

TEST(Plan, RefusesAddressesOutsideFunctions) {
  EXPECT_EQ(Module().function(kSite, kPlain).plan(kSite + 0x100).error().kind,
            RefusalKind::kNoFunction);
  EXPECT_EQ(Module().function(kSite, kPlain).plan(0x100000).error().kind, RefusalKind::kNoFunction);
}

TEST(Plan, TakesSitesInsideFunctionsAndRefusesTheInsideOfInstructions) {
  Code code = kPlain;
  code.insert(code.begin(), 3, 0x50);
  code.insert(code.end() - 1, {0x48, 0x83, 0xc4, 0x18});
  const Module m = Module().function(kSite, code);
  EXPECT_TRUE(m.plan(kSite + 3));
  EXPECT_EQ(m.plan(kSite + 5).error().kind, RefusalKind::kNotAnInstruction);
}

TEST(Plan, BoundsFunctionsOfUnknownSizeByTheNext) {
  const Module m = Module()
                       .put(kSite, {0xc3})
                       .symbol(kSite, 0, "f")
                       .symbol(kSite + 3, 8, "g")
                       .put(kSite + 3, kPlain);
  EXPECT_EQ(m.plan(kSite).error().kind, RefusalKind::kTooShort);
}

TEST(Plan, GivesAliasesTheSamePlan) {
  const Module m = Module().function(kSite, kPlain).symbol(kSite, kPlain.size(), "alias");
  const ModuleCode code = m.code();
  const auto plans = plan_sites(code, std::vector{m.at(kSite), m.at(kSite)}, no_puns());
  ASSERT_TRUE(plans[0] && plans[1]);
  EXPECT_EQ(plans[0]->site, plans[1]->site);
}

TEST(PlanRule, RefusesADirectBranchIntoTheWindow) {
  // loop: dec %ecx; jne loop, entered at +1, +4 (instruction heads) and +2 (inside one)
  for (const uint8_t inside : {1, 2, 4}) {
    const auto rel8 = static_cast<uint8_t>(inside - 8);
    Code code = {0x51, 0x48, 0x89, 0xe5, 0x41, 0x54, 0x75, rel8, 0xc3};
    expect_rule(Module().function(kSite, code), kSite, &PlanRules::direct_branches,
                RefusalKind::kDirectBranch);
  }
}

TEST(PlanRule, RefusesBranchesOfEveryKindFromOtherFunctions) {
  const struct {
    Code code;
    uint64_t rel32_at, length;
  } kBranches[] = {{{0xe9, 0, 0, 0, 0}, 1, 5},
                   {{0xe8, 0, 0, 0, 0, 0xc3}, 1, 5},
                   {{0x0f, 0x84, 0, 0, 0, 0, 0xc3}, 2, 6},
                   {{0x3e, 0x0f, 0x8f, 0, 0, 0, 0, 0xc3}, 3, 7},
                   {{0xf2, 0xe9, 0, 0, 0, 0}, 2, 6},
                   {{0x0f, 0x1f, 0x84, 0xe9, 0, 0, 0, 0, 0xc3}, 4, 8},
                   {{0xc7, 0xf8, 0, 0, 0, 0, 0xc3}, 2, 6}};
  for (const auto& b : kBranches) {
    Module m = Module().function(kSite, kPlain).function(0x2000, b.code, "g");
    m.rel32(0x2000 + b.rel32_at, 0x2000 + b.length, kSite + 4);
    expect_rule(m, kSite, &PlanRules::direct_branches, RefusalKind::kDirectBranch);
  }
  for (const uint8_t opcode : {0xeb, 0x70, 0x7f, 0xe0, 0xe1, 0xe2, 0xe3}) {
    const Module m =
        Module().function(kSite, kPlain).function(kSite + 0x20, {opcode, 0xe2, 0xc3}, "g");
    expect_rule(m, kSite, &PlanRules::direct_branches,
                RefusalKind::kDirectBranch);  // +0x22 - 0x1e = +4
  }
}

TEST(PlanRule, RefusesABranchFromBetweenKnownFunctions) {
  Module m = Module().function(kSite, kPlain).put(0x2000, {0x50, 0x58, 0xe9, 0, 0, 0, 0});
  m.rel32(0x2003, 0x2007, kSite + 1);
  expect_rule(m, kSite, &PlanRules::direct_branches, RefusalKind::kDirectBranch);
}

TEST(PlanRule, RefusesABranchBehindDataInTheCode) {
  // 06 decodes to nothing, so what follows is not reached by decoding from the function's start
  Module m = Module().function(kSite, kPlain).function(0x2000, {0xc3, 0x06, 0x06}, "g");
  m.symbol(0x2000, 0x60, "g").put(0x2040, {0xe9, 0, 0, 0, 0}).rel32(0x2041, 0x2045, kSite + 1);
  expect_rule(m, kSite, &PlanRules::direct_branches, RefusalKind::kDirectBranch);
}

TEST(PlanRule, RefusesABranchBehindDataThatDecodes) {
  // 31 31 is an instruction at even and at odd addresses, so that decoding never falls into step by
  // itself. From the function's start the jump at an odd address is not seen; ee (out) tells that
  // there is data before it.
  Module m = Module().function(kSite, kPlain).symbol(0x2000, 0x60, "g").put(0x2000, {0xc3, 0xee});
  m.put(0x2002, Code(0x3f, 0x31)).put(0x2041, {0xe9, 0, 0, 0, 0}).rel32(0x2042, 0x2046, kSite + 1);
  expect_rule(m, kSite, &PlanRules::direct_branches, RefusalKind::kDirectBranch);
}

TEST(PlanRule, RefusesABranchHiddenInsideAnotherInstruction) {
  // je +1 skips the f0 of a locked instruction; behind it decoding differs and finds a jump
  Module m = Module()
                 .function(kSite, kPlain)
                 .function(0x2000, {0x74, 0x01, 0x05, 0xe9, 0, 0, 0, 0, 0xc3}, "g");
  m.rel32(0x2004, 0x2008, kSite + 1);
  expect_rule(m, kSite, &PlanRules::direct_branches, RefusalKind::kDirectBranch);
}

/// xor %eax,%eax; 1: inc %eax; lea 2f(%rip),%r9; jmp *%r9; two bytes of data; 2: dec %ecx; jg 1b;
/// xor %r9d,%r9d; ret. The data (48 b8, movabs) swallow all that follows.
const Code kSwallowed = {0x31, 0xc0, 0xff, 0xc0, 0x4c, 0x8d, 0x0d, 0x05, 0,    0,    0,    0x41,
                         0xff, 0xe1, 0x48, 0xb8, 0xff, 0xc9, 0x7f, 0xee, 0x45, 0x31, 0xc9, 0xc3};

TEST(PlanRule, RefusesABranchOfCodeThatOnlyAnAddressLeadsTo) {
  expect_rule(Module().function(kSite, kSwallowed), kSite, &PlanRules::direct_branches,
              RefusalKind::kDirectBranch);
  // The address is in data; in the code there is that of the data.
  Code by_pointer = kSwallowed;
  by_pointer[7] = 0x40;
  EXPECT_TRUE(Module().function(kSite, by_pointer).plan(kSite)) << "nothing leads to the branch";
  expect_rule(Module().function(kSite, by_pointer).pointer(kSite + 16), kSite,
              &PlanRules::direct_branches, RefusalKind::kDirectBranch);
}

TEST(PlanRule, RefusesABranchOfCodeThatOnlyANumberLeadsTo) {
  // push $label; ret, in a module that lies low
  Code text(0x3000, 0x90);
  const Code code = {0x31, 0xc0, 0xff, 0xc0, 0x68, 0x0c, 0x10, 0x40, 0x00, 0xc3,
                     0x48, 0xb8, 0xff, 0xc9, 0x7f, 0xf2, 0x45, 0x31, 0xc9, 0xc3};
  std::copy(code.begin(), code.end(), text.begin() + kSite);
  const ModuleCode m{{{TargetAddr(0x400000), text}},
                     {{TargetAddr(0x401000), TargetAddr(0x401000 + code.size()), "f"}},
                     {},
                     {},
                     {}};
  const auto plan = plan_entry(m, TargetAddr(0x401000), no_puns());
  ASSERT_FALSE(plan);
  EXPECT_EQ(plan.error().kind, RefusalKind::kDirectBranch) << plan.error().reason;
  PlanRules off = no_puns();
  off.direct_branches = false;
  EXPECT_TRUE(plan_entry(m, TargetAddr(0x401000), off));
}

TEST(PlanRule, RefusesBytesOfAnInstructionThatIsEnteredBehindItsPrefix) {
  // add $imm16,%ax; nop; nop; ret, which behind the prefix is add $imm32,%eax; ret
  Module m = Module().function(kSite, {0x66, 0x05, 0x90, 0x90, 0x90, 0x90, 0xc3});
  m.function(0x2000, {0xe9, 0, 0, 0, 0}, "g").rel32(0x2001, 0x2005, kSite + 1);
  for (const uint64_t nop : {4, 5}) {
    expect_rule(m, kSite + nop, &PlanRules::shared_bytes, RefusalKind::kSharedBytes);
    EXPECT_FALSE(m.plan(kSite + nop, {})) << "not as a short site either";
  }
  EXPECT_TRUE(m.plan(kSite + 6)) << "both streams have the ret";
}

TEST(PlanRule, RefusesAFunctionInsideAnothersInstruction) {
  // mov $imm32,%r8d, whose immediate is lea 1(%rax),%eax; nop: both go on with the ret
  Module m = Module().put(kSite, {0x41, 0xb8, 0x8d, 0x40, 0x01, 0x90, 0xc3});
  m.symbol(kSite, 7, "around").symbol(kSite + 2, 5, "inside");
  for (const uint64_t site : {kSite + 2, kSite + 5}) {
    expect_rule(m, site, &PlanRules::shared_bytes, RefusalKind::kSharedBytes);
    EXPECT_FALSE(m.plan(site, {})) << "not as a short site either";
  }
  EXPECT_FALSE(m.plan(kSite, {}));
}

TEST(PlanRule, RefusesABranchOfAnotherStream) {
  // Entered at +7, the immediate of mov $imm32,%eax is a jump to +2.
  Module m = Module().function(
      kSite, {0x55, 0x48, 0x89, 0xe5, 0x5d, 0x90, 0xb8, 0xeb, 0xf9, 0x90, 0x90, 0xc3});
  EXPECT_TRUE(m.plan(kSite + 4));
  m.function(0x2000, {0xe9, 0, 0, 0, 0}, "g").rel32(0x2001, 0x2005, kSite + 7);
  EXPECT_FALSE(m.plan(kSite + 4)) << "it would begin at +0 or +1";
  PlanRules off = no_puns();
  off.shared_bytes = false;
  EXPECT_TRUE(m.plan(kSite + 4, off));
}

TEST(Plan, AcceptsBytesThatOnlyLookLikeABranch) {
  // mov $imm32,%eax whose immediate reads as jmp rel8 into the window
  Code code = {0x55, 0x48, 0x89, 0xe5, 0x41, 0x54, 0xb8, 0xeb, 0xf9, 0, 0, 0x41, 0x5c, 0x5d, 0xc3};
  EXPECT_TRUE(Module().function(kSite, code).plan(kSite));
}

TEST(Plan, AcceptsBranchesToTheSiteItselfAndCallsOfIt) {
  Module m = Module().function(kSite, kPlain).function(0x2000, {0xe8, 0, 0, 0, 0, 0xc3}, "g");
  m.rel32(0x2001, 0x2005, kSite);
  EXPECT_TRUE(m.plan(kSite));
}

/// lea table(%rip),%rdx; movslq (%rdx,%rax,4),%rax; add %rdx,%rax; jmp *%rax
Module with_switch(uint64_t site) {
  const Code code = {0x55, 0x89, 0xf8, 0x89, 0xf1, 0x48, 0x8d, 0x15, 0,    0,    0,    0,
                     0x48, 0x63, 0x04, 0x82, 0x48, 0x01, 0xd0, 0x3e, 0xff, 0xe0, 0x5d, 0xc3};
  Module m = Module().function(site, code);
  m.rel32(site + 8, site + 12, Module::kRodata - Module::kText);
  return m;
}

void table_entry(Module& m, uint64_t index, uint64_t target_offset) {
  m.data(index * 4, static_cast<int32_t>(Module::kText + target_offset - Module::kRodata));
}

TEST(PlanRule, RefusesAJumpTableIntoTheWindow) {
  Module m = with_switch(kSite);
  table_entry(m, 0, kSite + 22);
  EXPECT_TRUE(m.plan(kSite));
  table_entry(m, 1, kSite + 23);
  table_entry(m, 2, kSite + 3);  // the fourth byte is an instruction's head
  expect_rule(m, kSite, &PlanRules::jump_tables, RefusalKind::kJumpTable);
}

TEST(PlanRule, RefusesAnIndirectJumpWhoseTableIsNotFound) {
  const Module m = with_switch(kSite);  // the table holds ff only
  expect_rule(m, kSite, &PlanRules::jump_tables, RefusalKind::kUnknownJump);
}

TEST(PlanRule, RefusesATableRelativeToCode) {
  // lea label(%rip),%rcx; lea table(%rip),%rdx; movslq (%rdx,%rax,4),%rax; add %rcx,%rax; jmp *%rax
  const Code code = {0x55, 0x89, 0xf8, 0x89, 0xf1, 0x48, 0x8d, 0x0d, 0,    0,
                     0,    0,    0x48, 0x8d, 0x15, 0,    0,    0,    0,    0x48,
                     0x63, 0x04, 0x82, 0x48, 0x01, 0xc8, 0xff, 0xe0, 0x5d, 0xc3};
  Module m = Module().function(kSite, code);
  m.rel32(kSite + 8, kSite + 12, kSite + 28)
      .rel32(kSite + 15, kSite + 19, Module::kRodata - Module::kText);
  m.data(0, int32_t{0}).data(4, int32_t{1}).data(8, int32_t{-27});  // +28, +29, +1
  expect_rule(m, kSite, &PlanRules::jump_tables, RefusalKind::kJumpTable);
}

TEST(PlanRule, RefusesATableOfAColdPart) {
  // The switch lies in f.cold, which jumps back into f; one case is f+1.
  const Code cold = {0x48, 0x8d, 0x15, 0,    0,    0,    0, 0x48, 0x63, 0x04, 0x82,
                     0x48, 0x01, 0xd0, 0xff, 0xe0, 0xe9, 0, 0,    0,    0};
  Module m = Module().function(kSite, kPlain).function(0x2000, cold, "");
  m.rel32(0x2003, 0x2007, Module::kRodata - Module::kText).rel32(0x2011, 0x2015, kSite + 8);
  table_entry(m, 0, 0x2010);
  EXPECT_TRUE(m.plan(kSite));
  table_entry(m, 1, kSite + 1);
  expect_rule(m, kSite, &PlanRules::jump_tables, RefusalKind::kJumpTable);
}

TEST(Plan, IgnoresTheNextTableOfAnUnrelatedFunction) {
  Module m = with_switch(0x2000);
  m.function(kSite, kPlain, "unrelated");
  table_entry(m, 0, 0x2016);
  table_entry(m, 1, kSite + 1);  // read past the end of the table, say
  EXPECT_TRUE(m.plan(kSite));
}

TEST(Plan, AcceptsTailCallsThroughPointers) {
  // push; pop; mov (%rdi),%rax; mov 8(%rax),%rax; jmp *%rax
  EXPECT_TRUE(
      Module()
          .function(kSite, {0x55, 0x5d, 0x48, 0x8b, 0x07, 0x48, 0x8b, 0x40, 0x08, 0xff, 0xe0})
          .plan(kSite));
  // an argument
  EXPECT_TRUE(
      Module().function(kSite, {0x55, 0x89, 0xc8, 0x89, 0xc1, 0x5d, 0xff, 0xe7}).plan(kSite));
}

TEST(PlanRule, RefusesAFunctionWithAnIndirectJumpThatDoesNotDecode) {
  Module m = Module().function(kSite, {0x55, 0x48, 0x89, 0xe5, 0x41, 0x54, 0x06, 0xff, 0xe0});
  expect_rule(m, kSite, &PlanRules::jump_tables, RefusalKind::kUndecodable);
}

TEST(PlanRule, RefusesACodePointerIntoTheWindow) {
  for (const uint64_t inside : {1, 4}) {
    expect_rule(Module().function(kSite, kPlain).pointer(kSite + inside), kSite,
                &PlanRules::code_pointers, RefusalKind::kCodePointer);
  }
  EXPECT_TRUE(Module().function(kSite, kPlain).pointer(kSite).pointer(kSite + 5).plan(kSite));
}

TEST(PlanRule, RefusesTakingTheAddressOfTheInside) {
  Module m =
      Module().function(kSite, kPlain).function(0x2000, {0x48, 0x8d, 0x05, 0, 0, 0, 0, 0xc3}, "g");
  m.rel32(0x2003, 0x2007, kSite + 1);
  expect_rule(m, kSite, &PlanRules::code_references, RefusalKind::kCodeReference);
  m.rel32(0x2003, 0x2007, kSite);
  EXPECT_TRUE(m.plan(kSite)) << "the address of the function is what everybody takes";
}

TEST(PlanRule, RefusesReadingTheWindowAsData) {
  for (const uint64_t inside : {0, 1, 4}) {
    // cmpl $0x7f,x(%rip): the immediate lies between the displacement and the end
    Module m = Module()
                   .function(kSite, kPlain)
                   .function(0x2000, {0x83, 0x3d, 0, 0, 0, 0, 0x7f, 0xc3}, "g");
    m.rel32(0x2002, 0x2007, kSite + inside);
    expect_rule(m, kSite, &PlanRules::code_references, RefusalKind::kCodeReference);
  }
}

TEST(PlanRule, RefusesEveryByteOfAnOperandInTheCode) {
  // ret and 15 nops, of which mov f+1(%rip),%rax reads eight
  Code code(16, 0x90);
  code[0] = 0xc3;
  Module m =
      Module().function(kSite, code).function(0x2000, {0x48, 0x8b, 0x05, 0, 0, 0, 0, 0xc3}, "g");
  m.rel32(0x2003, 0x2007, kSite + 1);
  for (uint64_t inside = 2; inside <= 8; ++inside) {
    expect_rule(m, kSite + inside, &PlanRules::code_references, RefusalKind::kCodeReference);
    EXPECT_FALSE(m.plan(kSite + inside, {})) << "not as a short site either";
  }
  EXPECT_TRUE(m.plan(kSite + 9));
}

TEST(PlanRule, RefusesAnAbsoluteAddressOfTheInside) {
  Code text(0x3000, 0x90);
  std::copy(kPlain.begin(), kPlain.end(), text.begin() + kSite);
  const Code taken = {0xb8, 0x01, 0x10, 0x40, 0x00, 0xc3};  // mov $0x401001,%eax
  std::copy(taken.begin(), taken.end(), text.begin() + 0x2000);
  const ModuleCode m{{{TargetAddr(0x400000), text}},
                     {{TargetAddr(0x401000), TargetAddr(0x40100a), "f"},
                      {TargetAddr(0x402000), TargetAddr(0x402006), "g"}},
                     {},
                     {},
                     {}};
  const auto plan = plan_entry(m, TargetAddr(0x401000), no_puns());
  ASSERT_FALSE(plan);
  EXPECT_EQ(plan.error().kind, RefusalKind::kCodeReference);
  PlanRules off = no_puns();
  off.code_references = false;
  EXPECT_TRUE(plan_entry(m, TargetAddr(0x401000), off));
}

TEST(PlanRule, RefusesAnEndbrInsideTheWindow) {
  expect_rule(Module().function(kSite, {0x90, 0xf3, 0x0f, 0x1e, 0xfa, 0x55, 0x5d, 0xc3}), kSite,
              &PlanRules::endbr_inside, RefusalKind::kEndbrInside);
}

TEST(PlanRule, RefusesASymbolThatBeginsInside) {
  expect_rule(Module().function(kSite, kPlain).symbol(kSite + 4, 6, "second_entry"), kSite,
              &PlanRules::other_functions, RefusalKind::kOtherFunction);
}

TEST(PlanRule, RefusesAShortFunctionWithoutPadding) {
  // ret, then the type hash of the next function (KCFI): mov $hash,%eax
  const Module m = Module()
                       .function(kSite, {0xc3})
                       .put(kSite + 1, {0x90, 0x90, 0xb8, 1, 2, 3, 4})
                       .function(kSite + 8, kPlain, "g");
  expect_rule(m, kSite, &PlanRules::padding_only, RefusalKind::kTooShort);
}

TEST(PlanRule, RefusesNopsThatBeginData) {
  // ret, then the type hash of the next function, which is aligned to nothing
  const Code nops = {0x90, 0x90, 0x90, 0x90};
  const Module m = Module()
                       .function(kSite, {0xc3})
                       .put(kSite + 1, {0x90, 0x90, 0x90, 0x90, 0x1b, 0x42, 0x42, 0x42})
                       .function(kSite + 9, kPlain, "g");
  expect_rule(m, kSite, &PlanRules::padding_before_code, RefusalKind::kTooShort);
  EXPECT_EQ(m.plan(kSite, {})->written, 1) << "a short site takes none of them";
  // That the hash ends the row at a multiple of 16 says nothing so close to the function.
  const Module aligned = Module()
                             .function(kSite + 11, {0xc3})
                             .put(kSite + 12, nops)
                             .put(kSite + 16, {0x06})
                             .function(kSite + 17, kPlain, "g");
  expect_rule(aligned, kSite + 11, &PlanRules::padding_before_code, RefusalKind::kTooShort);
}

TEST(Plan, TakesNopsUpToWhereCodeMayBegin) {
  const Code nops = {0x90, 0x90, 0x90, 0x90};
  const auto before = [&](uint64_t site) {
    return Module().function(site, {0xc3}).put(site + 1, nops).put(site + 5, {0x1b, 0x42, 0x42});
  };
  EXPECT_FALSE(before(kSite).plan(kSite));
  EXPECT_TRUE(before(kSite + 11).plan(kSite + 11)) << "a multiple of 16";
  EXPECT_TRUE(before(kSite).symbol(kSite + 5, 3, "g").plan(kSite)) << "a symbol";
  EXPECT_TRUE(before(kSite).put(kSite + 5, {0xf3, 0x0f, 0x1e, 0xfa}).plan(kSite)) << "an endbr64";
  // A label of the function that a branch of its own leads to: ret; nops; 1: xor; js 1b; ret.
  Code code = {0xc3, 0x90, 0x90, 0x90, 0x90, 0x31, 0xc0, 0x78, 0xfc, 0xc3};
  EXPECT_TRUE(Module().function(kSite, code).plan(kSite));
  code[8] = 0x10;
  EXPECT_FALSE(Module().function(kSite, code).plan(kSite)) << "nobody leads there";
}

TEST(PlanRule, RefusesOverwritingCodeBehindAReturn) {
  // The pop behind the ret is there for somebody, whoever that is.
  expect_rule(Module().function(kSite, {0x31, 0xc0, 0xc3, 0x58, 0x58, 0x58, 0xc3}), kSite,
              &PlanRules::padding_only, RefusalKind::kTooShort);
}

TEST(PlanRule, RefusesPaddingThatSomebodyUses) {
  Module m = Module().function(kSite, {0xc3}).function(0x2000, {0xe9, 0, 0, 0, 0}, "g");
  m.rel32(0x2001, 0x2005, kSite + 3);
  expect_rule(m, kSite, &PlanRules::direct_branches, RefusalKind::kDirectBranch);
}

TEST(PlanRule, RefusesAPageBoundary) {
  for (const uint64_t site : {0xffcu, 0xffdu, 0xfffu}) {
    expect_rule(Module().function(site, kPlain), site, &PlanRules::page_boundary,
                RefusalKind::kPageBoundary);
  }
  EXPECT_TRUE(Module().function(0xffb, kPlain).plan(0xffb));
}

TEST(PlanRule, RefusesReservedRanges) {
  const auto reserved = [](uint64_t from, uint64_t size) {
    return Module().function(kSite, kPlain).reserve(from, size, "an rseq critical section");
  };
  expect_rule(reserved(kSite + 4, 20), kSite, &PlanRules::reserved, RefusalKind::kReserved);
  expect_rule(reserved(kSite - 4, 5), kSite, &PlanRules::reserved, RefusalKind::kReserved);
  EXPECT_TRUE(reserved(kSite - 4, 4).plan(kSite));
  EXPECT_TRUE(reserved(kSite + 6, 4).plan(kSite));
}

TEST(PlanRule, RefusesFunctionsKnownToBeSpecial) {
  for (const char* name : {"Builtins_ArrayMap", "__syscall_cp_asm", "__syscall_cancel_arch"}) {
    expect_rule(Module().function(kSite, kPlain, name), kSite, &PlanRules::known_code,
                RefusalKind::kKnownCode);
  }
  EXPECT_TRUE(Module().function(kSite, kPlain, "__syscall_cp_asm_2").plan(kSite));
}

TEST(Plan, MovesNothingThatMayFaultWhereFaultsAreHandledByAddress) {
  const auto plan = [](const Code& code, bool handled) {
    const Module m = Module().function(kSite, code);
    ModuleCode module = m.code();
    module.handles_faults_by_address = handled;
    return plan_entry(module, m.at(kSite));
  };
  const Code load = {0x48, 0x8b, 0x08, 0x90, 0x90, 0xc3};       // mov (%rax),%rcx: Go's nil check
  const Code frame = {0x48, 0x8b, 0x44, 0x24, 0x08, 0xc3};      // mov 8(%rsp),%rax
  const Code global = {0x48, 0x8b, 0x05, 0x10, 0, 0, 0, 0xc3};  // mov x(%rip),%rax
  const Code go = {0x49, 0x3b, 0x66, 0x10, 0x76, 0x02, 0x5d, 0xc3, 0xc3};  // its stack check
  const Code lea = {0x48, 0x8d, 0x40, 0x08, 0x90, 0xc3};                   // lea 8(%rax),%rax
  const Code movs = {0xf3, 0xa4, 0x90, 0x90, 0x90, 0xc3};                  // rep movsb
  EXPECT_FALSE(plan(load, true));
  EXPECT_FALSE(plan(movs, true));
  ASSERT_TRUE(plan(load, false));
  EXPECT_TRUE(plan(load, false)->may_fault);
  for (const Code& code : {frame, global, go, lea, kPlain}) {
    ASSERT_TRUE(plan(code, true)) << plan(code, true).error().reason;
    EXPECT_FALSE(plan(code, true)->may_fault);
  }
}

TEST(PlanRule, RefusesTheSignalTrampoline) {
  const Code restore_rt = {0x48, 0xc7, 0xc0, 0x0f, 0x00, 0x00, 0x00, 0x0f, 0x05};
  expect_rule(Module().function(kSite, restore_rt), kSite, &PlanRules::restore_rt,
              RefusalKind::kRestoreRt);
  Code behind_nop = restore_rt;
  behind_nop.insert(behind_nop.begin(), 0x90);
  expect_rule(Module().function(kSite, behind_nop), kSite, &PlanRules::restore_rt,
              RefusalKind::kRestoreRt);
}

TEST(PlanRule, RefusesForeignBreakpoints) {
  const Module first = Module().function(kSite, {0xcc, 0x48, 0x89, 0xe5, 0x5d, 0xc3});
  EXPECT_EQ(first.plan(kSite).error().kind, RefusalKind::kBreakpoint);
  const Module second = Module().function(kSite, {0x55, 0xcc, 0x89, 0xe5, 0x5d, 0xc3});
  EXPECT_EQ(second.plan(kSite).error().kind, RefusalKind::kBreakpoint);
  PlanRules off = no_puns();
  off.breakpoints = false;  // the relocator is the second line of defence
  EXPECT_EQ(first.plan(kSite, off).error().kind, RefusalKind::kInstruction);
}

TEST(PlanRule, RefusesACallThatReturnsIntoThePatch) {
  const Module m = Module().function(kSite, {0x53, 0xff, 0xd0, 0x5b, 0xc3});
  EXPECT_EQ(m.plan(kSite).error().kind, RefusalKind::kCall);
  PlanRules off = no_puns();
  off.call_last = false;
  off.padding_only = false;
  const auto harmful = m.plan(kSite, off);
  ASSERT_TRUE(harmful) << harmful.error().reason;
  EXPECT_LT(harmful->window.size(), kPatchBytes)
      << "the callee returns to site + 3, where the jump's bytes are";
  EXPECT_TRUE(Module().function(kSite, {0x53, 0xe8, 0, 0, 0, 0, 0x5b, 0xc3}).plan(kSite))
      << "a call that ends it";
}

TEST(PlanRule, NeverMakesTwoWindowsOfTheSameBytes) {
  const Module m = Module().function(kSite, kPlain);
  const ModuleCode code = m.code();
  const std::vector sites = {m.at(kSite + 1), m.at(kSite)};
  auto plans = plan_windows(code, sites, no_puns());
  ASSERT_EQ(plans.sites.size(), 1u) << "one window carries both";
  EXPECT_EQ(plans.outcomes[0]->offset, 1);
  EXPECT_EQ(plans.outcomes[1]->offset, 0);
  PlanRules off = no_puns();
  off.other_sites = false;
  plans = plan_windows(code, sites, off);
  ASSERT_EQ(plans.sites.size(), 2u);
  EXPECT_GT(plans.sites[0].window_end(), plans.sites[1].site) << "one patch lies on the other";
}

TEST(Plan, RefusesInstructionsThatCannotMove) {
  const auto plan = Module().function(kSite, {0x55, 0x0f, 0x0b, 0x90, 0x90, 0x90}).plan(kSite);
  ASSERT_FALSE(plan);
  EXPECT_EQ(plan.error().kind, RefusalKind::kInstruction);
  EXPECT_EQ(plan.error().address, Module::at(kSite + 1));
  EXPECT_EQ(plan.error().instruction, "ud2");
}

TEST(Plan, RefusesToMoveTheSwitchOfATracepoint) {
  Module m = Module().function(kSite, {0x55, 0x0f, 0x1f, 0x84, 0xe9, 0, 0, 0, 0, 0x5d, 0xc3});
  m.rel32(kSite + 5, kSite + 9, kSite + 9);
  const auto plan = m.plan(kSite);
  ASSERT_FALSE(plan);
  EXPECT_EQ(plan.error().kind, RefusalKind::kInstruction);
  EXPECT_EQ(plan.error().address, Module::at(kSite + 1));
}

TEST(Plan, RefusesTheEndOfTheText) {
  EXPECT_EQ(Module().function(0x2ffd, {0x55, 0x5d, 0xc3}).plan(0x2ffd).error().kind,
            RefusalKind::kTooShort);
}

TEST(Plan, KnowsWhetherFlagsAreLive) {
  const auto live = [](Code code, uint64_t offset = 0) {
    return Module().function(kSite, code).plan(kSite + offset)->probed.front().flags_live;
  };
  EXPECT_TRUE(live(kPlain)) << "a caller written by hand may look at flags after the return";
  EXPECT_FALSE(live({0x55, 0x48, 0x83, 0xec, 0x10, 0x90, 0xc3}))
      << "push; sub: all are overwritten";
  EXPECT_TRUE(live({0x0f, 0xaf, 0xc7, 0x90, 0x90, 0x90, 0xc3})) << "imul may leave PF as it was";
  EXPECT_FALSE(live({0x31, 0xc0, 0x90, 0x90, 0x90, 0x90, 0xc3})) << "xor clears AF too";
  EXPECT_FALSE(live({0x85, 0xff, 0x74, 0x10, 0x90, 0x90, 0xc3})) << "test overwrites all";
  EXPECT_TRUE(live({0x0f, 0x92, 0xc0, 0x90, 0x90, 0xc3})) << "setb reads CF";
  EXPECT_TRUE(live({0xff, 0xc0, 0x0f, 0x92, 0xc0, 0xc3})) << "inc keeps CF";
  EXPECT_TRUE(live({0x9c, 0x58, 0x90, 0x90, 0x90, 0xc3})) << "pushf reads all";
  EXPECT_TRUE(live({0x9f, 0x90, 0x90, 0x90, 0x90, 0xc3})) << "lahf reads five";
  EXPECT_TRUE(live({0x48, 0x89, 0xc8, 0x90, 0x90, 0x75, 0x02, 0x90, 0x90, 0xc3}))
      << "jne reads ZF later";
  EXPECT_TRUE(live({0x85, 0xff, 0x0f, 0x1f, 0x44, 0, 0, 0x74, 0x01, 0x90, 0xc3}, 2))
      << "test; nop5; je";
}

TEST(Threads, InsideTheWindowContinueInTheCopy) {
  const auto plan = Module().function(kSite, kPlain).plan(kSite);
  const auto copy = displaced_code(*plan, Module::at(0x100000));
  ASSERT_TRUE(copy);
  const auto moved = [&](uint64_t offset) {
    return rip_after_attach(*plan, segments(*copy), Module::at(kSite + offset), false);
  };
  EXPECT_EQ(*moved(0), Module::at(kSite)) << "at the site itself the jump is next";
  EXPECT_EQ(*moved(1), Module::at(0x100001));
  EXPECT_EQ(*moved(4), Module::at(0x100004));
  EXPECT_EQ(*moved(6), Module::at(kSite + 6));
  EXPECT_EQ(moved(2).error().code, ErrorCode::kUnsafe);
  EXPECT_EQ(rip_after_detach(*copy, Module::at(0x100004))->original, Module::at(kSite + 4));
  EXPECT_EQ(rip_after_detach(*copy, Module::at(0x100006))->original, Module::at(kSite + 6))
      << "at the jump back";
  EXPECT_EQ(rip_after_detach(*copy, Module::at(kSite)), std::nullopt);
}

TEST(Threads, InASystemCallOfTheWindowRestartItInTheCopy) {
  // mov %edi,%edi... ; syscall ends the window
  const auto plan =
      Module()
          .function(kSite, {0x49, 0x89, 0xca, 0x0f, 0x05, 0x48, 0x3d, 0, 0xf0, 0xff, 0xff, 0xc3})
          .plan(kSite);
  ASSERT_TRUE(plan);
  const auto copy = displaced_code(*plan, Module::at(0x100000));
  const TargetAddr behind = Module::at(kSite + 5);
  EXPECT_EQ(*rip_after_attach(*plan, segments(*copy), behind, true), Module::at(0x100005));
  EXPECT_EQ(*rip_after_attach(*plan, segments(*copy), behind, false), behind);
  EXPECT_EQ(rip_after_detach(*copy, Module::at(0x100005))->original, behind);
  EXPECT_EQ(copy->bytes[3], 0x0f) << "the kernel restarts by stepping back two bytes";
  EXPECT_EQ(copy->bytes[4], 0x05);
}

TEST(Threads, InASystemCallThatNopsFollowComeBackRightBehindIt) {
  // The nops are left out of the copy; nop; syscall; nop; nop; ret
  const auto plan = Module().function(kSite, {0x90, 0x0f, 0x05, 0x90, 0x90, 0xc3}).plan(kSite);
  ASSERT_TRUE(plan) << plan.error().reason;
  const auto copy = displaced_code(*plan, Module::at(0x100000));
  const TargetAddr behind = Module::at(kSite + 3);
  const auto moved = rip_after_attach(*plan, segments(*copy), behind, true);
  ASSERT_TRUE(moved);
  EXPECT_EQ(*moved, Module::at(0x100002));
  EXPECT_EQ(rip_after_detach(*copy, *moved)->original, behind)
      << "the kernel steps two bytes back from here";
}

TEST(Threads, InAnInterruptOfTheWindowRestartItInTheCopy) {
  const auto plan =
      Module()
          .function(kSite, {0x49, 0x89, 0xca, 0xcd, 0x80, 0x48, 0x3d, 0, 0xf0, 0xff, 0xff, 0xc3})
          .plan(kSite);
  ASSERT_TRUE(plan) << plan.error().reason;
  const auto copy = displaced_code(*plan, Module::at(0x100000));
  EXPECT_EQ(*rip_after_attach(*plan, segments(*copy), Module::at(kSite + 5), true),
            Module::at(0x100005));
}

TEST(Plan, SizesAndPatchesAgree) {
  const auto plan = Module().function(kSite, {0x53, 0xe8, 0, 0, 0, 0, 0x5b, 0xc3}).plan(kSite);
  ASSERT_TRUE(plan);
  for (const uint64_t detour : {0x100000u, 0x7000000u}) {
    EXPECT_EQ(displaced_code(*plan, Module::at(detour))->bytes.size(),
              *displaced_size_bytes(*plan));
  }
  EXPECT_EQ(x86::hex(*patch_bytes(*plan, Module::at(kSite + 0x105))), "e9 00 01 00 00");
  EXPECT_FALSE(patch_bytes(*plan, TargetAddr(0x1000)));
}

TEST(GoPrologue, IsRecognised) {
  EXPECT_TRUE(is_go_stack_checked(Code{0x49, 0x3b, 0x66, 0x10, 0x76, 0x20}));
  EXPECT_TRUE(is_go_stack_checked(Code{0x4c, 0x8d, 0x64, 0x24, 0x80, 0x4d, 0x3b, 0x66, 0x10}));
  EXPECT_TRUE(is_go_stack_checked(
      Code{0x4c, 0x8d, 0xa4, 0x24, 0, 0xff, 0xff, 0xff, 0x4d, 0x3b, 0x66, 0x10}));
  EXPECT_TRUE(is_go_stack_checked(
      Code{0x64, 0x48, 0x8b, 0x0c, 0x25, 0xf8, 0xff, 0xff, 0xff, 0x48, 0x3b, 0x61, 0x10}));
  EXPECT_FALSE(is_go_stack_checked(kPlain));
  EXPECT_FALSE(is_go_stack_checked(Code{0x49, 0x3b}));
}

/// A nil pointer's fault at a place that Go does not know is its caller's panic, as long as the
/// return address is at the stack pointer.
TEST(GoFaults, MoveOnlyWhereTheStackIsAsAtTheEntry) {
  const auto plan = [](const Code& code, std::string_view name, uint64_t offset = 0) {
    const Module m = Module().function(kSite, code, name);
    ModuleCode module = m.code();
    module.handles_faults_by_address = module.is_go = true;
    return plan_entry(module, m.at(kSite + offset));
  };
  const Code load = {0x48, 0x8b, 0x08, 0x90, 0x90, 0xc3};          // mov (%rax),%rcx
  const Code second = {0x90, 0x48, 0x8b, 0x08, 0x90, 0x90, 0xc3};  // nop; mov (%rax),%rcx
  const Code framed = {0x50, 0x48, 0x8b, 0x08, 0x59, 0x90, 0xc3};  // push; mov (%rax),%rcx; pop
  const Code movs = {0xf3, 0xa4, 0x90, 0x90, 0x90, 0xc3};          // rep movsb
  const Code push = {0xff, 0x30, 0x90, 0x90, 0x90, 0x58, 0xc3};    // push (%rax)
  const Code tls = {0x64, 0x48, 0x8b, 0x0c, 0x25, 0xf8, 0xff, 0xff, 0xff, 0xc3};  // mov %fs:-8,%rcx
  EXPECT_TRUE(plan(load, "main.f"));
  EXPECT_TRUE(plan(second, "main.f"));
  EXPECT_TRUE(plan(movs, "main.f"));
  EXPECT_TRUE(plan(tls, "part"));
  EXPECT_FALSE(plan(load, "part")) << "may be jumped to";
  EXPECT_FALSE(plan(push, "main.f"));
  Code late(80, 0x90);
  late.insert(late.end(), load.begin(), load.end());
  EXPECT_FALSE(plan(late, "main.f", 80)) << "no window that begins at the entry";
  // Behind the push the stack pointer is another: at most the push alone is moved.
  const auto around = plan(framed, "main.f");
  EXPECT_TRUE(!around || around->window.size() == 1);
}

// ---- windows of several probes, and such that begin earlier
// ------------------------------------------------------------------------------------------------

/// Behind five bytes that a call returns to: pop %rbx; pop %rbp; pop %r12; ret
const Code kPops = {0xe8, 0, 0, 0, 0, 0x5b, 0x5d, 0x41, 0x5c, 0xc3};

TEST(Windows, BeginEarlierWhereTheLineIsTooShort) {
  Module m = Module().function(kSite, kPops).put(kSite + 10, {0x06});
  const auto plan = m.plan(kSite + 9);  // the ret, with no padding behind it
  ASSERT_TRUE(plan) << plan.error().reason;
  EXPECT_EQ(plan->site, Module::at(kSite + 5)) << "not before the call's return";
  EXPECT_EQ(x86::hex(plan->window), "5b 5d 41 5c c3");
  ASSERT_EQ(plan->probed.size(), 1u);
  EXPECT_EQ(plan->probed[0].offset, 4);
}

TEST(WindowRule, NeverBeginEarlierThanAnEnteredInstruction) {
  // A branch to the ret would miss the probe; one to a pop before it leaves too few bytes.
  for (const uint64_t entered : {9, 7, 6}) {
    Module m = Module().function(kSite, kPops).put(kSite + 10, {0x06});
    m.function(0x2000, {0xe9, 0, 0, 0, 0}, "g").rel32(0x2001, 0x2005, kSite + entered);
    expect_rule(m, kSite + 9, &PlanRules::direct_branches, RefusalKind::kTooShort);
  }
}

TEST(Windows, CarryTheProbesOfAStraightLine) {
  // Every instruction of kPlain: one window, one segment a head.
  const Module m = Module().function(kSite, kPlain);
  const ModuleCode code = m.code();
  std::vector<TargetAddr> sites;
  for (const uint64_t head : {9, 0, 4, 1, 8, 6}) sites.push_back(m.at(kSite + head));
  const Plans plans = plan_windows(code, sites);
  ASSERT_EQ(plans.sites.size(), 1u);
  EXPECT_EQ(plans.sites[0].window, kPlain);
  EXPECT_EQ(plans.sites[0].segment_starts(), (std::vector<uint8_t>{0, 1, 4, 6, 8, 9}));
  EXPECT_EQ(plans.outcomes[0]->offset, 9);
  EXPECT_FALSE(plans.sites[0].falls_through);
}

TEST(Windows, EndWhereSomethingEnters) {
  // A branch to the instruction at 6: what is before it is a window, it begins another.
  Module m = Module().function(kSite, kPlain);
  m.function(0x2000, {0xe9, 0, 0, 0, 0}, "g").rel32(0x2001, 0x2005, kSite + 6);
  const ModuleCode code = m.code();
  const Plans plans =
      plan_windows(code, std::vector{m.at(kSite), m.at(kSite + 4), m.at(kSite + 6)});
  ASSERT_EQ(plans.sites.size(), 2u);
  EXPECT_EQ(plans.sites[0].window.size(), 6u);
  EXPECT_EQ(plans.sites[1].site, Module::at(kSite + 6));
}

TEST(Windows, EndWithACallAndAreNotLongerThanCanBeMoved) {
  Code code(130, 0x50);
  code[40] = 0xe8;
  std::fill_n(code.begin() + 41, 4, 0);
  const Module m = Module().function(kSite, code);
  const ModuleCode module = m.code();
  std::vector<TargetAddr> sites;
  for (uint64_t i = 0; i < 130; ++i) {
    if (i <= 40 || i > 44) sites.push_back(m.at(kSite + i));
  }
  const Plans plans = plan_windows(module, sites);
  for (const auto& outcome : plans.outcomes) EXPECT_TRUE(outcome);
  ASSERT_EQ(plans.sites.size(), 3u);
  EXPECT_EQ(plans.sites[0].window.size(), 45u) << "the call is the last";
  EXPECT_EQ(plans.sites[1].window.size(), 64u);
  for (const SitePlan& p : plans.sites) EXPECT_TRUE(displaced_code(p, m.at(0x100000)));
}

TEST(WindowRule, AnUnknownJumpLeavesOneInstruction) {
  Code code = {0xb8, 1, 0, 0, 0};  // mov $1,%eax: five bytes
  const Module table = with_switch(kSite);
  const auto short_one = table.plan(kSite, {});
  ASSERT_TRUE(short_one) << short_one.error().reason;
  EXPECT_EQ(short_one->mechanism, Mechanism::kShort) << "push: one byte";
  EXPECT_EQ(short_one->window.size(), 1u);
  const Code tail = {0x48, 0x8d, 0x15, 0,    0,    0,    0,    0x48, 0x63, 0x04,
                     0x82, 0x48, 0x01, 0xd0, 0x3e, 0xff, 0xe0, 0x5d, 0xc3};
  code.insert(code.end(), tail.begin(), tail.end());
  Module m = Module().function(kSite, code);
  m.rel32(kSite + 8, kSite + 12, Module::kRodata - Module::kText);
  const auto long_one = m.plan(kSite);
  ASSERT_TRUE(long_one) << long_one.error().reason;
  EXPECT_EQ(long_one->window.size(), 5u);
  const ModuleCode module = m.code();
  const Plans both = plan_windows(module, std::vector{m.at(kSite), m.at(kSite + 5)});
  EXPECT_EQ(both.sites.size(), 2u) << "the second may be entered by the jump";
}

/// cmpl $0,%fs:0x18; je over the lock; lock cmpxchg %rdi,(%rsi); cmp %rdx,%rax; ret
const Code kLockSkip = {0x64, 0x83, 0x3c, 0x25, 0x18, 0,    0,    0,    0,    0x74,
                        0x01, 0xf0, 0x48, 0x0f, 0xb1, 0x3e, 0x48, 0x39, 0xd0, 0xc3};

TEST(WindowRule, NoProbeBehindAnInstructionThatIsEnteredInside) {
  // Whoever skips the lock runs the original on to the cmp: a probe there in the same window
  // misses.
  const Module m = Module().function(kSite, kLockSkip);
  const ModuleCode module = m.code();
  const Plans plans = plan_windows(
      module, std::vector{m.at(kSite), m.at(kSite + 9), m.at(kSite + 11), m.at(kSite + 16)});
  for (const SitePlan& p : plans.sites) {
    if (p.site == m.at(kSite + 16)) continue;
    EXPECT_LE(p.site + p.probed.back().offset, m.at(kSite + 11)) << p.reason;
  }
  ASSERT_TRUE(plans.outcomes[3]);
  EXPECT_EQ(plans.sites[plans.outcomes[3]->site].site, m.at(kSite + 16));
}

TEST(WindowRule, NoWindowBranchesIntoItself) {
  // pop; je; lock cmpxchg: eight bytes, and the je leads into the last five.
  Code code(kLockSkip.begin() + 9, kLockSkip.end());
  code.insert(code.begin(), {0x41, 0x5c});
  const Module m = Module().function(kSite, code);
  const auto plan = m.plan(kSite, {});
  ASSERT_TRUE(plan) << plan.error().reason;
  EXPECT_TRUE(displaced_code(*plan, m.at(0x100000))) << plan->reason;
  EXPECT_LE(plan->window.size(), 4u);
}

TEST(Windows, RefuseWhatTheJumpOfAnotherOverwrites) {
  // A ret whose jump needs the padding; a probe on the padding.
  const Module m = Module().symbol(kSite, 16, "f").put(kSite, {0xc3});
  const ModuleCode module = m.code();
  const Plans plans = plan_windows(module, std::vector{m.at(kSite), m.at(kSite + 1)});
  EXPECT_TRUE(plans.outcomes[0]);
  ASSERT_FALSE(plans.outcomes[1]);
  EXPECT_EQ(plans.outcomes[1].error().kind, RefusalKind::kOtherSite);
}

TEST(Windows, OfAnEndbrInsideAFunctionBeginBehindIt) {
  const Module m = Module().function(
      kSite, {0x50, 0x58, 0xf3, 0x0f, 0x1e, 0xfa, 0x48, 0x89, 0xe5, 0x5b, 0x5d, 0xc3});
  const auto plan = m.plan(kSite + 2);
  ASSERT_TRUE(plan) << plan.error().reason;
  EXPECT_EQ(plan->site, Module::at(kSite + 6));
}

// ---- short sites
// ------------------------------------------------------------------------------------------------

/// push %rbx; then a loop back to site+1: five bytes are too many.
const Code kLoopToSecond = {0x53, 0x48, 0xff, 0xcf, 0x75, 0xfb, 0x5b, 0xc3};

TEST(ShortSite, ReplacesOnlyTheFirstInstruction) {
  const auto plan = Module().function(kSite, kLoopToSecond).plan(kSite, {});
  ASSERT_TRUE(plan) << plan.error().reason;
  EXPECT_EQ(plan->mechanism, Mechanism::kShort);
  EXPECT_EQ(plan->written, 1);
  EXPECT_EQ(plan->window, Code{0x53});
  EXPECT_TRUE(plan->falls_through);
  EXPECT_FALSE(patch_bytes(*plan, Module::at(0x100000))) << "it needs a placement";
}

TEST(ShortSite, LetsACallReturnBehindItself) {
  const auto plan =
      Module().function(kSite, {0xff, 0xd0, 0x90, 0x58, 0x58, 0x58, 0xc3}).plan(kSite, {});
  ASSERT_TRUE(plan) << plan.error().reason;
  EXPECT_EQ(plan->written, 2);
  EXPECT_FALSE(plan->falls_through);
}

TEST(ShortSite, IsRefusedWhereSomethingEntersTheInstructionItself) {
  // mov %rdi,%rax; jne into the middle of it.
  const Code code = {0x48, 0x89, 0xf8, 0xff, 0xcf, 0x75, 0xfa, 0xc3};
  const auto plan = Module().function(kSite, code).plan(kSite, {});
  ASSERT_FALSE(plan);
  EXPECT_EQ(plan.error().kind, RefusalKind::kDirectBranch);
  EXPECT_FALSE(Module()
                   .function(kSite, kLoopToSecond)
                   .symbol(kSite + 3, 4, "g")
                   .pointer(kSite)
                   .plan(kSite + 1, {}))
      << "a loop may enter at the site, but not where a symbol begins inside";
}

TEST(ShortSite, ChangesOnlyItsFirstPage) {
  const uint64_t last = 0x2000 - 2;
  // mov %rdi,%rax lies on both pages; one byte of it on the first.
  const auto plan =
      Module().function(last, {0x53, 0x48, 0x89, 0xf8, 0x5b, 0x5d, 0xc3}).plan(last, {});
  ASSERT_TRUE(plan) << plan.error().reason;
  EXPECT_EQ(plan->mechanism, Mechanism::kShort);
  EXPECT_EQ(plan->written, 2);
  EXPECT_EQ(plan->window, (Code{0x53, 0x48, 0x89, 0xf8})) << "what its two bytes destroy moves";
}

TEST(ShortSite, IsRefusedForAnInstructionThatCannotMove) {
  const auto plan = Module().function(kSite, {0xcb, 0x58, 0x58, 0x58, 0x58, 0xc3}).plan(kSite, {});
  ASSERT_FALSE(plan);
  EXPECT_EQ(plan.error().kind, RefusalKind::kInstruction);
}

Outcome trap_at(const Module& m, uint64_t offset) {
  const TargetAddr site[] = {Module::at(offset)};
  return plan_traps(m.code(), site).front();
}

TEST(Trap, ChangesOneByteWhereTheInstructionIsEnteredInside) {
  // mov %rdi,%rax; jne into the middle of it: no jump fits.
  const Code code = {0x48, 0x89, 0xf8, 0xff, 0xcf, 0x75, 0xfa, 0xc3};
  const Module m = Module().function(kSite, code);
  ASSERT_FALSE(m.plan(kSite, {}));
  const auto plan = trap_at(m, kSite);
  ASSERT_TRUE(plan) << plan.error().reason;
  EXPECT_EQ(plan->mechanism, Mechanism::kTrap);
  EXPECT_EQ(plan->written, 1);
  EXPECT_EQ(plan->window, (Code{0x48, 0x89, 0xf8}));
  EXPECT_EQ(plan->probed.size(), 1u);
}

TEST(Trap, IsRefusedWhereItsByteIsReadOrNotItsOwn) {
  EXPECT_TRUE(trap_at(Module().function(kSite, kPlain), kSite));
  EXPECT_FALSE(trap_at(Module().function(kSite, kPlain).reserve(kSite, 1, "reserved"), kSite));
  EXPECT_FALSE(trap_at(Module().function(kSite, {0xcc, 0xc3}), kSite)) << "somebody else's";
  EXPECT_FALSE(trap_at(Module().function(kSite, kPlain), kSite + 0x800)) << "no function";
}

TEST(Trap, IsRefusedForAnInstructionThatCannotMove) {
  const auto plan = trap_at(Module().function(kSite, {0xcb, 0xc3}), kSite);
  ASSERT_FALSE(plan);
  EXPECT_EQ(plan.error().kind, RefusalKind::kInstruction);
}

TEST(Trap, IsRefusedInsideAnInstruction) {
  EXPECT_FALSE(trap_at(Module().function(kSite, {0x48, 0x89, 0xf8, 0xc3}), kSite + 1));
}

TEST(Trap, LeavesThreadsBehindTheByteWhereTheyAre) {
  const auto plan = trap_at(Module().function(kSite, kPlain), kSite);
  ASSERT_TRUE(plan);
  const auto copy = displaced_code(*plan, Module::at(0x8000));
  ASSERT_TRUE(copy);
  const TargetAddr behind = Module::at(kSite) + plan->window.size();
  EXPECT_EQ(*rip_after_attach(*plan, segments(*copy), behind, false), behind);
}

TEST(ShortSite, CanBeAskedForWhereAJumpWouldFit) {
  const Module m = Module().function(kSite, kPlain);
  const ModuleCode code = m.code();
  EXPECT_EQ(plan_entry(code, Module::at(kSite))->mechanism, Mechanism::kJump);
  const auto pun = plan_short(code, Module::at(kSite));
  ASSERT_TRUE(pun) << pun.error().reason;
  EXPECT_EQ(pun->mechanism, Mechanism::kShort);
  EXPECT_EQ(pun->heads.size(), 1u);
}

TEST(ShortSite, LeavesThreadsBehindTheInstructionWhereTheyAre) {
  const auto plan = Module().function(kSite, kLoopToSecond).plan(kSite, {});
  ASSERT_TRUE(plan);
  const auto copy = displaced_code(*plan, Module::at(0x100000));
  ASSERT_TRUE(copy);
  for (uint64_t offset : {1, 4, 5}) {
    EXPECT_EQ(*rip_after_attach(*plan, segments(*copy), Module::at(kSite + offset), false),
              Module::at(kSite + offset));
  }
}

}  // namespace
}  // namespace spile::patch
