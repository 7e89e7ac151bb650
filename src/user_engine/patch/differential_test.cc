// Random code run twice in this process: as it is, and patched with its window displaced.
// Registers, flags, vector registers, memory, the way it leaves and, if it faults, where, must be
// the same.
//
// SPILE_DIFFERENTIAL_CASES=1000000 runs more cases, SPILE_DIFFERENTIAL_SEED another sequence.
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <sys/syscall.h>

#include <map>

#include "user_engine/patch/testing/machine.h"

namespace spile::patch {
namespace {

class Differential : public testing::Test {
 protected:
  Differential() {
    // Landing places of short branches: jmp rel8 chains would be too near, so each is a jmp rel32
    // in 8 bytes.
    for (uint64_t i = 0; i < 4; ++i) {
      write_near_exit(kNearExits + i * 8, 4 + static_cast<int>(i));
      write_near_exit(kBackExits + i * 8, static_cast<int>(i));
    }
  }
  void write_near_exit(uint64_t offset, int exit) {
    arena.write(offset, *x86::encode_jmp(arena.code_at(offset), arena.exit_at(exit)));
  }

  /// Runs `code` bare and patched. False if the planner refuses it.
  bool run_case(const Code& code, const CpuState& in) {
    Code image(kNearExits - kFunction, 0x90);
    std::copy(code.begin(), code.end(), image.begin());
    arena.write(kFunction, image);
    const ModuleCode module = module_of(arena, code.size());
    PlanRules full;  // five bytes: a short site needs a placement
    full.puns = false;
    const auto plan = plan_entry(module, arena.code_at(kFunction), full);
    if (!plan) {
      ++refusals[std::string(to_string(plan.error().kind))];
      return false;
    }
    const auto copy = displaced_code(*plan, arena.code_at(kDetour));
    EXPECT_TRUE(copy) << copy.error().message;
    const Ending bare = arena.run(in);
    arena.write(kDetour, copy->bytes);
    arena.write(kFunction, *patch_bytes(*plan, arena.code_at(kDetour)));
    Ending patched = arena.run(in);
    ++endings[bare.signal != 0    ? fmt::format("signal {}", bare.signal)
              : bare.exit_id == 1 ? "fell through"
                                  : "branched"];
    check_fault_address(*copy, bare, patched);
    const std::string wrong = difference(bare, patched);
    EXPECT_EQ(wrong, "") << x86::format_code(code, arena.code_at(kFunction)) << "displaced:\n"
                         << x86::format_code(copy->bytes, arena.code_at(kDetour));
    return true;
  }

  /// A fault in the copy maps back to where it happened in the original; a call's push is undone on
  /// the way.
  void check_fault_address(const x86::RelocatedCode& copy, const Ending& bare, Ending& patched) {
    if (bare.signal == 0 || patched.signal == 0) return;
    const auto original = rip_after_detach(copy, TargetAddr(patched.state.rip));
    EXPECT_EQ(original ? original->original.value : patched.state.rip, bare.state.rip);
    if (original) patched.state.gpr[x86::kRsp] += original->pop_bytes;
  }

