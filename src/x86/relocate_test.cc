#include "x86/relocate.h"

#include <gtest/gtest.h>

#include <random>
#include <string>

#include "x86/format.h"

namespace spile::x86 {
namespace {

constexpr TargetAddr kFrom(0x401000), kTo(0x501000);

struct Case {
  const char* text;
  Code bytes;
  std::string expected;  ///< hex at kTo
};

class Relocation : public testing::TestWithParam<Case> {};

TEST_P(Relocation, WritesTheseBytes) {
  const auto code = relocate(GetParam().bytes, kFrom, kTo);
  ASSERT_TRUE(code) << GetParam().text << ": " << code.error().message;
  EXPECT_EQ(hex(code->bytes), GetParam().expected) << GetParam().text << "\n"
                                                   << format_code(code->bytes, kTo);
}

INSTANTIATE_TEST_SUITE_P(
    Table,
    Relocation,
    testing::Values(
        Case{"push %rbp", {0x55}, "55"},
        Case{"xchg %eax,%eax keeps its long form", {0x87, 0xc0}, "87 c0"},
        Case{"lock cmpxchg16b (%rdi)", {0xf0, 0x48, 0x0f, 0xc7, 0x0f}, "f0 48 0f c7 0f"},
        Case{"rep movsb", {0xf3, 0xa4}, "f3 a4"},
        Case{"syscall", {0x0f, 0x05}, "0f 05 48 8d 0d f9 ff ef ff"},
        Case{"enter $16,$3", {0xc8, 0x10, 0x00, 0x03}, "c8 10 00 03"},
        Case{"ret $8", {0xc2, 0x08, 0x00}, "c2 08 00"},
        Case{"nop", {0x0f, 0x1f, 0x44, 0x00, 0x00}, ""},
        Case{"endbr64; push %rbp", {0xf3, 0x0f, 0x1e, 0xfa, 0x55}, "55"},
        // lea 0x10(%rip),%rax names 0x401017
        Case{"lea", {0x48, 0x8d, 0x05, 0x10, 0, 0, 0}, "48 8d 05 10 00 f0 ff"},
        // cmpl $1, 0x20(%rip): displacement before an immediate
        Case{"cmpl", {0x83, 0x3d, 0x20, 0, 0, 0, 0x01}, "83 3d 20 00 f0 ff 01"},
        // vmovups 0(%rip),%zmm1: EVEX
        Case{"evex",
             {0x62, 0xf1, 0x7c, 0x48, 0x10, 0x0d, 0, 0, 0, 0},
             "62 f1 7c 48 10 0d 00 00 f0 ff"},
        Case{"jmp *(%rip)", {0xff, 0x25, 0, 0, 0, 0}, "ff 25 00 00 f0 ff"},
        Case{"notrack jmp *%rax", {0x3e, 0xff, 0xe0}, "3e ff e0"},
        // targets: 0x401002 + 0x10 = 0x401012
        Case{"jmp rel8", {0xeb, 0x10}, "e9 0d 00 f0 ff"},
        Case{"je rel8", {0x74, 0x10}, "0f 84 0c 00 f0 ff"},
        Case{"jg with a hint", {0x2e, 0x7f, 0x10}, "0f 8f 0d 00 f0 ff"},
        Case{"jne rel32", {0x0f, 0x85, 0x10, 0, 0, 0}, "0f 85 10 00 f0 ff"},
        Case{"jmp to itself", {0xeb, 0xfe}, "e9 fb ff ef ff"},
        Case{"loop", {0xe2, 0x10}, "e2 02 eb 05 e9 09 00 f0 ff"},
        Case{"jrcxz", {0xe3, 0x10}, "e3 02 eb 05 e9 09 00 f0 ff"},
        Case{"jecxz", {0x67, 0xe3, 0x10}, "67 e3 02 eb 05 e9 09 00 f0 ff"},
        Case{"xbegin", {0xc7, 0xf8, 0x10, 0, 0, 0}, "c7 f8 10 00 f0 ff"},
        Case{"call rel32", {0xe8, 0x10, 0, 0, 0}, "68 05 10 40 00 e9 0b 00 f0 ff"},
        Case{"call *%rax", {0xff, 0xd0}, "68 02 10 40 00 ff e0"},
        Case{"call *%r11", {0x41, 0xff, 0xd3}, "68 03 10 40 00 41 ff e3"},
        Case{"notrack call *%r11", {0x3e, 0x41, 0xff, 0xd3}, "68 04 10 40 00 3e 41 ff e3"},
        Case{"call *%r12 is not rsp", {0x41, 0xff, 0xd4}, "68 03 10 40 00 41 ff e4"},
        Case{"call *0(%rip)", {0xff, 0x15, 0, 0, 0, 0}, "68 06 10 40 00 ff 25 fb ff ef ff"},
        Case{"call *8(%rbx,%rcx,8)", {0xff, 0x54, 0xcb, 0x08}, "68 04 10 40 00 ff 64 cb 08"},
        Case{"call *8(%rsp)", {0xff, 0x54, 0x24, 0x08}, "68 04 10 40 00 ff a4 24 10 00 00 00"},
        Case{"call *(%rsp)", {0xff, 0x14, 0x24}, "68 03 10 40 00 ff a4 24 08 00 00 00"},
        Case{"call *0x12345(%rsp)",
             {0xff, 0x94, 0x24, 0x45, 0x23, 0x01, 0},
             "68 07 10 40 00 ff a4 24 4d 23 01 00"},
        Case{"call *(%r12) uses a SIB but not rsp",
             {0x41, 0xff, 0x14, 0x24},
             "68 04 10 40 00 41 ff 24 24"}));

TEST(Relocate, PushesReturnAddressesAboveFourGiBInTwoHalves) {
  const TargetAddr from(0x7f1234561000), to(0x7f1234661000);
  const auto code = relocate(Code{0xff, 0xd0}, from, to);
  ASSERT_TRUE(code);
  EXPECT_EQ(hex(code->bytes), "68 02 10 56 34 c7 44 24 04 12 7f 00 00 ff e0");
  EXPECT_FALSE(code->falls_through);
}

struct Refused {
  const char* text;
  Code bytes;
  ErrorCode code;
};

class RelocationRefusal : public testing::TestWithParam<Refused> {};

TEST_P(RelocationRefusal, SaysWhy) {
  const auto code = relocate(GetParam().bytes, kFrom, kTo);
  ASSERT_FALSE(code) << GetParam().text << " became " << hex(code->bytes);
  EXPECT_EQ(code.error().code, GetParam().code) << code.error().message;
}

INSTANTIATE_TEST_SUITE_P(
    Table,
    RelocationRefusal,
    testing::Values(
        Refused{"int3", {0xcc}, ErrorCode::kUnsafe},
        Refused{"ud2", {0x0f, 0x0b}, ErrorCode::kUnsafe},
        Refused{"retf", {0xcb}, ErrorCode::kUnsafe},
        Refused{"iretq", {0x48, 0xcf}, ErrorCode::kUnsafe},
        Refused{"hlt", {0xf4}, ErrorCode::kUnsafe},
        Refused{"cli", {0xfa}, ErrorCode::kUnsafe},
        Refused{"rdsspq", {0xf3, 0x48, 0x0f, 0x1e, 0xc8}, ErrorCode::kUnsafe},
        Refused{"call first", {0xff, 0xd0, 0x55}, ErrorCode::kUnsafe},
        Refused{"jump into the window", {0xeb, 0x01, 0x55, 0x55}, ErrorCode::kUnsafe},
        Refused{"jump back into the window", {0x55, 0x55, 0x74, 0xfd}, ErrorCode::kUnsafe},
        Refused{"loop into the window", {0x55, 0x55, 0xe2, 0xfd}, ErrorCode::kUnsafe},
        Refused{"call through rsp", {0xff, 0xd4}, ErrorCode::kUnsupported},
        Refused{"call through the red zone", {0xff, 0x54, 0x24, 0xf8}, ErrorCode::kUnsupported},
        Refused{"call *(%rsp,%rax,8)", {0xff, 0x14, 0xc4}, ErrorCode::kUnsupported},
        Refused{"16-bit jump", {0x66, 0xe9, 0x10, 0, 0, 0}, ErrorCode::kUnsupported},
        Refused{"mov 0(%eip),%eax", {0x67, 0x8b, 0x05, 0, 0, 0, 0}, ErrorCode::kUnsupported},
        Refused{"code behind a jump", {0xeb, 0x70, 0x55}, ErrorCode::kInvalid},
        Refused{"half an instruction", {0x55, 0xe8, 0x00}, ErrorCode::kInvalid},
        Refused{"nothing", {}, ErrorCode::kInvalid}));

TEST(Relocate, RefusesOperandsOutOfReach) {
  const TargetAddr far_away(0x7f0000000000);
  for (const Code& bytes :
       {Code{0x48, 0x8d, 0x05, 0, 0, 0, 0}, Code{0xe9, 0, 0, 0, 0}, Code{0x74, 0x10},
        Code{0xe8, 0, 0, 0, 0}, Code{0xe2, 0x10}, Code{0xc7, 0xf8, 0, 0, 0, 0}}) {
    const auto code = relocate(bytes, kFrom, far_away);
    ASSERT_FALSE(code) << hex(bytes);
    EXPECT_EQ(code.error().code, ErrorCode::kUnsupported);
  }
}

TEST(Relocate, AllowsAJumpToTheWindowsStartAndReachesTheOriginal) {
  const auto code = relocate(Code{0x55, 0x55, 0x74, 0xfc}, kFrom, kTo);
  ASSERT_TRUE(code);
  const auto insn = decode_shape(std::span(code->bytes).subspan(2));
  EXPECT_EQ(insn->branch_target(kTo + 2), kFrom);
}

TEST(Relocate, MapsEveryHeadThereAndBack) {
  // push %rbp; nopw; call *0x10(%rip)
  const auto code = relocate(Code{0x55, 0x66, 0x90, 0xff, 0x15, 0x10, 0, 0, 0}, kFrom, kTo);
  ASSERT_TRUE(code);
  EXPECT_EQ(code->to_relocated(kFrom), kTo);
  EXPECT_EQ(code->to_relocated(kFrom + 1), kTo + 1) << "a nop continues at the next instruction";
  EXPECT_EQ(code->to_relocated(kFrom + 3), kTo + 1);
  EXPECT_EQ(code->to_relocated(kFrom + 2), std::nullopt);
  EXPECT_EQ(code->to_relocated(kFrom + 9), std::nullopt) << "control does not fall through a call";
  EXPECT_EQ(code->to_original(kTo)->original, kFrom);
  EXPECT_EQ(code->to_original(kTo + 1), (ResumePoint{1, kFrom + 3, 0}));
  EXPECT_EQ(code->to_original(kTo + 6), (ResumePoint{6, kFrom + 3, 8}))
      << "the push is undone, the call repeated";
  EXPECT_EQ(code->to_original(kTo + 2), std::nullopt);
}

TEST(Relocate, MapsTheInsideOfALoopStub) {
  const auto code = relocate(Code{0xe2, 0x10, 0x55}, kFrom, kTo);
  ASSERT_TRUE(code);
  EXPECT_EQ(code->to_original(kTo + 2)->original, kFrom + 2) << "not taken";
  EXPECT_EQ(code->to_original(kTo + 4)->original, kFrom + 0x12)
      << "taken: rcx is counted down already";
  EXPECT_EQ(code->to_original(kTo + 9)->original, kFrom + 2);
  EXPECT_EQ(code->to_original(kTo + 10)->original, kFrom + 3);
}

// The kernel restarts a call by stepping two bytes back: from anywhere else than right behind it,
// it is skipped.
TEST(Relocate, GoesBackRightBehindASystemCallAlsoWhenNopsFollow) {
  const auto go_back = [](const Code& bytes, uint16_t offset) {
    auto code = relocate(bytes, kFrom, kTo);
    EXPECT_TRUE(code && append_jump_back(*code));
    return code->to_original(kTo + offset)->original;
  };
  EXPECT_EQ(go_back({0x0f, 0x05, 0x90, 0x90, 0x90}, 2), kFrom + 2);
  EXPECT_EQ(go_back({0x90, 0x0f, 0x05, 0x90, 0x66, 0x90, 0x50}, 2), kFrom + 3);
  EXPECT_EQ(go_back({0xcd, 0x80, 0x0f, 0x1f, 0x00}, 2), kFrom + 2) << "int $0x80";
  EXPECT_EQ(go_back({0x0f, 0x05, 0x90, 0x50, 0x90}, 10), kFrom + 5)
      << "a nop that follows something else";
}

TEST(Relocate, MovesAThreadThatWaitsInASystemCallRightBehindItsCopy) {
  // nop; syscall; nop; push %rax
  const auto code = relocate(Code{0x90, 0x0f, 0x05, 0x90, 0x50}, kFrom, kTo);
  ASSERT_TRUE(code);
  EXPECT_EQ(code->to_relocated(kFrom + 3), kTo + 2) << "two bytes further back stands syscall";
  EXPECT_EQ(code->to_relocated(kFrom + 4), kTo + 9);
  EXPECT_EQ(code->to_original(kTo + 2)->original, kFrom + 3);
  EXPECT_EQ(code->to_original(kTo + 9)->original, kFrom + 4) << "rcx is set";
  const auto last = relocate(Code{0x55, 0x0f, 0x05}, kFrom, kTo);
  ASSERT_TRUE(last);
  EXPECT_EQ(last->to_relocated(kFrom + 3), kTo + 3);
  EXPECT_EQ(last->to_original(kTo + 10)->original, kFrom + 3);
}

TEST(Relocate, JumpsBackBehindTheWindow) {
  auto code = relocate(Code{0x55, 0x48, 0x89, 0xe5, 0x41, 0x54}, kFrom, kTo);
  ASSERT_TRUE(code && append_jump_back(*code));
  EXPECT_EQ(hex(code->bytes), "55 48 89 e5 41 54 e9 fb ff ef ff");
  EXPECT_EQ(code->to_relocated(kFrom + 6), kTo + 6);
  EXPECT_EQ(code->to_original(kTo + 6)->original, kFrom + 6);
  auto ret = relocate(Code{0xc3}, kFrom, kTo);
  ASSERT_TRUE(ret && append_jump_back(*ret));
  EXPECT_EQ(hex(ret->bytes), "c3");
}

TEST(Relocate, NeverReadsBeyondRandomBytes) {
  std::mt19937 random(7);
  for (int i = 0; i < 20000; ++i) {
    Code bytes(random() % 24);
    for (auto& b : bytes) b = static_cast<uint8_t>(random());
    const auto code = relocate(bytes, kFrom, kTo);
    if (!code) continue;
    size_t covered = 0;
    for (const auto& insn : code->insns) covered += insn.old_bytes;
    ASSERT_EQ(covered, bytes.size());
    ASSERT_EQ(code->to_relocated(kFrom), kTo);
  }
}

}  // namespace
}  // namespace spile::x86
