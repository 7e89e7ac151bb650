#include "x86/encode.h"

#include <gtest/gtest.h>

#include "x86/decode.h"
#include "x86/format.h"

namespace spile::x86 {
namespace {

TEST(Encode, JumpsForwardAndBackward) {
  EXPECT_EQ(hex(*encode_jmp(TargetAddr(0x1000), TargetAddr(0x2000))), "e9 fb 0f 00 00");
  EXPECT_EQ(hex(*encode_jmp(TargetAddr(0x2000), TargetAddr(0x1000))), "e9 fb ef ff ff");
  EXPECT_EQ(hex(*encode_jmp(TargetAddr(0x1000), TargetAddr(0x1005 + 0x7fffffffu))),
            "e9 ff ff ff 7f");
}

TEST(Encode, RefusesJumpsOfMoreThanTwoGiB) {
  EXPECT_EQ(encode_jmp(TargetAddr(0x1000), TargetAddr(0x1005 + 0x80000000u)).error().code,
            ErrorCode::kUnsupported);
  EXPECT_FALSE(encode_jmp(TargetAddr(0x100000000), TargetAddr(0x1000)));
  EXPECT_TRUE(encode_jmp(TargetAddr(0x80001000), TargetAddr(0x1005)));
}

TEST(Encode, PushesConstantsOfSixtyFourBits) {
  const auto push = [](uint64_t value) {
    Code code;
    append_push_imm64(code, value);
    return hex(code);
  };
  EXPECT_EQ(push(0x401000), "68 00 10 40 00");
  EXPECT_EQ(push(0xffffffff80000000), "68 00 00 00 80");
  EXPECT_EQ(push(0x80000000), "68 00 00 00 80 c7 44 24 04 00 00 00 00");
  EXPECT_EQ(push(0x00007f1234567890), "68 90 78 56 34 c7 44 24 04 12 7f 00 00");
}

TEST(Encode, NopsOfEveryLengthAreNops) {
  for (size_t n = 0; n < 40; ++n) {
    Code code;
    append_nops(code, n);
    EXPECT_EQ(code.size(), n);
    EXPECT_EQ(padding_bytes(code), n);
  }
}

TEST(Encode, CountsPaddingUpToTheFirstOtherByte) {
  EXPECT_EQ(padding_bytes(Code{0xcc, 0x90, 0x66, 0x90, 0x0f, 0x1f, 0x00, 0x55}), 7u);
  EXPECT_EQ(padding_bytes(Code{0x55, 0x90}), 0u);
  EXPECT_EQ(padding_bytes(Code{0x90, 0x0f, 0x1f}), 1u);  // cut off
  EXPECT_EQ(padding_bytes(Code{0x90, 0xf3, 0x0f, 0x1e, 0xfa}), 1u);
  EXPECT_EQ(padding_bytes(Code{0xb8, 0x90, 0x90, 0x90, 0x90}), 0u);  // a KCFI hash
}

TEST(Format, ShowsAddressBytesAndText) {
  const Code code = {0x55, 0x06, 0xe8, 0x00, 0x00, 0x00, 0x00};
  EXPECT_EQ(format_code(code, TargetAddr(0x1000)),
            "0x1000  55                              push %rbp\n"
            "0x1001  06                              (bad)\n"
            "0x1002  e8 00 00 00 00                  call 0x0000000000001007\n");
}

TEST(Format, MarksWhatDiffers) {
  const std::string diff = format_diff(Code{0x55, 0xc3}, Code{0x90, 0xc3}, TargetAddr(0x10));
  EXPECT_NE(diff.find("- 0x10  55"), std::string::npos) << diff;
  EXPECT_NE(diff.find("+ 0x10  90"), std::string::npos) << diff;
  EXPECT_NE(diff.find("  0x11  c3"), std::string::npos) << diff;
}

}  // namespace
}  // namespace spile::x86
