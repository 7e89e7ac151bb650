#include "user_engine/patch/exits.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>

namespace spile::patch {
namespace {

using x86::Code;

/// Modules made of bytes; a slot or a landing pad wherever one is named.
class Program : public CodeSource {
 public:
  static constexpr uint64_t kText = 0x7f0000100000, kOther = 0x7f0010000000,
                            kSlots = 0x7f0000200000;

  Program() : text_(0x1000, 0xcc), other_(0x1000, 0xcc) {}

  Program& function(uint64_t offset, const Code& code, std::string_view name) {
    std::ranges::copy(code, text_.begin() + static_cast<ptrdiff_t>(offset));
    functions_.push_back({at(offset), at(offset + code.size()), name});
    return *this;
  }
  Program& other_function(uint64_t offset, const Code& code, std::string_view name) {
    std::ranges::copy(code, other_.begin() + static_cast<ptrdiff_t>(offset));
    other_functions_.push_back({other(offset), other(offset + code.size()), name});
    return *this;
  }
  /// A 32-bit field at `field` that names `target` relative to the byte behind it.
  Program& rel32(uint64_t field, TargetAddr target) {
    const auto value = static_cast<int32_t>(target - at(field + 4));
    std::memcpy(&text_[field], &value, sizeof value);
    return *this;
  }
  Program& slot(uint64_t offset, std::vector<TargetAddr> targets) {
    slots_[kSlots + offset] = std::move(targets);
    return *this;
  }
  /// A word that the program may change.
  Program& variable(uint64_t offset, TargetAddr holds) {
    variables_[kSlots + offset] = holds;
    return *this;
  }
  Program& method(int64_t offset, TargetAddr function) {
    tables_[offset].push_back(function);
    return *this;
  }
  Program& landing_pad(uint64_t function, uint64_t pad) {
    pads_[at(function).value].push_back(at(pad));
    return *this;
  }

  static TargetAddr at(uint64_t offset) { return TargetAddr(kText + offset); }
  static TargetAddr other(uint64_t offset) { return TargetAddr(kOther + offset); }
  static TargetAddr slot_at(uint64_t offset) { return TargetAddr(kSlots + offset); }

  std::expected<Returns, Refusal> find(uint64_t offset) {
    build();
    const TargetAddr function = at(offset);
    return ReturnFinder(*this, *map_, {&function, 1}).find(function);
  }

  const CodeMap* code_at(TargetAddr a) override {
    if (map_->is_text(a)) return map_.get();
    return other_map_->is_text(a) ? other_map_.get() : nullptr;
  }
  std::vector<TargetAddr> slot_targets(TargetAddr a) override { return slots_[a.value]; }
  bool is_loaders_slot(TargetAddr a) override { return !variables_.contains(a.value); }
  std::vector<TargetAddr> pointer_targets(const PointerPath& path) override {
    if (!path.base) return {};
    const auto known = variables_.find(path.base->value);
    return known == variables_.end() || path.offsets != std::vector<int64_t>{0}
               ? std::vector<TargetAddr>{}
               : std::vector{known->second};
  }
  const std::vector<TargetAddr>& table_targets(TargetAddr, int64_t offset) override {
    return tables_[offset];
  }
  std::vector<TargetAddr> landing_pads(TargetAddr a) override { return pads_[a.value]; }

 private:
  static ModuleCode module(uint64_t base, const Code& text, std::vector<Function> functions) {
    std::ranges::stable_sort(functions, {}, &Function::start);
    return {{{TargetAddr(base), text}}, std::move(functions), {}, {}, {}};
  }
  void build() {
    module_ = module(kText, text_, functions_);
    other_module_ = module(kOther, other_, other_functions_);
    map_ = std::make_unique<CodeMap>(module_);
    other_map_ = std::make_unique<CodeMap>(other_module_);
  }

