#include "bpf/scalar_range.h"

#include <gtest/gtest.h>

#include <random>

#include "bpf/encoding.h"
#include "bpf/interpreter.h"

namespace spile::bpf {
namespace {

constexpr uint8_t kAluOps[] = {kAdd, kSub, kMul, kDiv, kOr,  kAnd, kLsh,
                               kRsh, kNeg, kMod, kXor, kMov, kArsh};
constexpr uint8_t kJumpOps[] = {kJeq, kJne,  kJset, kJgt,  kJge, kJlt,
                                kJle, kJsgt, kJsge, kJslt, kJsle};
const uint64_t kCorners[] = {0,          1,          2,          3,          7,
                             8,          0x7f,       0x80,       0xff,       0x7fffffff,
                             0x80000000, 0xffffffff, 1ull << 32, ~0ull >> 1, 1ull << 63,
                             ~0ull,      ~0ull - 1,  ~0ull << 31};

/// A range of random shape with one number that is in it.
struct Sample {
  ScalarRange range;
  uint64_t member = 0;
};

class Random {
 public:
  uint64_t number() {
    switch (engine_() % 3) {
      case 0: return kCorners[engine_() % std::size(kCorners)] + engine_() % 3 - 1;
      case 1: return engine_() >> engine_() % 64;
      default: return 0 - (engine_() >> engine_() % 64);
    }
  }

  Sample sample() {
    Sample s{ScalarRange::unknown(), number()};
    uint64_t x = number(), y = number();
    switch (engine_() % 6) {
      case 0: s.range = ScalarRange::constant(s.member); break;
      case 1: s.range = join(ScalarRange::constant(s.member), ScalarRange::constant(x)); break;
      case 2:
        s.range = ScalarRange::unsigned_between(std::min(s.member, x), std::max(s.member, x));
        break;
      case 3: {
        auto a = static_cast<int64_t>(s.member), b = static_cast<int64_t>(x);
        s.range = ScalarRange::signed_between(std::min(a, b), std::max(a, b));
        break;
      }
      case 4:
        s.range = join(join(ScalarRange::constant(s.member), ScalarRange::constant(x)),
                       ScalarRange::constant(y));
        break;
      default: break;
    }
    EXPECT_TRUE(s.range.contains(s.member));
    return s;
  }

  uint64_t operator()() { return engine_(); }

