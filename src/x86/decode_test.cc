#include "x86/decode.h"

#include <gtest/gtest.h>

#include <vector>

namespace spile::x86 {
namespace {

using Bytes = std::vector<uint8_t>;

Insn decoded(const Bytes& bytes) {
  const auto insn = decode(bytes);
  EXPECT_TRUE(insn.has_value());
  return insn.value_or(Insn{});
}

struct KindCase {
  const char* text;
  Bytes bytes;
  Kind kind;
};

class DecodeKind : public testing::TestWithParam<KindCase> {};

TEST_P(DecodeKind, NamesWhatMattersToMovers) {
  const auto shape = decode_shape(GetParam().bytes);
  ASSERT_TRUE(shape) << GetParam().text;
  EXPECT_EQ(shape->length, GetParam().bytes.size());
  EXPECT_EQ(shape->kind, GetParam().kind) << GetParam().text << " is " << to_string(shape->kind);
}

INSTANTIATE_TEST_SUITE_P(
    Table,
    DecodeKind,
    testing::Values(
        KindCase{"push %rbp", {0x55}, Kind::kPlain},
        KindCase{"nop", {0x90}, Kind::kNop},
        KindCase{"xchg %eax,%eax long form clears the upper half", {0x87, 0xc0}, Kind::kPlain},
        KindCase{"nopl 0(%rax,%rax)", {0x0f, 0x1f, 0x44, 0x00, 0x00}, Kind::kNop},
        KindCase{"data16 cs nopw", {0x66, 0x2e, 0x0f, 0x1f, 0x84, 0, 0, 0, 0, 0}, Kind::kNop},
        KindCase{"a reserved nop that faults", {0x0f, 0x0d, 0xee}, Kind::kPlain},
        KindCase{"a reserved nop that CET uses", {0x0f, 0x1e, 0xc0}, Kind::kPlain},
        KindCase{"pause", {0xf3, 0x90}, Kind::kPlain},
        KindCase{"xchg %rax,%r8", {0x49, 0x90}, Kind::kPlain},
        KindCase{"endbr64", {0xf3, 0x0f, 0x1e, 0xfa}, Kind::kEndbr},
        KindCase{"call", {0xe8, 0, 0, 0, 0}, Kind::kCall},
        KindCase{"call *%rax", {0xff, 0xd0}, Kind::kCallIndirect},
        KindCase{"call *8(%rsp)", {0xff, 0x54, 0x24, 0x08}, Kind::kCallIndirect},
        KindCase{"jmp rel8", {0xeb, 0x00}, Kind::kJmp},
        KindCase{"jmp rel32", {0xe9, 0, 0, 0, 0}, Kind::kJmp},
        KindCase{"bnd jmp", {0xf2, 0xe9, 0, 0, 0, 0}, Kind::kJmp},
        KindCase{"notrack jmp *%rax", {0x3e, 0xff, 0xe0}, Kind::kJmpIndirect},
        KindCase{"jmp *x(%rip)", {0xff, 0x25, 0, 0, 0, 0}, Kind::kJmpIndirect},
        KindCase{"je rel8", {0x74, 0x00}, Kind::kJcc},
        KindCase{"jg rel32", {0x0f, 0x8f, 0, 0, 0, 0}, Kind::kJcc},
        KindCase{
            "switch of a tracepoint, off", {0x0f, 0x1f, 0x84, 0xe9, 1, 0, 0, 0}, Kind::kSwitch},
        KindCase{"nopl 1(%rax,%rax)", {0x0f, 0x1f, 0x84, 0x00, 1, 0, 0, 0}, Kind::kNop},
        KindCase{"loop", {0xe2, 0x00}, Kind::kLoop},
        KindCase{"jecxz", {0x67, 0xe3, 0x00}, Kind::kLoop},
        KindCase{"jrcxz", {0xe3, 0x00}, Kind::kLoop},
        KindCase{"xbegin", {0xc7, 0xf8, 0, 0, 0, 0}, Kind::kXbegin},
        KindCase{"ret", {0xc3}, Kind::kRet},
        KindCase{"rep ret", {0xf3, 0xc3}, Kind::kRet},
        KindCase{"ret $8", {0xc2, 0x08, 0x00}, Kind::kRet},
        KindCase{"retf", {0xcb}, Kind::kFar},
        KindCase{"iretq", {0x48, 0xcf}, Kind::kFar},
        KindCase{"sysret", {0x48, 0x0f, 0x07}, Kind::kFar},
        KindCase{"ljmp *(%rax)", {0xff, 0x28}, Kind::kFar},
        KindCase{"lcall *(%rax)", {0xff, 0x18}, Kind::kFar},
        KindCase{"syscall", {0x0f, 0x05}, Kind::kSyscall},
        KindCase{"int $0x80", {0xcd, 0x80}, Kind::kInterrupt},
        KindCase{"int3", {0xcc}, Kind::kBreakpoint},
        KindCase{"int $3", {0xcd, 0x03}, Kind::kBreakpoint},
        KindCase{"ud2", {0x0f, 0x0b}, Kind::kTrap},
        KindCase{"hlt", {0xf4}, Kind::kTrap},
        KindCase{"int1", {0xf1}, Kind::kTrap},
        KindCase{"rdsspq %rax", {0xf3, 0x48, 0x0f, 0x1e, 0xc8}, Kind::kShadowStack},
        KindCase{"saveprevssp", {0xf3, 0x0f, 0x01, 0xea}, Kind::kShadowStack},
        KindCase{"vmovdqu64 (%rsi),%zmm31", {0x62, 0x61, 0xfe, 0x48, 0x6f, 0x3e}, Kind::kPlain},
        KindCase{"xend", {0x0f, 0x01, 0xd5}, Kind::kPlain}));

TEST(Decode, RefusesWhatIsNoInstruction) {
  EXPECT_FALSE(decode_shape(Bytes{0x06}));                    // push %es: not in 64-bit mode
  EXPECT_FALSE(decode_shape(Bytes{0xd5, 0x00, 0x90, 0x90}));  // REX2, or aad in 32-bit mode
  EXPECT_FALSE(decode_shape(Bytes{0xe8, 0x00}));              // cut off
  EXPECT_FALSE(decode_shape(Bytes{}));
  EXPECT_FALSE(decode_shape(Bytes(16, 0x66)));
}

TEST(Decode, FindsRipRelativeOperandsAndTheirDisplacement) {
  // cmpl $0x11223344, 0x55667788(%rip): the displacement is not last
  const Insn cmp = decoded({0x81, 0x3d, 0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11});
  EXPECT_TRUE(cmp.rip_relative);
  EXPECT_EQ(cmp.disp_offset, 2);
  EXPECT_EQ(cmp.disp_bytes, 4);
  EXPECT_EQ(cmp.rip_target(TargetAddr(0x1000)), TargetAddr(0x1000 + 10 + 0x55667788));
  EXPECT_EQ(cmp.imm_offset, 6);
  EXPECT_TRUE(cmp.has_memory);
  EXPECT_EQ(cmp.memory_bytes, 4);
  const Insn lea = decoded({0x48, 0x8d, 0x05, 0xf9, 0xff, 0xff, 0xff});
  EXPECT_EQ(lea.rip_target(TargetAddr(0x1000)), TargetAddr(0x1000));
  EXPECT_FALSE(lea.has_memory);
  // the same ModRM bits mean r13 + disp8 with mod 1
  EXPECT_FALSE(decoded({0x41, 0x8b, 0x45, 0x00}).rip_relative);
}

TEST(Decode, KnowsWhereASwitchLeadsWhenItIsOn) {
  const Insn off = decoded({0x0f, 0x1f, 0x84, 0xe9, 0x10, 0, 0, 0});
  EXPECT_EQ(off.branch_target(TargetAddr(0x1000)), TargetAddr(0x1018));
  EXPECT_TRUE(off.is_direct_branch());
  EXPECT_FALSE(off.has_memory);
  const Insn on = decoded({0xe9, 0x10, 0, 0, 0});  // behind 0f 1f 00
  EXPECT_EQ(on.branch_target(TargetAddr(0x1003)), TargetAddr(0x1018));
}

TEST(Decode, FindsBranchTargetsForwardAndBackward) {
  EXPECT_EQ(decoded({0xeb, 0xfe}).branch_target(TargetAddr(0x1000)), TargetAddr(0x1000));
  EXPECT_EQ(decoded({0x0f, 0x84, 0xfa, 0xff, 0xff, 0xff}).branch_target(TargetAddr(0x1000)),
            TargetAddr(0x1000));
  EXPECT_EQ(decoded({0xe8, 0x10, 0, 0, 0}).branch_target(TargetAddr(0x1000)), TargetAddr(0x1015));
  EXPECT_EQ(decoded({0xc7, 0xf8, 0x01, 0, 0, 0}).branch_target(TargetAddr(0x1000)),
            TargetAddr(0x1007));
}

TEST(Decode, FindsTheOpcodeBehindPrefixes) {
  const Insn jmp = decoded({0xf2, 0xe9, 0, 0, 0, 0});
  EXPECT_EQ(jmp.opcode, 0xe9);
  EXPECT_EQ(jmp.opcode_offset, 1);
  const Insn jcc = decoded({0x2e, 0x0f, 0x85, 0, 0, 0, 0});
  EXPECT_EQ(jcc.opcode, 0x85);
  EXPECT_EQ(jcc.map, 1);
  EXPECT_EQ(jcc.opcode_offset, 2);
  const Insn rex = decoded({0x41, 0xff, 0xd3});
  EXPECT_EQ(rex.rex, 0x41);
  EXPECT_EQ(rex.modrm_offset, 2);
  EXPECT_EQ(rex.modrm, 0xd3);
}

TEST(Decode, KnowsRegistersReadAndWritten) {
  const Insn add = decoded({0x48, 0x01, 0xc8});  // add %rcx,%rax
  EXPECT_EQ(add.reads, 1 << kRax | 1 << kRcx);
  EXPECT_EQ(add.writes, 1 << kRax);
  EXPECT_EQ(add.overwrites, 1 << kRax);
  const Insn byte = decoded({0xb0, 0x01});  // mov $1,%al
  EXPECT_EQ(byte.writes, 1 << kRax);
  EXPECT_EQ(byte.overwrites, 0);
  const Insn cmov = decoded({0x48, 0x0f, 0x44, 0xc1});  // cmove %rcx,%rax
  EXPECT_EQ(cmov.overwrites, 0);
  EXPECT_EQ(cmov.writes, 1 << kRax);
  const Insn load = decoded({0x48, 0x8b, 0x44, 0x8b, 0x08});  // mov 8(%rbx,%rcx,4),%rax
  EXPECT_EQ(load.base, kRbx);
  EXPECT_EQ(load.index, kRcx);
  EXPECT_EQ(load.scale, 4);
  EXPECT_EQ(load.reads, 1 << kRbx | 1 << kRcx);
  const Insn push = decoded({0x55});
  EXPECT_TRUE(push.implicit_memory);
  EXPECT_EQ(push.writes, 1 << kRsp);
}

TEST(Decode, KnowsFlagsReadAndOverwritten) {
  EXPECT_EQ(decoded({0x74, 0x00}).flags_read, 0x40);  // je: ZF
  EXPECT_EQ(decoded({0x48, 0x01, 0xc8}).flags_overwritten, kStatusFlags);
  EXPECT_EQ(decoded({0x11, 0xc8}).flags_read, 0x01);             // adc: CF
  EXPECT_EQ(decoded({0xff, 0xc0}).flags_overwritten & 0x01, 0);  // inc keeps CF
  EXPECT_EQ(decoded({0xd3, 0xe0}).flags_overwritten, 0);         // shl %cl,%eax: by 0 keeps all
  EXPECT_EQ(decoded({0x89, 0xc8}).flags_written, 0);
}

}  // namespace
}  // namespace spile::x86
