#include "bpf/disasm.h"

#include <gtest/gtest.h>

#include "bpf/builder.h"
#include "bpf/encoding.h"

namespace spile::bpf {
namespace {

using enum Reg;

struct Row {
  Insn insn;
  const char* text;
};

Insn raw(unsigned code, int dst, int src, int off, int32_t imm) {
  return {static_cast<uint8_t>(code), static_cast<uint8_t>(dst | src << 4),
          static_cast<int16_t>(off), imm};
}

TEST(Disassembler, WritesEachInstructionAsTheKernelDoes) {
  const Row rows[] = {
      {raw(kClassAlu64 | kAdd, 1, 0, 0, -8), "r1 += -8"},
      {raw(kClassAlu64 | kAdd | kSrcX, 1, 2, 0, 0), "r1 += r2"},
      {raw(kClassAlu | kSub, 3, 0, 0, 1), "w3 -= 1"},
      {raw(kClassAlu | kMul | kSrcX, 3, 4, 0, 0), "w3 *= w4"},
      {raw(kClassAlu64 | kDiv, 1, 0, 0, 3), "r1 /= 3"},
      {raw(kClassAlu64 | kDiv, 1, 0, 1, 3), "r1 s/= 3"},
      {raw(kClassAlu64 | kMod | kSrcX, 1, 2, 1, 0), "r1 s%= r2"},
      {raw(kClassAlu64 | kMod | kSrcX, 1, 2, 0, 0), "r1 %= r2"},
      {raw(kClassAlu64 | kOr, 1, 0, 0, 3), "r1 |= 3"},
      {raw(kClassAlu64 | kAnd, 1, 0, 0, 3), "r1 &= 3"},
      {raw(kClassAlu64 | kXor, 1, 0, 0, 3), "r1 ^= 3"},
      {raw(kClassAlu64 | kLsh, 1, 0, 0, 3), "r1 <<= 3"},
      {raw(kClassAlu64 | kRsh, 1, 0, 0, 3), "r1 >>= 3"},
      {raw(kClassAlu | kArsh, 2, 0, 0, 4), "w2 s>>= 4"},
      {raw(kClassAlu64 | kNeg, 2, 0, 0, 0), "r2 = -r2"},
      {raw(kClassAlu64 | kMov, 2, 0, 0, 7), "r2 = 7"},
      {raw(kClassAlu64 | kMov | kSrcX, 2, 3, 8, 0), "r2 = (s8)r3"},
      {raw(kClassAlu64 | kMov | kSrcX, 2, 3, 0, 0), "r2 = r3"},
      {raw(kClassAlu | kEnd | kSrcX, 2, 0, 0, 16), "r2 = be16 r2"},
      {raw(kClassAlu | kEnd, 2, 0, 0, 32), "r2 = le32 r2"},
      {raw(kClassAlu64 | kEnd, 2, 0, 0, 64), "r2 = bswap64 r2"},
      {raw(kClassLdx | kSizeDw | kModeMem, 0, 1, 112, 0), "r0 = *(u64 *)(r1 + 112)"},
      {raw(kClassLdx | kSizeB | kModeMemSx, 0, 1, -1, 0), "r0 = *(s8 *)(r1 - 1)"},
      {raw(kClassSt | kSizeW | kModeMem, 10, 0, -4, -5), "*(u32 *)(r10 - 4) = -5"},
      {raw(kClassStx | kSizeH | kModeMem, 10, 3, -32768, 0), "*(u16 *)(r10 - 32768) = r3"},
      {raw(kClassStx | kSizeDw | kModeAtomic, 0, 1, 0, kAtomicAdd), "lock *(u64 *)(r0 + 0) += r1"},
      {raw(kClassStx | kSizeW | kModeAtomic, 0, 1, 4, kAtomicXor), "lock *(u32 *)(r0 + 4) ^= w1"},
      {raw(kClassStx | kSizeDw | kModeAtomic, 0, 1, 0, kAtomicOr | kFetch),
       "r1 = lock *(u64 *)(r0 + 0) |= r1"},
      {raw(kClassStx | kSizeDw | kModeAtomic, 0, 1, 0, kAtomicAnd), "lock *(u64 *)(r0 + 0) &= r1"},
      {raw(kClassStx | kSizeDw | kModeAtomic, 0, 1, 0, kXchg), "r1 = xchg(*(u64 *)(r0 + 0), r1)"},
      {raw(kClassStx | kSizeW | kModeAtomic, 6, 1, 0, kCmpXchg),
       "w0 = cmpxchg(*(u32 *)(r6 + 0), w0, w1)"},
      {raw(kClassJmp | kJa, 0, 0, -3, 0), "goto -3"},
      {raw(kClassJmp32 | kJa, 0, 0, 0, 70000), "gotol +70000"},
      {raw(kClassJmp | kJeq, 0, 0, 3, 0), "if r0 == 0 goto +3"},
      {raw(kClassJmp | kJne | kSrcX, 0, 1, 3, 0), "if r0 != r1 goto +3"},
      {raw(kClassJmp32 | kJsgt, 0, 0, 3, -1), "if w0 s> -1 goto +3"},
      {raw(kClassJmp32 | kJset | kSrcX, 0, 5, 3, 0), "if w0 & w5 goto +3"},
      {raw(kClassJmp | kCall, 0, 0, 0, 131), "call ringbuf_reserve#131"},
      {raw(kClassJmp | kCall, 0, 0, 0, 6), "call unknown#6"},
      {raw(kClassJmp | kCall, 0, 1, 0, 6), "call local +6"},
      {raw(kClassJmp | kExit, 0, 0, 0, 0), "exit"},
      {raw(0xe7, 0, 0, 0, 0), "unknown opcode 0xe7 (dst 0 src 0 off 0 imm 0)"},
  };
  for (const Row& row : rows) EXPECT_EQ(disassemble(Program{row.insn}, 0), row.text);
}

TEST(Disassembler, WritesAProgramWithIndicesAndTargets) {
  Builder b;
  Builder::Label end = b.new_label();
  b.load_map(r1, 2);
  b.load_imm64(r2, 0x123456789abcdef0);
  b.jump_if_imm(kJeq, r0, 0, end);
  b.mov_imm(r0, 1);
  b.bind(end);
  b.exit();
  EXPECT_EQ(disassemble(*std::move(b).finish()),
            "   0: r1 = map[2] ll\n"
            "   2: r2 = 0x123456789abcdef0 ll\n"
            "   4: if r0 == 0 goto +1 <6>\n"
            "   5: r0 = 1\n"
            "   6: exit\n");
}

TEST(Disassembler, NeverFailsWhateverTheBytes) {
  for (int code = 0; code < 256; ++code) {
    for (uint8_t regs : {0x00, 0xff, 0x5a}) {
      Program program{{static_cast<uint8_t>(code), regs, -1, -1}};
      EXPECT_FALSE(disassemble(program).empty());
      program.push_back({});
      EXPECT_FALSE(disassemble(program).empty());
    }
  }
}

}  // namespace
}  // namespace spile::bpf
