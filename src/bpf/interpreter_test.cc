#include "bpf/interpreter.h"

#include <gtest/gtest.h>

#include "bpf/builder.h"
#include "bpf/checker.h"
#include "bpf/disasm.h"
#include "bpf/random_program.h"

namespace spile::bpf {
namespace {

using enum Reg;

Program finished(Builder b) {
  Result<Program> program = std::move(b).finish();
  EXPECT_TRUE(program.has_value()) << program.error().message;
  return std::move(*program);
}

TEST(Interpreter, GivesTheExpectedResultForEveryOpcode) {
  ASSERT_GT(opcode_cases().size(), 500u);
  for (const OpcodeCase& c : opcode_cases()) {
    Result<RunResult> result = run(c.program, 0, {});
    ASSERT_TRUE(result) << c.name << ": " << result.error().message;
    EXPECT_EQ(result->r0, c.expected) << c.name << '\n' << disassemble(c.program);
  }
}

TEST(Interpreter, ReadsItsContext) {
  Builder b;
  b.load(8, r0, r1, 8);
  b.exit();
  uint64_t context[2] = {1, 42};
  EXPECT_EQ(run(finished(std::move(b)), reinterpret_cast<uint64_t>(context), {})->r0, 42u);
}

TEST(Interpreter, CallsHelpersWithFiveArgumentsAndTheMapOfItsIndex) {
  Builder b;
  b.load_map(r1, 1);
  b.mov_imm(r2, 2);
  b.mov_imm(r3, 3);
  b.mov_imm(r4, 4);
  b.mov_imm(r5, 5);
  b.call(Helper::kMapUpdateElem);
  b.exit();
  HelperTable helpers;
  helpers.set(Helper::kMapUpdateElem,
              [](uint64_t a, uint64_t b2, uint64_t c, uint64_t d, uint64_t e) {
                return a * 10000 + b2 * 1000 + c * 100 + d * 10 + e;
              });
  uint64_t maps[] = {7, 9};
  EXPECT_EQ(run(finished(std::move(b)), 0, {.helpers = &helpers, .maps = maps})->r0, 92345u);
}

TEST(Interpreter, StopsAtTheBudget) {
  Builder b;
  Builder::Label head = b.new_label();
  b.bind(head);
  b.jump(head);
  Result<RunResult> result = run(finished(std::move(b)), 0, {.insn_budget = 1000});
  ASSERT_FALSE(result);
  EXPECT_NE(result.error().message.find("budget of 1000"), std::string::npos);
}

TEST(Interpreter, CountsInstructions) {
  Builder b;
  b.load_imm64(r0, 0x123456789abc);
  b.exit();
  EXPECT_EQ(run(finished(std::move(b)), 0, {})->insns, 2u);
}

TEST(Interpreter, RefusesAHelperThatNobodyProvides) {
  Builder b;
  b.call(Helper::kKtimeGetNs);
  b.exit();
  EXPECT_FALSE(run(finished(std::move(b)), 0, {}));
}

class CheckedMode : public testing::Test {
 protected:
  Result<RunResult> run_on_buffer(void (*body)(Builder&), bool writable) {
    Builder b;
    body(b);
    b.mov_imm(r0, 0);
    b.exit();
    std::vector<MemoryRange> ranges{
        {reinterpret_cast<uint64_t>(buffer_), sizeof buffer_ - 8, writable}};
    return run(finished(std::move(b)), reinterpret_cast<uint64_t>(buffer_), {.ranges = &ranges});
  }
  uint64_t buffer_[4] = {};
};

TEST_F(CheckedMode, AllowsTheRangesAndTheStack) {
  EXPECT_TRUE(run_on_buffer([](Builder& b) { b.store(8, r1, 16, r1); }, true));
  EXPECT_TRUE(run_on_buffer([](Builder& b) { b.store(8, r10, -512, r1); }, true));
  EXPECT_TRUE(run_on_buffer([](Builder& b) { b.load(4, r2, r1, 20); }, false));
}
TEST_F(CheckedMode, RefusesWhatCrossesTheEndOfARange) {
  EXPECT_FALSE(run_on_buffer([](Builder& b) { b.load(8, r2, r1, 20); }, true));
  EXPECT_FALSE(run_on_buffer([](Builder& b) { b.load(1, r2, r1, -1); }, true));
  EXPECT_FALSE(run_on_buffer([](Builder& b) { b.store(8, r10, -4, r1); }, true));
  EXPECT_FALSE(run_on_buffer([](Builder& b) { b.store(8, r10, -520, r1); }, true));
}
TEST_F(CheckedMode, RefusesWritesToAReadOnlyRange) {
  EXPECT_FALSE(run_on_buffer([](Builder& b) { b.store(8, r1, 0, r1); }, false));
}
TEST_F(CheckedMode, RefusesAnAtomicThatIsNotAligned) {
  EXPECT_FALSE(run_on_buffer([](Builder& b) { b.atomic(8, kAtomicAdd, r1, 4, r1); }, true));
}

TEST(Interpreter, SurvivesRandomBytesInCheckedMode) {
  std::vector<MemoryRange> none;
  uint64_t state = 12345;
  auto next = [&] { return state = state * 6364136223846793005u + 1442695040888963407u; };
  for (int round = 0; round < 20000; ++round) {
    Program program(8);
    for (Insn& insn : program) {
      uint64_t bits = next() ^ next() >> 31;
      insn = {static_cast<uint8_t>(bits), static_cast<uint8_t>(bits >> 8),
              static_cast<int16_t>((bits >> 16) % 8), static_cast<int32_t>(bits >> 32)};
    }
    (void)run(program, 0, {.insn_budget = 100, .ranges = &none});
  }
}

TEST(RandomPrograms, AreTheSameForTheSameSeed) {
  EXPECT_EQ(random_program(7), random_program(7));
  EXPECT_NE(random_program(7), random_program(8));
}

TEST(RandomPrograms, AreAcceptedAndEnd) {
  for (uint64_t seed = 0; seed < 2000; ++seed) {
    Program program = random_program(seed);
    Result<Analysis> analysis = check(program, {});
    ASSERT_TRUE(analysis) << "seed " << seed << ": " << analysis.error().message << '\n'
                          << disassemble(program);
    std::vector<MemoryRange> none;
    Result<RunResult> result = run(program, 0, {.ranges = &none});
    ASSERT_TRUE(result) << "seed " << seed << ": " << result.error().message;
  }
}

TEST(OpcodeCases, AreAccepted) {
  for (const OpcodeCase& c : opcode_cases()) {
    Result<Analysis> analysis = check(c.program, {});
    EXPECT_TRUE(analysis) << c.name << ": " << analysis.error().message << '\n'
                          << disassemble(c.program);
  }
}

}  // namespace
}  // namespace spile::bpf