 private:
  std::mt19937_64 engine_{42};
};

/// What the interpreter says about one instruction on r0 and r1.
uint64_t compute(Insn insn, uint64_t a, uint64_t b) {
  auto half = [](uint64_t v, int n) { return static_cast<int32_t>(v >> (32 * n)); };
  Program p{{kClassLd | kSizeDw, 0, 0, half(a, 0)},
            {0, 0, 0, half(a, 1)},
            {kClassLd | kSizeDw, 1, 0, half(b, 0)},
            {0, 0, 0, half(b, 1)},
            insn,
            {kClassJmp | kExit, 0, 0, 0}};
  if (is_conditional_jump(insn)) {
    p.pop_back();
    p.insert(p.end(), {{kClassAlu64 | kMov, 0, 0, 0},
                       {kClassJmp | kExit, 0, 0, 0},
                       {kClassAlu64 | kMov, 0, 0, 1},
                       {kClassJmp | kExit, 0, 0, 0}});
    p[4].off = 2;
  }
  return run(p, 0, {})->r0;
}

Insn alu_insn(uint8_t cls, uint8_t op, int16_t off) {
  bool is_neg = op == kNeg;
  return {static_cast<uint8_t>(cls | op | (is_neg ? 0 : kSrcX)),
          static_cast<uint8_t>(is_neg ? 0 : 0x10), off, 0};
}

TEST(ScalarRange, HoldsTheResultOfEveryOperation) {
  Random random;
  for (int round = 0; round < 60000; ++round) {
    Sample a = random.sample(), b = random.sample();
    uint8_t op = kAluOps[random() % std::size(kAluOps)];
    bool is_signed = (op == kDiv || op == kMod) && random() % 2 != 0, is_wide = random() % 2 != 0;
    Insn insn = alu_insn(is_wide ? kClassAlu64 : kClassAlu, op, is_signed ? kSignedOff : 0);
    ScalarRange result = (is_wide ? alu64 : alu32)(op, is_signed, a.range, b.range);
    uint64_t expected = compute(insn, a.member, b.member);
    ASSERT_TRUE(result.contains(expected))
        << "op " << int{op} << " wide " << is_wide << " signed " << is_signed << std::hex << " "
        << a.member << ", " << b.member << " = " << expected << " not in [" << result.umin << ", "
        << result.umax << "]";
  }
}

TEST(ScalarRange, HoldsExtensionsAndSwaps) {
  Random random;
  for (int round = 0; round < 40000; ++round) {
    Sample a = random.sample();
    for (int bits : {8, 16, 32}) {
      Insn move{kClassAlu64 | kMov | kSrcX, 0x00, static_cast<int16_t>(bits), 0};
      ASSERT_TRUE(sign_extend(a.range, bits).contains(compute(move, a.member, 0)))
          << bits << " " << a.member;
      ASSERT_TRUE(zero_extend(a.range, bits).contains(a.member & ((1ull << bits) - 1)))
          << bits << " " << a.member;
    }
    for (int bits : {16, 32, 64}) {
      Insn swap{kClassAlu | kEnd | kSrcX, 0, 0, bits};
      ASSERT_TRUE(byte_swap(a.range, bits).contains(compute(swap, a.member, 0)))
          << bits << " " << a.member;
    }
  }
}

TEST(ScalarRange, KeepsBothNumbersWhateverTheConditionSays) {
  Random random;
  for (int round = 0; round < 60000; ++round) {
    Sample a = random.sample(), b = random.sample();
    if (random() % 4 == 0) b = a;
    uint8_t op = kJumpOps[random() % std::size(kJumpOps)];
    bool is_32bit = random() % 2 != 0;
    Insn insn{static_cast<uint8_t>((is_32bit ? kClassJmp32 : kClassJmp) | op | kSrcX), 0x10, 0, 0};
    bool holds = compute(insn, a.member, b.member) != 0;
    auto learned = assume(op, is_32bit, holds, a.range, b.range);
    ASSERT_TRUE(learned.has_value()) << "op " << int{op} << " 32: " << is_32bit << std::hex << " "
                                     << a.member << ", " << b.member;
    ASSERT_TRUE(learned->first.contains(a.member))
        << "op " << int{op} << " 32: " << is_32bit << std::hex << " " << a.member << ", "
        << b.member;
    ASSERT_TRUE(learned->second.contains(b.member));
  }
}

TEST(ScalarRange, WidensAroundBothAndStopsMoving) {
  Random random;
  Thresholds thresholds = Thresholds::around({100, 1000});
  for (int round = 0; round < 2000; ++round) {
    ScalarRange range = random.sample().range;
    int changes = 0;
    for (int i = 0; i < 300; ++i) {
      Sample next = random.sample();
      ScalarRange wider = widen(range, next.range, thresholds);
      ASSERT_TRUE(wider.contains(range) && wider.contains(next.range));
      changes += wider == range ? 0 : 1;
      range = wider;
    }
    ASSERT_LT(changes, 64);
  }
}

TEST(ScalarRange, StopsAtAThreshold) {
  Thresholds thresholds = Thresholds::around({64});
  ScalarRange range =
      widen(ScalarRange::unsigned_between(0, 7), ScalarRange::unsigned_between(0, 8), thresholds);
  EXPECT_EQ(range.umax, 63u);
}

TEST(ScalarRange, KeepsAlignmentThroughShiftsMasksAndWidening) {
  ScalarRange x = alu64(kLsh, false, ScalarRange::unknown(), ScalarRange::constant(3));
  EXPECT_TRUE(x.is_aligned(8));
  EXPECT_FALSE(x.is_aligned(16));
  x = alu64(kAnd, false, x, ScalarRange::constant(0x78));
  EXPECT_EQ(x.umax, 0x78u);
  EXPECT_TRUE(alu64(kAdd, false, x, ScalarRange::constant(16)).is_aligned(8));
  EXPECT_TRUE(alu64(kMul, false, ScalarRange::unknown(), ScalarRange::constant(24)).is_aligned(8));
  EXPECT_TRUE(widen(ScalarRange::constant(0), ScalarRange::constant(8), Thresholds::around({}))
                  .is_aligned(8));
}

TEST(ScalarRange, IsPreciseWhereProgramsNeedIt) {
  ScalarRange byte = ScalarRange::unsigned_between(0, 255);
  EXPECT_EQ(alu64(kRsh, false, byte, ScalarRange::constant(4)),
            ScalarRange::unsigned_between(0, 15));
  EXPECT_EQ(alu64(kMod, false, ScalarRange::unknown(), ScalarRange::constant(10)).umax, 9u);
  EXPECT_EQ(alu64(kSub, false, byte, ScalarRange::constant(300)).smax, -45);
  EXPECT_EQ(sign_extend(byte, 8).smin, -128);
  EXPECT_FALSE(assume(kJgt, false, true, byte, ScalarRange::constant(255)));
  EXPECT_EQ(
      assume(kJslt, false, false, ScalarRange::signed_between(-4095, 16), ScalarRange::constant(1))
          ->first,
      ScalarRange::unsigned_between(1, 16));
  EXPECT_EQ(
      assume(kJslt, true, false, ScalarRange::signed_between(-4095, 16), ScalarRange::constant(1))
          ->first,
      ScalarRange::unsigned_between(1, 16));
}

}  // namespace
}  // namespace spile::bpf