  Code text_, other_;
  std::vector<Function> functions_, other_functions_;
  std::map<uint64_t, std::vector<TargetAddr>> slots_, pads_;
  std::map<uint64_t, TargetAddr> variables_;
  std::map<int64_t, std::vector<TargetAddr>> tables_;
  ModuleCode module_, other_module_;
  std::unique_ptr<CodeMap> map_, other_map_;
};

std::vector<TargetAddr> at(std::initializer_list<uint64_t> offsets) {
  std::vector<TargetAddr> all;
  for (const uint64_t o : offsets) all.push_back(Program::at(o));
  return all;
}

/// xor %eax,%eax; ret
const Code kLeaf = {0x31, 0xc0, 0xc3};
/// inc %eax; jmp rel32 (its field at 3)
const Code kTailJump = {0xff, 0xc0, 0xe9, 0, 0, 0, 0};

// ---- plain functions
// ------------------------------------------------------------------------------------------

TEST(Exits, AFunctionThatEndsInItsOwnReturnsIsPlain) {
  // test %edi,%edi; je 1f; ret; 1: repz ret
  Program p;
  p.function(0x10, {0x85, 0xff, 0x74, 0x01, 0xc3, 0xf3, 0xc3}, "f");
  const auto returns = p.find(0x10);
  ASSERT_TRUE(returns) << returns.error().reason;
  EXPECT_TRUE(returns->plain);
  EXPECT_EQ(returns->rets, at({0x14, 0x15}));
  EXPECT_EQ(returns->describe(), "2 returns");
}

TEST(Exits, RetWithAnOperandIsAReturn) {
  Program p;
  p.function(0x10, {0xc2, 0x10, 0x00}, "f");
  ASSERT_TRUE(p.find(0x10));
  EXPECT_EQ(p.find(0x10)->rets, at({0x10}));
}

TEST(Exits, AColdPartBelongsToItsFunction) {
  // f: jmp f.cold; ret     f.cold: ret; jmp f+5
  Program p;
  p.function(0x10, {0xe9, 0, 0, 0, 0, 0xc3}, "f").rel32(0x11, Program::at(0x100));
  p.function(0x100, {0xc3, 0xe9, 0, 0, 0, 0}, "f.cold").rel32(0x102, Program::at(0x15));
  const auto returns = p.find(0x10);
  ASSERT_TRUE(returns) << returns.error().reason;
  EXPECT_TRUE(returns->plain);
  EXPECT_EQ(returns->rets, at({0x15, 0x100}));
}

TEST(Exits, AColdPartMayHaveTheNameOfAnAlias) {
  Program p;
  p.function(0x10, {0xe9, 0, 0, 0, 0}, "f").function(0x10, {0xe9, 0, 0, 0, 0}, "old_f");
  p.rel32(0x11, Program::at(0x100)).function(0x100, {0xc3}, "old_f.cold");
  ASSERT_TRUE(p.find(0x10)) << p.find(0x10).error().reason;
  EXPECT_TRUE(p.find(0x10)->plain);
}

TEST(Exits, AFunctionThatIsCalledOrEnteredAtItsStartStaysPlain) {
  Program p;
  p.function(0x10, kLeaf, "f");
  p.function(0x100, kTailJump, "g").rel32(0x103, Program::at(0x10));
  ASSERT_TRUE(p.find(0x10));
  EXPECT_TRUE(p.find(0x10)->plain) << "g jumps to its start: that is a call of f";
}

TEST(Exits, ALoopToTheEntryIsNoTailJump) {
  // dec %edi; jne f; ret
  Program p;
  p.function(0x10, {0xff, 0xcf, 0x75, 0xfc, 0xc3}, "f");
  ASSERT_TRUE(p.find(0x10));
  EXPECT_TRUE(p.find(0x10)->plain);
}

TEST(Exits, ACallAtTheEndDoesNotComeBack) {
  // test %edi,%edi; je 1f; ret; 1: call abort       next function right behind
  Program p;
  p.function(0x10, {0x85, 0xff, 0x74, 0x01, 0xc3, 0xe8, 0, 0, 0, 0}, "f")
      .rel32(0x16, Program::at(0x100));
  p.function(0x1a, kLeaf, "next").function(0x100, {0x0f, 0x0b}, "abort");
  ASSERT_TRUE(p.find(0x10));
  EXPECT_TRUE(p.find(0x10)->plain);
  EXPECT_EQ(p.find(0x10)->rets, at({0x14}));
}

// ---- tracked functions
// ----------------------------------------------------------------------------------------

TEST(Exits, ATailJumpIsFollowedToTheReturnsOfItsTarget) {
  Program p;
  p.function(0x10, kTailJump, "f").rel32(0x13, Program::at(0x100));
  p.function(0x100, kTailJump, "g").rel32(0x103, Program::at(0x200));
  p.function(0x200, kLeaf, "h");
  const auto returns = p.find(0x10);
  ASSERT_TRUE(returns) << returns.error().reason;
  EXPECT_FALSE(returns->plain);
  EXPECT_EQ(returns->rets, at({0x202}));
  EXPECT_EQ(returns->describe(), "2 tail jumps to g, h");
}

TEST(Exits, AConditionalTailJumpLeavesTheFunctionToo) {
  // test %edi,%edi; je g; ret
  Program p;
  p.function(0x10, {0x85, 0xff, 0x0f, 0x84, 0, 0, 0, 0, 0xc3}, "f").rel32(0x14, Program::at(0x100));
  p.function(0x100, kLeaf, "g");
  const auto returns = p.find(0x10);
  ASSERT_TRUE(returns) << returns.error().reason;
  EXPECT_FALSE(returns->plain);
  EXPECT_EQ(returns->rets, at({0x18, 0x102}));
  EXPECT_EQ(returns->describe(), "1 return, 1 tail jump to g");
}

TEST(Exits, ATailJumpThroughTheLinkageTableGoesIntoAnotherModule) {
  // f: jmp stub     stub: endbr64; jmp *slot(%rip)
  Program p;
  p.function(0x10, kTailJump, "f").rel32(0x13, Program::at(0x300));
  p.function(0x300, {0xf3, 0x0f, 0x1e, 0xfa, 0xff, 0x25, 0, 0, 0, 0}, "");
  p.rel32(0x306, Program::slot_at(0x18)).slot(0x18, {Program::other(0x40)});
  p.other_function(0x40, kLeaf, "elsewhere");
  const auto returns = p.find(0x10);
  ASSERT_TRUE(returns) << returns.error().reason;
  EXPECT_FALSE(returns->plain);
  EXPECT_EQ(returns->rets, std::vector{Program::other(0x42)});
}

TEST(Exits, AnUnboundSlotIsFollowedToEveryCandidate) {
  // f: jmp *slot(%rip)
  Program p;
  p.function(0x10, {0xff, 0x25, 0, 0, 0, 0}, "f").rel32(0x12, Program::slot_at(0));
  p.slot(0, {Program::other(0x40), Program::at(0x100)});
  p.other_function(0x40, kLeaf, "a").function(0x100, kLeaf, "b");
  const auto returns = p.find(0x10);
  ASSERT_TRUE(returns) << returns.error().reason;
  EXPECT_EQ(returns->rets, (std::vector{Program::at(0x102), Program::other(0x42)}));
}

TEST(Exits, AFunctionWhoseMiddleOthersJumpToIsTracked) {
  Program p;
  p.function(0x10, {0x90, 0x90, 0x31, 0xc0, 0xc3}, "f");
  p.function(0x100, kTailJump, "g").rel32(0x103, Program::at(0x12));
  const auto returns = p.find(0x10);
  ASSERT_TRUE(returns) << returns.error().reason;
  EXPECT_FALSE(returns->plain) << "its ret is that of g too";
}

TEST(Exits, AFunctionThatRunsIntoTheNextOneReturnsThere) {
  // inc %eax; then padding; then g
  Program p;
  p.function(0x10, {0xff, 0xc0}, "f");
  p.function(0x20, kLeaf, "g");
  ASSERT_TRUE(p.find(0x10)) << p.find(0x10).error().reason;
  EXPECT_FALSE(p.find(0x10)->plain);
  EXPECT_EQ(p.find(0x10)->rets, at({0x22}));
}

TEST(Exits, AFunctionWithSubroutinesInsideIsTracked) {
  // call 1f; ret; 1: xor %eax,%eax; ret
  Program p;
  p.function(0x10, {0xe8, 0x01, 0, 0, 0, 0xc3, 0x31, 0xc0, 0xc3}, "f");
  ASSERT_TRUE(p.find(0x10)) << p.find(0x10).error().reason;
  EXPECT_FALSE(p.find(0x10)->plain) << "its second ret returns to itself";
}

TEST(Exits, AskingForTheOwnAddressIsNoCall) {
  // call +0; pop %rax; ret
  Program p;
  p.function(0x10, {0xe8, 0, 0, 0, 0, 0x58, 0xc3}, "f");
  ASSERT_TRUE(p.find(0x10)) << p.find(0x10).error().reason;
  EXPECT_TRUE(p.find(0x10)->plain);
}

TEST(Exits, AStrippedColdPartIsFoundThroughItsLandingPads) {
  Program p;
  p.function(0x10, kLeaf, "f");
  p.function(0x100, {0x31, 0xc0, 0xc3}, "");
  p.landing_pad(0x10, 0x100);
  ASSERT_TRUE(p.find(0x10));
  EXPECT_EQ(p.find(0x10)->rets, at({0x12, 0x102}));
  EXPECT_FALSE(p.find(0x10)->plain);
}

TEST(Exits, JumpsToFunctionsThatCanBeCalledAreWatched) {
  Program p;
  p.function(0x10, kTailJump, "f").rel32(0x13, Program::at(0x100));
  p.function(0x100, kTailJump, "g").rel32(0x103, Program::at(0x200));
  p.function(0x200, kLeaf, "h");
  const auto returns = p.find(0x10);
  ASSERT_TRUE(returns) << returns.error().reason;
  EXPECT_EQ(returns->arrivals, at({0x100, 0x200}));
  EXPECT_EQ(returns->jumps, at({0x12, 0x102}));
}

TEST(Exits, AJumpThroughTheLinkageTableIsWatchedWhereItLeaves) {
  Program p;
  p.function(0x10, kTailJump, "f").rel32(0x13, Program::at(0x300));
  p.function(0x300, {0xff, 0x25, 0, 0, 0, 0}, "");
  p.rel32(0x302, Program::slot_at(0x18)).slot(0x18, {Program::other(0x40)});
  p.other_function(0x40, kLeaf, "elsewhere");
  const auto returns = p.find(0x10);
  ASSERT_TRUE(returns) << returns.error().reason;
  EXPECT_EQ(returns->arrivals, std::vector{Program::other(0x40)});
  EXPECT_EQ(returns->jumps, at({0x12}));
}

TEST(Exits, EntriesThatAreReachedOtherwiseTooAreNotWatched) {
  // g is run into by f; h loops to its own start: dec %eax; jne h; ret
  Program p;
  p.function(0x10, {0xff, 0xc0}, "f").function(0x20, kTailJump, "g");
  p.rel32(0x23, Program::at(0x100)).function(0x100, {0xff, 0xc8, 0x75, 0xfc, 0xc3}, "h");
  const auto returns = p.find(0x10);
  ASSERT_TRUE(returns) << returns.error().reason;
  EXPECT_TRUE(returns->arrivals.empty()) << "what is alive would be dropped";
  EXPECT_TRUE(returns->jumps.empty());
}

TEST(Exits, ACallThatAJumpLeadsBackIsAnnouncedAtTheEntry) {
  // f: test; je g; ret     g: jmp f
  Program p;
  p.function(0x10, {0x85, 0xff, 0x0f, 0x84, 0, 0, 0, 0, 0xc3}, "f").rel32(0x14, Program::at(0x100));
  p.function(0x100, kTailJump, "g").rel32(0x103, Program::at(0x10));
  const auto returns = p.find(0x10);
  ASSERT_TRUE(returns) << returns.error().reason;
  EXPECT_TRUE(returns->reenters);
  EXPECT_EQ(returns->arrivals, at({0x100}));
  EXPECT_EQ(returns->jumps, at({0x12, 0x102}));
}

TEST(Exits, AnEntryThatIsReachedOtherwiseTooIsNotReentered) {
  // f: dec %edi; jne f; jmp g     g: jmp f
  Program p;
  p.function(0x10, {0xff, 0xcf, 0x75, 0xfc, 0xe9, 0, 0, 0, 0}, "f").rel32(0x15, Program::at(0x100));
  p.function(0x100, {0x85, 0xff, 0x0f, 0x84, 0, 0, 0, 0, 0xc3}, "g")
      .rel32(0x104, Program::at(0x10));
  ASSERT_TRUE(p.find(0x10)) << p.find(0x10).error().reason;
  EXPECT_FALSE(p.find(0x10)->reenters);
}

// ---- pointers
// -------------------------------------------------------------------------------------------------

/// test %edi,%edi; je 1f; mov variable(%rip),%rax; jmp *%rax; 1: ret      (its field at 7)
const Code kHook = {0x85, 0xff, 0x74, 0x09, 0x48, 0x8b, 0x05, 0, 0, 0, 0, 0xff, 0xe0, 0xc3};

TEST(Exits, AHookIsFollowedToWhatItHoldsAndWatched) {
  Program p;
  p.function(0x10, kHook, "f").rel32(0x17, Program::slot_at(8)).variable(8, Program::at(0x100));
  p.function(0x100, kLeaf, "g");
  const auto returns = p.find(0x10);
  ASSERT_TRUE(returns) << returns.error().reason;
  EXPECT_FALSE(returns->plain);
  EXPECT_EQ(returns->rets, at({0x1d, 0x102}));
  EXPECT_EQ(returns->leaves, at({0x1b}));
  EXPECT_EQ(returns->arrivals, at({0x100}));
  EXPECT_TRUE(returns->jumps.empty()) << "leaving announces";
  ASSERT_EQ(returns->known.size(), 2u);
  EXPECT_TRUE(returns->known[0].contains(Program::at(0x10)));
  EXPECT_TRUE(returns->known[1].contains(Program::at(0x100)));
  EXPECT_EQ(returns->describe(), "1 return, 1 tail jump to g, 1 jump through a pointer");
}

TEST(Exits, AHookThatHoldsWhatCannotBeFollowedIsOnlyWatched) {
  Program p;
  p.function(0x10, kHook, "f").rel32(0x17, Program::slot_at(8)).variable(8, Program::at(0x100));
  p.function(0x100, {0x50, 0xc3}, "jumps_by_ret");
  const auto returns = p.find(0x10);
  ASSERT_TRUE(returns) << returns.error().reason;
  EXPECT_EQ(returns->rets, at({0x1d}));
  EXPECT_EQ(returns->leaves, at({0x1b}));
  ASSERT_EQ(returns->known.size(), 1u) << "what it holds is not among them";
}

TEST(Exits, AWordThatTheProgramMayChangeIsAPointerToo) {
  // f: test %edi,%edi; je 1f; jmp *variable(%rip); 1: ret
  Program p;
  p.function(0x10, {0x85, 0xff, 0x74, 0x06, 0xff, 0x25, 0, 0, 0, 0, 0xc3}, "f");
  p.rel32(0x16, Program::slot_at(8)).variable(8, Program::at(0x100)).function(0x100, kLeaf, "g");
  const auto returns = p.find(0x10);
  ASSERT_TRUE(returns) << returns.error().reason;
  EXPECT_EQ(returns->rets, at({0x1a, 0x102}));
  EXPECT_EQ(returns->leaves, at({0x14}));
}

TEST(Exits, AFunctionThatIsOnlyAHookIsWatchedWhereItJumps) {
  // f: jmp hook    hook: jmp *variable(%rip)
  Program p;
  p.function(0x10, kTailJump, "f").rel32(0x13, Program::at(0x300));
  p.function(0x300, {0xff, 0x25, 0, 0, 0, 0}, "hook").rel32(0x302, Program::slot_at(8));
  p.variable(8, Program::other(0x40)).other_function(0x40, kLeaf, "elsewhere");
  const auto returns = p.find(0x10);
  ASSERT_TRUE(returns) << returns.error().reason;
  EXPECT_EQ(returns->rets, std::vector{Program::other(0x42)});
  EXPECT_EQ(returns->leaves, at({0x300}));
}

TEST(Exits, MethodsAreGuessedWhereNothingElseIsKnown) {
  // mov (%rdi),%rax; jmp *0x18(%rax)
  Program p;
  p.function(0x10, {0x48, 0x8b, 0x07, 0xff, 0x60, 0x18}, "f");
  p.function(0x100, kLeaf, "a").function(0x200, kLeaf, "b").function(0x300, {0x50, 0xc3}, "odd");
  p.method(0x18, Program::at(0x300)).method(0x18, Program::at(0x100));
  p.method(0x20, Program::at(0x200));
  const auto returns = p.find(0x10);
  ASSERT_TRUE(returns) << returns.error().reason;
  EXPECT_EQ(returns->rets, at({0x102})) << "what cannot be followed is left out";
  EXPECT_EQ(returns->leaves, at({0x13}));
}

TEST(Exits, MethodsAreNotGuessedBesideAReturnOfItsOwn) {
  // test %edi,%edi; je 1f; mov (%rdi),%rax; jmp *0x18(%rax); 1: ret
  Program p;
  p.function(0x10, {0x85, 0xff, 0x74, 0x06, 0x48, 0x8b, 0x07, 0xff, 0x60, 0x18, 0xc3}, "f");
  p.function(0x100, kLeaf, "a").method(0x18, Program::at(0x100));
  ASSERT_TRUE(p.find(0x10)) << p.find(0x10).error().reason;
  EXPECT_EQ(p.find(0x10)->rets, at({0x1a}));
}

TEST(Exits, AJumpAtTheEntrysDepthInsideAFunctionIsWatched) {
  // add %rdi,%rcx; jmp *%rcx; nop; ret
  Program p;
  p.function(0x10, {0x48, 0x01, 0xf9, 0xff, 0xe1, 0x90, 0xc3}, "f");
  const auto returns = p.find(0x10);
  ASSERT_TRUE(returns) << returns.error().reason;
  EXPECT_EQ(returns->leaves, at({0x13}));
  EXPECT_TRUE(returns->known.at(0).contains(Program::at(0x16))) << "it may stay inside";
}

// ---- refusals
// -------------------------------------------------------------------------------------------------

void expect_refused(Program& p, RefusalKind kind, const char* reason) {
  const auto returns = p.find(0x10);
  ASSERT_FALSE(returns);
  EXPECT_EQ(returns.error().kind, kind) << returns.error().reason;
  EXPECT_NE(returns.error().reason.find(reason), std::string::npos) << returns.error().reason;
}

/// Where it goes is seen when it runs.
void expect_open(Program& p, TargetAddr leave) {
  const auto returns = p.find(0x10);
  ASSERT_TRUE(returns) << returns.error().reason;
  EXPECT_FALSE(returns->plain);
  EXPECT_TRUE(returns->rets.empty());
  EXPECT_EQ(returns->leaves, std::vector{leave});
  EXPECT_EQ(returns->open_leaves, 1u);
}

TEST(Exits, TakesAFunctionThatOnlyLeavesThroughAPointer) {
  // mov (%rdi),%rax; jmp *0x18(%rax)
  Program p;
  p.function(0x10, {0x48, 0x8b, 0x07, 0xff, 0x60, 0x18}, "f");
  expect_open(p, Program::at(0x13));
}

TEST(Exits, TakesTheSameInAFunctionThatATailJumpLeadsTo) {
  Program p;
  p.function(0x10, kTailJump, "f").rel32(0x13, Program::at(0x100));
  p.function(0x100, {0xff, 0xe0}, "g");
  expect_open(p, Program::at(0x100));
}

TEST(Exits, RefusesAJumpThroughAPointerOnAnotherStack) {
  // mov %rdi,%rsp; jmp *%rsi: a longjmp. Where the return address is, is not known.
  Program p;
  p.function(0x10, {0x48, 0x89, 0xfc, 0xff, 0xe6}, "f");
  const auto returns = p.find(0x10);
  ASSERT_FALSE(returns);
  EXPECT_NE(returns.error().kind, RefusalKind::kTooShort) << returns.error().reason;
}

TEST(Exits, AnIndirectJumpWithAFrameStaysInTheFunction) {
  // push %rbp; mov %rsp,%rbp; sub $8,%rsp; jmp *%rax; leave; ret
  Program p;
  p.function(0x10, {0x55, 0x48, 0x89, 0xe5, 0x48, 0x83, 0xec, 0x08, 0xff, 0xe0, 0xc9, 0xc3}, "f");
  ASSERT_TRUE(p.find(0x10)) << p.find(0x10).error().reason;
  EXPECT_TRUE(p.find(0x10)->plain);
}

TEST(Exits, AnIndirectJumpBehindTheEpilogueLeavesTheFunction) {
  // push %rbp; mov %rsp,%rbp; leave; jmp *%rax
  Program p;
  p.function(0x10, {0x55, 0x48, 0x89, 0xe5, 0xc9, 0xff, 0xe0}, "f");
  expect_open(p, Program::at(0x15));
}

TEST(Exits, RefusesAReturnThatPopsWhatWasPushed) {
  // push %rax; ret
  Program p;
  p.function(0x10, {0x50, 0xc3}, "f");
  expect_refused(p, RefusalKind::kInstruction, "pops what the function pushed");
}

TEST(Exits, RefusesAThunkThatReturnsToItsArgument) {
  // f: jmp thunk     thunk: call 2f; 1: pause; jmp 1b; 2: mov %rax,(%rsp); ret
  Program p;
  p.function(0x10, kTailJump, "f").rel32(0x13, Program::at(0x100));
  p.function(0x100, {0xe8, 0x04, 0, 0, 0, 0xf3, 0x90, 0xeb, 0xfc, 0x48, 0x89, 0x04, 0x24, 0xc3},
             "__x86_indirect_thunk_rax");
  expect_refused(p, RefusalKind::kInstruction, "it is a jump");
}

TEST(Exits, RefusesAFunctionThatSwitchesStacks) {
  // mov 0x30(%rdi),%rsp; ret
  Program p;
  p.function(0x10, {0x48, 0x8b, 0x67, 0x30, 0xc3}, "f");
  expect_refused(p, RefusalKind::kInstruction, "another stack");
}

TEST(Exits, RestoringTheStackPointerFromTheOwnFrameIsNoSwitch) {
  // push %rbp; mov %rsp,%rbp; sub %rdi,%rsp; mov -0x10(%rbp),%rsp; leave; ret
  Program p;
  p.function(0x10, {0x55, 0x48, 0x89, 0xe5, 0x48, 0x29, 0xfc, 0x48, 0x8b, 0x65, 0xf0, 0xc9, 0xc3},
             "f");
  ASSERT_TRUE(p.find(0x10)) << p.find(0x10).error().reason;
  EXPECT_TRUE(p.find(0x10)->plain);
}

TEST(Exits, RefusesWhatDoesNotDecode) {
  Program p;
  p.function(0x10, {0x06, 0xc3}, "f");
  expect_refused(p, RefusalKind::kUndecodable, "does not decode");
}

TEST(Exits, RefusesAFunctionThatNeverReturns) {
  Program p;
  p.function(0x10, {0x0f, 0x0b}, "f");
  expect_refused(p, RefusalKind::kTooShort, "never returns");
}

TEST(Exits, RefusesAJumpToWhereNoFunctionIsKnown) {
  Program p;
  p.function(0x10, kTailJump, "f").rel32(0x13, Program::at(0x500));
  expect_refused(p, RefusalKind::kNoFunction, "no function is known");
}

TEST(Exits, RefusesASlotWithoutAKnownTarget) {
  Program p;
  p.function(0x10, {0xff, 0x25, 0, 0, 0, 0}, "f").rel32(0x12, Program::slot_at(0));
  expect_refused(p, RefusalKind::kUnknownJump, "is not known");
}

TEST(Exits, RefusesASlotThatHoldsNoFunction) {
  Program p;
  p.function(0x10, {0xff, 0x25, 0, 0, 0, 0}, "f").rel32(0x12, Program::slot_at(0));
  p.slot(0, {Program::other(0x42)}).other_function(0x40, {0x90, 0x90, 0x90, 0xc3}, "a");
  expect_refused(p, RefusalKind::kUnknownJump, "is not known");
}

TEST(Exits, RefusesAWayOutInsideAnotherInstruction) {
  // je into the middle of mov $0xc3,%eax: b8 c3 00 00 00
  Program p;
  p.function(0x10, {0x74, 0x01, 0xb8, 0xc3, 0x00, 0x00, 0x00, 0xc3}, "f");
  expect_refused(p, RefusalKind::kUndecodable, "inside another instruction");
}

}  // namespace
}  // namespace spile::patch
