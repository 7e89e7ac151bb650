#include "user_engine/jit/jit.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <functional>

#include "bpf/disasm.h"
#include "bpf/random_program.h"
#include "user_engine/jit/print.h"
#include "user_engine/jit/test_programs.h"

namespace spile::jit {
namespace {

using namespace testing;
using bpf::Builder;
using bpf::Helper;
using bpf::Insn;
using bpf::Program;
using bpf::Reg;

// ---- the same result as the interpreter
// ------------------------------------------------------------------------

TEST(JitConformance, EveryOpcodeGivesItsResult) {
  for (const bpf::OpcodeCase& test : bpf::opcode_cases()) {
    for (bool optimise : {true, false}) {
      World world;
      JitEnv env = world.env();
      env.optimise = optimise;
      Body body = world.compile(test.program, env);
      EXPECT_EQ(run_body(body), test.expected) << test.name << " optimise " << optimise;
      EXPECT_LE(body.bytes.size(), test.program.size() * kMaxBytesPerInsn + kMaxBodyOverheadBytes)
          << test.name;
    }
  }
}

/// `count` programs from a seed, each compiled twice, optimised and as it stands.
void compare_random_programs(uint64_t first_seed,
                             uint64_t count,
                             const bpf::RandomProgramOptions& options) {
  std::optional<World> world;
  for (uint64_t seed = first_seed; seed < first_seed + count; ++seed) {
    if (seed % 16 == 0 || !world) world.emplace();
    Program program = bpf::random_program(seed, options);
    uint64_t expected = world->interpret(program);
    for (bool optimise : {true, false}) {
      JitEnv env = world->env();
      env.optimise = optimise;
      Body body = world->compile(program, env);
      uint64_t result = run_body(body, {}, seed);
      ASSERT_EQ(result, expected) << "seed " << seed << " optimise " << optimise << "\n"
                                  << bpf::disassemble(program) << to_text(body);
    }
    ASSERT_FALSE(::testing::Test::HasFailure()) << "seed " << seed;
  }
}

uint64_t random_programs() {
  const char* wanted = std::getenv("SPILE_JIT_RANDOM_PROGRAMS");
  return wanted == nullptr ? 20'000 : std::strtoull(wanted, nullptr, 10);
}

TEST(JitConformance, RandomProgramsGiveWhatTheInterpreterGives) {
  compare_random_programs(0, random_programs() / 2, {});
}

TEST(JitConformance, ShortRandomProgramsGiveWhatTheInterpreterGives) {
  compare_random_programs(1'000'000, random_programs() / 2, {.operations = 12});
}

// ---- optimisations
// ---------------------------------------------------------------------------------------------

TEST(Jit, CounterNeedsTwoRegistersAndNoStack) {
  World world;
  int map = world.add_per_cpu_array(1);
  JitEnv env = world.env();
  env.keep_result = false;
  Body body = world.compile(count_program(map), env);
  EXPECT_EQ(slot_names(body.clobbers), "r11 rax") << to_text(body);
  EXPECT_EQ(body.reads, 0u);
  EXPECT_EQ(body.stack_bytes, 0u);
  EXPECT_FALSE(body.calls_helpers);
  // The lock prefix stays: between reading the CPU's number and adding, the thread may move to
  // another CPU.
  EXPECT_NE(to_text(body).find("lock add"), std::string::npos) << to_text(body);
  for (int i = 0; i < 1000; ++i) run_body(body);
  EXPECT_EQ(world.map(map).sum(0), 1000u);
}

TEST(Jit, ArrayCounterWithAConstantKeyNeedsNoRegister) {
  World world;
  int map = world.add_array(4);
  JitEnv env = world.env();
  env.keep_result = false;
  // Pretend the storage lies beside the code, as it mostly does in a target.
  std::vector<uint8_t> room(4096);
  TargetAddr storage = world.page.put(room);
  env.base = world.page.next();
  env.maps[map].array->storage = storage;
  Body body = world.compile(count_program(map, 3), env);
  EXPECT_EQ(body.clobbers, 0u) << to_text(body);
  run_body(body);
  EXPECT_EQ(*reinterpret_cast<uint64_t*>(storage.value + 24), 1u);
}

TEST(Jit, InlinedLookupsCountLikeTheHelper) {
  for (bool inlined : {true, false}) {
    World world;
    int array = world.add_array(8), per_cpu = world.add_per_cpu_array(8, 24);
    JitEnv env = world.env();
    env.inline_lookups = inlined;
    uint64_t calls_before = lookup_calls;
    for (int map : {array, per_cpu}) {
      env.base = world.page.next();
      Body constant = world.compile(count_program(map, 5), env);
      env.base = world.page.next();
      Body indexed = world.compile(indexed_count_program(map, bpf::x86_64_regs::kDi), env);
      for (uint64_t key : {0, 5, 7, 8, 1000}) {
        abi::HitFrame frame{};
        frame.di = key;
        run_body(constant, frame);
        run_body(indexed, frame);
      }
      EXPECT_EQ(world.map(map).sum(0), 1u);
      EXPECT_EQ(world.map(map).sum(5), 6u);
      EXPECT_EQ(world.map(map).sum(7), 1u);
    }
    EXPECT_EQ(lookup_calls - calls_before, inlined ? 0u : 20u);
  }
}

TEST(Jit, LslNamesTheSameCpuSlotAsRdpid) {
  World world;
  int map = world.add_per_cpu_array(1);
  JitEnv env = world.env();
  env.cpu = CpuNumber::kLsl;
  Body body = world.compile(count_program(map), env);
  for (int i = 0; i < 100; ++i) run_body(body);
  EXPECT_EQ(world.map(map).sum(0), 100u);
}

TEST(Jit, CodeFarFromItsMapsStillFindsThem) {
  World world(CodePage::Where::kFar);
  int array = world.add_array(2), per_cpu = world.add_per_cpu_array(2);
  for (int map : {array, per_cpu}) {
    Body body = world.compile(count_program(map, 1));
    run_body(body);
    EXPECT_EQ(world.map(map).sum(1), 1u);
  }
}

TEST(Jit, StoresOfTheContextHitEverySlot) {
  World world;
  std::vector<int16_t> offsets;
  for (int16_t offset = 0; offset < 168; offset += 8) offsets.push_back(offset);
  int map = world.add_array(32);
  Body body = world.compile(store_context_program(map, offsets));
  EXPECT_EQ(body.reads, kAllSlots & ~kCookieSlot);
  abi::HitFrame frame;
  auto* words = reinterpret_cast<uint64_t*>(&frame);
  for (size_t i = 0; i < offsets.size(); ++i) words[i] = 1000 + i;
  run_body(body, frame);
  for (uint32_t i = 0; i < offsets.size(); ++i) EXPECT_EQ(*world.map(map).value(i), 1000 + i);
}

TEST(Jit, ReadsOnlyTheContextWordsItUses) {
  World world;
  Builder b;
  b.load(4, Reg::r0, Reg::r1, bpf::x86_64_regs::kSi);
  b.exit();
  Body body = world.compile(*std::move(b).finish());
  EXPECT_EQ(slot_names(body.reads), "rsi");
  abi::HitFrame frame{};
  frame.si = 0x1122334455667788;
  EXPECT_EQ(run_body(body, frame), 0x55667788u);
}

/// r1 itself is wanted, not what it points to.
TEST(Jit, ContextPointerSurvivesTheStackAndHelpers) {
  for (bool optimise : {true, false}) {
    World world;
    Builder b;
    b.store(8, Reg::r10, -8, Reg::r1);
    b.mov(Reg::r3, Reg::r1);
    b.alu_imm(bpf::kAdd, Reg::r3, bpf::x86_64_regs::kDi);
    b.mov(Reg::r1, Reg::r10);
    b.alu_imm(bpf::kAdd, Reg::r1, -16);
    b.mov_imm(Reg::r2, 8);
    b.call(Helper::kProbeReadUser);
    b.load(8, Reg::r1, Reg::r10, -8);
    b.load(8, Reg::r0, Reg::r1, bpf::x86_64_regs::kSi);
    b.load(8, Reg::r2, Reg::r10, -16);
    b.alu(bpf::kAdd, Reg::r0, Reg::r2);
    b.exit();
    JitEnv env = world.env();
    env.optimise = optimise;
    Body body = world.compile(*std::move(b).finish(), env);
    EXPECT_EQ(body.reads, kAllSlots);
    abi::HitFrame frame{};
    frame.si = 30;
    frame.di = 12;
    EXPECT_EQ(run_body(body, frame), 42u) << to_text(body);
  }
}

TEST(Jit, AContextThatEscapesThroughTheStackFillsEverySlot) {
  World world;
  Builder b;
  b.store(8, Reg::r10, -8, Reg::r1);
  b.load(8, Reg::r3, Reg::r10, -8);
  b.alu_imm(bpf::kAdd, Reg::r3, bpf::x86_64_regs::kDi);
  b.mov(Reg::r1, Reg::r10);
  b.alu_imm(bpf::kAdd, Reg::r1, -16);
  b.mov_imm(Reg::r2, 8);
  b.call(Helper::kProbeReadUser);
  b.load(8, Reg::r0, Reg::r10, -16);
  b.exit();
  Body body = world.compile(*std::move(b).finish());
  EXPECT_EQ(body.reads, kAllSlots);
  abi::HitFrame frame{};
  frame.di = 12;
  EXPECT_EQ(run_body(body, frame), 12u);
}

/// The address of the deepest store is only known to the checker.
TEST(Jit, StackBehindASpilledPointerBelongsToTheFrame) {
  World world;
  Builder b;
  b.mov(Reg::r1, Reg::r10);
  b.alu_imm(bpf::kAdd, Reg::r1, -8);
  b.store(8, Reg::r10, -16, Reg::r1);
  b.load(8, Reg::r2, Reg::r10, -16);
  b.alu_imm(bpf::kAdd, Reg::r2, -112);
  b.store_imm(8, Reg::r2, 0, 5);
  b.load(8, Reg::r0, Reg::r2, 0);
  b.exit();
  Body body = world.compile(*std::move(b).finish());
  EXPECT_GE(body.stack_bytes, 120u);
  EXPECT_EQ(run_body(body), 5u);
}

TEST(Jit, ALoopToTheFirstInstructionKeepsTheContext) {
  World world;
  Builder b;
  auto again = b.new_label();
  b.bind(again);
  b.load(8, Reg::r0, Reg::r1, bpf::x86_64_regs::kDi);
  b.jump_if_imm(bpf::kJeq, Reg::r0, 0, again);
  b.exit();
  Body body = world.compile(*std::move(b).finish());
  abi::HitFrame frame{};
  frame.di = 9;
  EXPECT_EQ(run_body(body, frame), 9u);
}

TEST(Jit, CookieComesFromTheFrame) {
  World world;
  Builder b;
  b.call(Helper::kGetAttachCookie);
  b.exit();
  Body body = world.compile(*std::move(b).finish());
  EXPECT_EQ(slot_names(body.reads), "cookie");
  abi::HitFrame frame{};
  frame.cookie = 0x1234567890;
  EXPECT_EQ(run_body(body, frame), 0x1234567890u);
}

TEST(Jit, HelpersGetTheirArgumentsAndGiveTheirResult) {
  World world;
  int64_t value = -77;
  Builder b;
  b.mov(Reg::r6, Reg::r1);
  b.call(Helper::kKtimeGetNs);
  b.mov(Reg::r7, Reg::r0);
  b.mov(Reg::r1, Reg::r10);
  b.alu_imm(bpf::kAdd, Reg::r1, -8);
  b.mov_imm(Reg::r2, 8);
  b.load(8, Reg::r3, Reg::r6, bpf::x86_64_regs::kDi);
  b.call(Helper::kProbeReadUser);
  b.load(8, Reg::r0, Reg::r10, -8);
  b.exit();
  Body body = world.compile(*std::move(b).finish());
  EXPECT_TRUE(body.calls_helpers);
  EXPECT_GE(body.stack_bytes, 256u + 8u);
  abi::HitFrame frame{};
  frame.di = reinterpret_cast<uint64_t>(&value);
  EXPECT_EQ(static_cast<int64_t>(run_body(body, frame)), value);
}

TEST(Jit, DropsCallsWhoseResultNobodyReads) {
  World world;
  Builder b;
  b.call(Helper::kKtimeGetNs);
  b.mov_imm(Reg::r0, 7);
  b.exit();
  uint64_t before = time_calls;
  EXPECT_EQ(run_body(world.compile(*std::move(b).finish())), 7u);
  EXPECT_EQ(time_calls, before);
}

TEST(Jit, EmptyProgramHasNoCode) {
  World world;
  Builder b;
  b.mov_imm(Reg::r0, 0);
  b.exit();
  JitEnv env = world.env();
  env.keep_result = false;
  Body body = world.compile(*std::move(b).finish(), env);
  EXPECT_EQ(body.code_bytes, 0u);
  EXPECT_EQ(body.clobbers, 0u);
}

// ---- loops and their budget
// ------------------------------------------------------------------------------------

/// Counts in map[0] as often as the loop runs; the bound is *(u64*)(ctx + di).
Program loop_program(int map) {
  Builder b;
  auto out = b.new_label(), again = b.new_label();
  b.load(8, Reg::r6, Reg::r1, bpf::x86_64_regs::kDi);
  b.store_imm(4, Reg::r10, -4, 0);
  b.mov(Reg::r2, Reg::r10);
  b.alu_imm(bpf::kAdd, Reg::r2, -4);
  b.load_map(Reg::r1, map);
  b.call(Helper::kMapLookupElem);
  b.jump_if_imm(bpf::kJeq, Reg::r0, 0, out);
  b.mov_imm(Reg::r7, 0);
  b.mov_imm(Reg::r1, 1);
  b.bind(again);
  b.atomic(8, bpf::kAtomicAdd, Reg::r0, 0, Reg::r1);
  b.alu_imm(bpf::kAdd, Reg::r7, 1);
  b.jump_if(bpf::kJlt, Reg::r7, Reg::r6, again);
  b.bind(out);
  b.mov_imm(Reg::r0, 5);
  b.exit();
  return *std::move(b).finish();
}

TEST(JitBudget, EndsALoopAndCountsTheMiss) {
  World world;
  int map = world.add_array(1);
  uint64_t missed = 0;
  JitEnv env = world.env();
  env.budget = 100;
  env.missed_counter = TargetAddr(reinterpret_cast<uint64_t>(&missed));
  Body body = world.compile(loop_program(map), env);
  abi::HitFrame frame{};
  frame.di = UINT64_MAX;
  run_body(body, frame);
  EXPECT_EQ(missed, 1u);
  EXPECT_EQ(world.map(map).sum(0), 101u);  // the first round is no jump back
}

TEST(JitBudget, AllowsExactlyAsManyJumpsBack) {
  World world;
  int map = world.add_array(1);
  uint64_t missed = 0;
  JitEnv env = world.env();
  env.budget = 100;
  env.missed_counter = TargetAddr(reinterpret_cast<uint64_t>(&missed));
  Body body = world.compile(loop_program(map), env);
  abi::HitFrame frame{};
  frame.di = 101;
  EXPECT_EQ(run_body(body, frame), 5u);
  EXPECT_EQ(missed, 0u);
  frame.di = 102;
  run_body(body, frame);
  EXPECT_EQ(missed, 1u);
}

// ---- what it refuses
// -------------------------------------------------------------------------------------------

/// A checker that says yes to everything: what is refused then is refused by the JIT alone.
bpf::Analysis blind_faith(const Program& program) {
  bpf::Analysis analysis;
  analysis.stack_bytes = 512;
  analysis.insns.resize(program.size(), {.reached = true, .memory = bpf::Memory::kMixed});
  return analysis;
}

std::string refusal(
    const Program& program, const std::function<void(JitEnv&)>& change = [](JitEnv&) {}) {
  World world;
  world.add_array(1);
  JitEnv env = world.env();
  change(env);
  auto body = compile(program, blind_faith(program), env);
  return body ? "accepted" : body.error().message;
}

constexpr Insn kExit{bpf::kClassJmp | bpf::kExit, 0, 0, 0};
constexpr uint8_t kLddw = bpf::kClassLd | bpf::kSizeDw | bpf::kModeImm;

TEST(JitRefuses, AJumpBeyondTheEnd) {
  EXPECT_EQ(refusal({{bpf::kClassJmp | bpf::kJa, 0, 1, 0}, kExit}),
            "insn 0: goes beyond the end of the program");
  EXPECT_EQ(refusal({{bpf::kClassJmp | bpf::kJa, 0, -2, 0}, kExit}),
            "insn 0: goes beyond the end of the program");
  EXPECT_EQ(refusal({{bpf::kClassJmp | bpf::kJeq, 0, 32767, 0}, kExit}),
            "insn 0: goes beyond the end of the program");
  EXPECT_EQ(refusal({{bpf::kClassJmp32 | bpf::kJa, 0, 0, INT32_MAX}, kExit}),
            "insn 0: goes beyond the end of the program");
  EXPECT_EQ(refusal({{bpf::kClassJmp32 | bpf::kJa, 0, 0, INT32_MIN}, kExit}),
            "insn 0: goes beyond the end of the program");
}

TEST(JitRefuses, AProgramThatFallsOffItsEnd) {
  EXPECT_EQ(refusal({{bpf::kClassAlu64 | bpf::kMov, 0, 0, 1}}),
            "insn 0: goes beyond the end of the program");
  EXPECT_EQ(refusal({}), "an empty program");
}

TEST(JitRefuses, AJumpIntoA64BitLoad) {
  EXPECT_EQ(refusal({{bpf::kClassJmp | bpf::kJa, 0, 1, 0}, {kLddw, 0, 0, 1}, {0, 0, 0, 0}, kExit}),
            "insn 0: jumps into a 64-bit load");
}

TEST(JitRefuses, HalfA64BitLoad) {
  EXPECT_EQ(refusal({{kLddw, 0, 0, 1}, kExit}), "insn 0: half of a 64-bit load");
  EXPECT_EQ(refusal({{kLddw, 0, 0, 1}}), "insn 0: half of a 64-bit load");
}

TEST(JitRefuses, UnknownOpcodesAndRegisters) {
  EXPECT_EQ(refusal({{0xff, 0, 0, 0}, kExit}), "insn 0: unknown opcode 0xff");
  EXPECT_EQ(refusal({{bpf::kClassAlu64 | bpf::kMov, 11, 0, 0}, kExit}), "insn 0: no such register");
  EXPECT_EQ(refusal({{bpf::kClassAlu64 | bpf::kMov | bpf::kSrcX, 0xf0, 0, 0}, kExit}),
            "insn 0: no such register");
  EXPECT_EQ(refusal({{bpf::kClassAlu64 | bpf::kMov, 10, 0, 0}, kExit}), "insn 0: r10 is read-only");
}

TEST(JitRefuses, LocalCallsInWords) {
  EXPECT_EQ(refusal({{bpf::kClassJmp | bpf::kCall, 0x10, 0, 0}, kExit}),
            "insn 0: calls of local functions are not built yet");
}

TEST(JitRefuses, MapsAndHelpersThatAreNotThere) {
  EXPECT_EQ(refusal({{kLddw, 0x51, 0, 7}, {0, 0, 0, 0}, kExit}), "insn 0: no map 7");
  EXPECT_EQ(refusal({{kLddw, 0x11, 0, 7}, {0, 0, 0, 0}, kExit}),
            "insn 0: a 64-bit load of kind 1 means nothing here");
  EXPECT_EQ(refusal({{bpf::kClassJmp | bpf::kCall, 0, 0, 9999}, kExit}),
            "insn 0: helper 9999 is not there");
}

TEST(JitRefuses, FixedAccessesOutsideStackAndContext) {
  EXPECT_EQ(refusal({{bpf::kClassSt | bpf::kSizeDw | bpf::kModeMem, 10, -520, 0}, kExit}),
            "insn 0: an access outside the stack");
  EXPECT_EQ(refusal({{bpf::kClassSt | bpf::kSizeDw | bpf::kModeMem, 10, 0, 0}, kExit}),
            "insn 0: an access outside the stack");
  EXPECT_EQ(refusal({{bpf::kClassLdx | bpf::kSizeDw | bpf::kModeMem, 0x10, 176, 0}, kExit}),
            "insn 0: an access outside the context");
  EXPECT_EQ(refusal({{bpf::kClassSt | bpf::kSizeDw | bpf::kModeMem, 1, 0, 0}, kExit}),
            "insn 0: writing the context is not built yet");
}

TEST(JitRefuses, MoreStackThanAHitMayUse) {
  Program program = {{bpf::kClassJmp | bpf::kCall, 0, 0, 5}, kExit};
  EXPECT_EQ(refusal(program, [](JitEnv& env) { env.helpers.at(5).stack_bytes = 1400; }),
            "a hit would use 1736 bytes of the target's stack, more than 1536");
}

TEST(JitRefuses, AnalysisOfAnotherProgram) {
  World world;
  auto body = compile({kExit}, {}, world.env());
  ASSERT_FALSE(body);
  EXPECT_EQ(body.error().message, "the analysis is of another program");
}

TEST(JitRefuses, LayoutsThatNoArrayHas) {
  Program program = {{bpf::kClassAlu64 | bpf::kMov, 0, 0, 1}, kExit};
  auto with = [&](auto change) {
    return refusal(program, [&](JitEnv& env) { change(*env.maps[0].array); });
  };
  EXPECT_EQ(with([](ArrayLayout&) {}), "accepted");
  EXPECT_EQ(with([](ArrayLayout& a) { a.cpu_mask = 5; }), "map 0: a layout that no array has");
  EXPECT_EQ(with([](ArrayLayout& a) { a.cpu_mask = 0xffff; }), "map 0: a layout that no array has");
  EXPECT_EQ(with([](ArrayLayout& a) { a.max_entries = 0; }), "map 0: a layout that no array has");
  EXPECT_EQ(with([](ArrayLayout& a) { a.storage = TargetAddr(0); }),
            "map 0: a layout that no array has");
}

TEST(JitRefuses, AHelperOutOfReach) {
  Program program = {{bpf::kClassJmp | bpf::kCall, 0, 0, 12}, kExit};
  EXPECT_NE(
      refusal(program, [](JitEnv& env) { env.helpers[12] = {env.base + (uint64_t{8} << 30), 8}; })
          .find("a call beyond 2 GiB"),
      std::string::npos);
}

}  // namespace
}  // namespace spile::jit
