#include "user_engine/patch/go_stack.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <string_view>

#include "x86/encode.h"

namespace spile::patch {
namespace {

using x86::Code;

/// Functions one after the other, at multiples of 64.
class GoModule {
 public:
  TargetAddr add(std::string_view name, const Code& code) {
    const TargetAddr start = kText + 64 * module_.functions.size();
    std::ranges::copy(code, text_.begin() + static_cast<ptrdiff_t>(start - kText));
    module_.functions.push_back({start, start + code.size(), name});
    return start;
  }
  /// mov-free code that only calls.
  static Code calls(TargetAddr from, TargetAddr to) {
    const auto distance = static_cast<uint32_t>(to - (from + 5));
    Code code = {0xe8};
    for (int i = 0; i < 4; i++) code.push_back(static_cast<uint8_t>(distance >> (8 * i)));
    code.push_back(0xc3);
    return code;
  }
  TargetAddr next() const { return kText + 64 * module_.functions.size(); }

  GoStack at(TargetAddr address, bool has_c_code = false) {
    module_.text = {{kText, text_}};
    return GoStacks(module_, has_c_code).at(address);
  }

 private:
  static constexpr TargetAddr kText{0x401000};
  std::vector<uint8_t> text_ = std::vector<uint8_t>(0x1000, 0xcc);
  ModuleCode module_;
};

const Code kChecked = {
    0x49, 0x3b, 0x66, 0x10,        //  0  cmp 0x10(%r14),%rsp
    0x76, 0x09,                    //  4  jbe 15
    0x48, 0x83, 0xec, 0x10,        //  6  sub $16,%rsp
    0x48, 0x83, 0xc4, 0x10,        // 10  add $16,%rsp
    0xc3,                          // 14  ret
    0xe8, 0x00, 0x01, 0x00, 0x00,  // 15  call morestack
    0xeb, 0xea,                    // 20  jmp 0
};
const Code kUnchecked = {0x31, 0xc0, 0x90, 0xc3};  // xor %eax,%eax; nop; ret
// nop; movdqa (%rax),%xmm15; nop; ret
const Code kFillsVector15 = {0x90, 0x66, 0x44, 0x0f, 0x6f, 0x38, 0x90, 0xc3};

TEST(GoStack, IsSureBehindTheCheckAlone) {
  GoModule m;
  const TargetAddr f = m.add("main.f", kChecked);
  for (const uint64_t behind : {6u, 10u, 14u}) EXPECT_EQ(m.at(f + behind).own_bytes, kGoStackBytes);
  for (const uint64_t elsewhere : {0u, 4u, 15u, 20u}) {
    EXPECT_EQ(m.at(f + elsewhere).own_bytes, 0u) << elsewhere;
    EXPECT_TRUE(m.at(f + elsewhere).may_switch) << elsewhere;
  }
}

TEST(GoStack, IsNotSureWithoutACheck) {
  GoModule m;
  const TargetAddr f = m.add("main.f", kUnchecked);
  EXPECT_EQ(m.at(f).own_bytes, 0u);
  EXPECT_TRUE(m.at(f).may_switch);
}

TEST(GoStack, AConditionalJumpThatIsNoCheckMakesNothingSure) {
  GoModule m;
  Code other = kChecked;
  other[4] = 0x77;  // ja: the sense is turned round
  const TargetAddr f = m.add("main.f", other);
  EXPECT_EQ(m.at(f + 6).own_bytes, 0u);
}

TEST(GoStack, LeavesARegisterAloneThatAssemblyUses) {
  GoModule m;
  const TargetAddr f = m.add("main.f", kFillsVector15);
  EXPECT_TRUE(m.at(f).may_switch) << "entry";
  EXPECT_FALSE(m.at(f + 1).may_switch);
  EXPECT_FALSE(m.at(f + 6).may_switch);
  EXPECT_TRUE(m.at(f + 7).may_switch) << "ret";
  const TargetAddr vex = m.add("main.g", {0x90, 0xc5, 0x79, 0x6f, 0x38, 0x90, 0xc3});
  EXPECT_FALSE(m.at(vex + 5).may_switch) << "vmovdqa (%rax),%xmm15";
}

TEST(GoStack, ZeroIsNothing) {
  GoModule m;
  // xorps %xmm15,%xmm15; movups %xmm15,(%rsp); ret
  const TargetAddr f =
      m.add("main.f", {0x45, 0x0f, 0x57, 0xff, 0x44, 0x0f, 0x11, 0x3c, 0x24, 0xc3});
  EXPECT_TRUE(m.at(f + 4).may_switch);
}

TEST(GoStack, APartOfAssemblyIsAskedWhoComesThere) {
  GoModule m;
  const TargetAddr quiet = m.add("quietbody", kUnchecked), body = m.add("body", kUnchecked);
  m.add("main.f", GoModule::calls(m.next(), quiet));
  Code user = kFillsVector15;
  user.pop_back();
  const Code call = GoModule::calls(m.next() + user.size(), body);
  user.insert(user.end(), call.begin(), call.end());
  m.add("main.g", user);
  EXPECT_TRUE(m.at(quiet).may_switch);
  EXPECT_FALSE(m.at(body).may_switch);
  EXPECT_FALSE(m.at(body + 3).may_switch) << "it may give something back";
  EXPECT_FALSE(m.at(quiet, true).may_switch) << "it may be C";
}

TEST(GoStack, APartThatAPartCallsIsAskedToo) {
  GoModule m;
  const TargetAddr inner = m.add("inner", kUnchecked);
  const TargetAddr outer = m.next();
  m.add("outer", GoModule::calls(outer, inner));
  Code user = kFillsVector15;
  user.pop_back();
  const Code call = GoModule::calls(m.next() + user.size(), outer);
  user.insert(user.end(), call.begin(), call.end());
  m.add("main.g", user);
  EXPECT_FALSE(m.at(inner).may_switch);
}

TEST(GoStack, PreemptionComesWithAllRegistersInUseBefore117) {
  GoModule m;
  const TargetAddr f = m.add("runtime.asyncPreempt", kUnchecked);
  EXPECT_FALSE(m.at(f).may_switch);
  m.add("main.f", kChecked);  // by r14: 1.17 or later
  EXPECT_TRUE(m.at(f).may_switch);
}

TEST(GoStack, NoFunctionNothingSure) {
  GoModule m;
  m.add("main.f", kUnchecked);
  EXPECT_EQ(m.at(TargetAddr(0x401030)).own_bytes, 0u);
  EXPECT_FALSE(m.at(TargetAddr(0x401030)).may_switch);
}

TEST(GoNames, HaveTheirPackage) {
  EXPECT_TRUE(is_go_function("runtime.memmove.abi0"));
  EXPECT_TRUE(is_go_function("time.(*Time).addSec"));
  for (const std::string_view other :
       {"memeqbody", "x_cgo_init", "parse.cold", "copy.part.0", "f.constprop.1", ""}) {
    EXPECT_FALSE(is_go_function(other)) << other;
  }
}

}  // namespace
}  // namespace spile::patch