  Arena arena;
  std::map<std::string, int> refusals, endings;
};

TEST_F(Differential, RandomCodeDoesTheSameWhenDisplaced) {
  const uint64_t cases = number_from("SPILE_DIFFERENTIAL_CASES", 25000);
  const uint64_t seed = number_from("SPILE_DIFFERENTIAL_SEED", 1);
  Generator generator(arena, seed);
  uint64_t run = 0;
  for (uint64_t i = 0; run < cases && i < cases * 2; ++i) {
    const Code code = generator.function();
    run += run_case(code, generator.state());
    ASSERT_FALSE(HasFailure()) << "case " << i << " of seed " << seed;
  }
  for (const auto& [what, n] : endings) fmt::print("  {:32} {}\n", what, n);
  for (const auto& [what, n] : refusals) fmt::print("  refused: {:23} {}\n", what, n);
  EXPECT_EQ(run, cases) << "the planner refused too many";
  EXPECT_GT(endings["branched"], static_cast<int>(cases / 8));
  EXPECT_GT(endings["fell through"], static_cast<int>(cases / 8));
}

/// A state whose flags make exactly what the bits say.
CpuState state_with_flags(Generator& generator, uint64_t flags) {
  CpuState s = generator.state();
  s.flags = flags | kReservedFlag | kInterruptFlag;
  return s;
}

TEST_F(Differential, AllConditionsTakenAndNotTaken) {
  Generator generator(arena, 2);
  for (unsigned condition = 0; condition < 16; ++condition) {
    for (const uint64_t flags : {0x000u, 0x001u, 0x004u, 0x040u, 0x080u, 0x800u, 0x880u, 0x8d5u}) {
      const auto rel8 = static_cast<uint8_t>(kNearExits - (kFunction + 2));
      Code code = {static_cast<uint8_t>(0x70 | condition), rel8, 0x48, 0x89, 0xc8, 0xe9};
      x86::append_u32(code, static_cast<uint32_t>(
                                *x86::rel32(arena.code_at(kFunction + 10), arena.exit_at(0))));
      ASSERT_TRUE(run_case(code, state_with_flags(generator, flags)));
    }
  }
}

TEST_F(Differential, CountedLoopsOntoThemselvesEnd) {
  Generator generator(arena, 3);
  for (const uint8_t opcode : {0xe0, 0xe1, 0xe2}) {
    for (const uint64_t count : {1u, 2u, 7u, 1000u}) {
      // loop .; mov %rcx,%rax
      Code code = {opcode, 0xfe, 0x48, 0x89, 0xc8, 0xe9};
      x86::append_u32(code, static_cast<uint32_t>(
                                *x86::rel32(arena.code_at(kFunction + 10), arena.exit_at(0))));
      CpuState in = generator.state();
      in.gpr[x86::kRcx] = count;
      ASSERT_TRUE(run_case(code, in));
    }
  }
}

TEST_F(Differential, GetpcThunksSeeTheirOriginalAddress) {
  // call to the next instruction; pop %rax; jmp exit 0
  Code code = {0xe8, 0, 0, 0, 0, 0x58, 0xe9};
  x86::append_u32(
      code, static_cast<uint32_t>(*x86::rel32(arena.code_at(kFunction + 11), arena.exit_at(0))));
  Generator generator(arena, 4);
  ASSERT_TRUE(run_case(code, generator.state()));
  const Ending end = arena.run(generator.state());
  EXPECT_EQ(end.state.gpr[x86::kRax], arena.code_at(kFunction + 5).value);
}

TEST_F(Differential, SystemCallsWorkFromTheCopy) {
  // mov $39,%eax; syscall; xor %ecx,%ecx (rcx is the address behind the syscall); jmp exit 0
  Code code = {0x31, 0xc0, 0xb0, SYS_getpid, 0x0f, 0x05, 0x31, 0xc9, 0xe9};
  x86::append_u32(
      code, static_cast<uint32_t>(*x86::rel32(arena.code_at(kFunction + 13), arena.exit_at(0))));
  Generator generator(arena, 5);
  CpuState in = generator.state();
  ASSERT_TRUE(run_case(code, in));
  EXPECT_EQ(arena.run(in).state.gpr[x86::kRax], static_cast<uint64_t>(getpid()));
}

TEST_F(Differential, RepeatedStringInstructionsCopyTheSame) {
  // mov $64,%ecx; lea 0x80(%rsi),%rdi; rep movsb
  Code code = {0xf3, 0xa4, 0x48, 0x89, 0xc8, 0xe9};
  x86::append_u32(
      code, static_cast<uint32_t>(*x86::rel32(arena.code_at(kFunction + 10), arena.exit_at(0))));
  Generator generator(arena, 6);
  CpuState in = state_with_flags(generator, 0);
  in.gpr[x86::kRsi] = arena.data_at(kScratch).value;
  in.gpr[x86::kRdi] = arena.data_at(kScratch + 0x80).value;
  in.gpr[x86::kRcx] = 64;
  ASSERT_TRUE(run_case(code, in));
}

TEST_F(Differential, WithoutRelocationTheResultIsWrong) {
  // The oracle sees a difference when the copy is not rebased: lea 0x100(%rip),%rax copied as it
  // is.
  Code code = {0x48, 0x8d, 0x05, 0x00, 0x01, 0x00, 0x00, 0xe9};
  x86::append_u32(
      code, static_cast<uint32_t>(*x86::rel32(arena.code_at(kFunction + 12), arena.exit_at(0))));
  arena.write(kFunction, code);
  Generator generator(arena, 7);
  const CpuState in = generator.state();
  const Ending bare = arena.run(in);
  Code wrong(code.begin(), code.begin() + 7);
  const auto back = *x86::encode_jmp(arena.code_at(kDetour + 7), arena.code_at(kFunction + 7));
  wrong.insert(wrong.end(), back.begin(), back.end());
  arena.write(kDetour, wrong);
  arena.write(kFunction, *x86::encode_jmp(arena.code_at(kFunction), arena.code_at(kDetour)));
  EXPECT_NE(difference(bare, arena.run(in)), "");
}

}  // namespace
}  // namespace spile::patch
