// The kernel runs the same programs and must come to the same results, and its verifier must accept
// what ours does.
//
// As BPF_PROG_TYPE_SYSCALL, because BPF_PROG_TEST_RUN runs it in our own context, with a buffer of
// ours as its context: r0 has 32 bits there, so the programs store it into the buffer. Needs root
// (CAP_BPF); says so where it is refused.
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <linux/bpf.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <optional>

#include "base/fd.h"
#include "bpf/builder.h"
#include "bpf/checker.h"
#include "bpf/disasm.h"
#include "bpf/encoding.h"
#include "bpf/grown_program.h"
#include "bpf/interpreter.h"
#include "bpf/random_program.h"

namespace spile::bpf {
namespace {

long sys_bpf(int command, bpf_attr& attr) {
  return ::syscall(SYS_bpf, command, &attr, sizeof attr);
}
uint64_t pointer(const void* p) {
  return reinterpret_cast<uint64_t>(p);
}

struct Loaded {
  Fd fd;
  int error = 0;  ///< errno
  std::string log;
};

Loaded load_into_kernel(const Program& program, uint32_t type, bool wants_log) {
  static std::vector<char> log(1 << 20);
  bpf_attr attr = {};
  attr.prog_type = type;
  attr.insns = pointer(program.data());
  attr.insn_cnt = static_cast<uint32_t>(program.size());
  attr.license = pointer("GPL");
  if (type == BPF_PROG_TYPE_SYSCALL) attr.prog_flags = BPF_F_SLEEPABLE;
  if (wants_log) {
    attr.log_level = 1;
    attr.log_buf = pointer(log.data());
    attr.log_size = static_cast<uint32_t>(log.size());
    log[0] = 0;
  }
  auto fd = static_cast<int>(sys_bpf(BPF_PROG_LOAD, attr));
  Loaded loaded{Fd(fd), fd < 0 ? errno : 0, ""};
  if (fd < 0 && wants_log) loaded.log = log.data();
  return loaded;
}

/// The program with its result in the first eight bytes of the context instead of in r0. The
/// context's address waits in a stack slot that the test programs do not use.
Program storing_result(const Program& program) {
  constexpr int16_t kSlot = -512;
  Program result{{kClassStx | kSizeDw | kModeMem, 0x1a, kSlot, 0}, {kClassAlu64 | kMov, 1, 0, 0}};
  result.insert(result.end(), program.begin(), program.end());
  result.pop_back();  // exit
  result.push_back({kClassLdx | kSizeDw | kModeMem, 0xa1, kSlot, 0});
  result.push_back({kClassStx | kSizeDw | kModeMem, 0x01, 0, 0});
  result.push_back({kClassAlu64 | kMov, 0, 0, 0});
  result.push_back({kClassJmp | kExit, 0, 0, 0});
  return result;
}

std::optional<uint64_t> run_in_kernel(const Fd& program) {
  uint64_t context[2] = {};
  bpf_attr attr = {};
  attr.test.prog_fd = static_cast<uint32_t>(program.get());
  attr.test.ctx_in = pointer(context);
  attr.test.ctx_size_in = sizeof context;  // the kernel writes the context back to ctx_in
  if (sys_bpf(BPF_PROG_TEST_RUN, attr) != 0) return std::nullopt;
  return context[0];
}

/// Programs whose only exit is the last instruction, as storing_result() needs it.
bool ends_once(const Program& program) {
  return std::ranges::count_if(program, [](const Insn& insn) { return is_exit(insn); }) == 1 &&
         is_exit(program.back());
}

/// More of them than in every run: SPILE_CONFORMANCE_PROGRAMS=20000.
uint64_t conformance_programs(uint64_t by_default) {
  const char* wanted = std::getenv("SPILE_CONFORMANCE_PROGRAMS");
  return wanted != nullptr ? std::strtoull(wanted, nullptr, 10) : by_default;
}

class KernelConformance : public testing::Test {
 protected:
  void SetUp() override {
    Loaded plain =
        load(storing_result({{kClassAlu64 | kMov, 0, 0, 1}, {kClassJmp | kExit, 0, 0, 0}}), false);
    if (!plain.fd) GTEST_SKIP() << "bpf(2) refuses a program here: " << std::strerror(plain.error);
    if (!run_in_kernel(plain.fd))
      GTEST_SKIP() << "BPF_PROG_TEST_RUN is refused here: " << std::strerror(errno);
    // r1 = (s8)r0: refused by kernels before 6.6.
    Program v4{{kClassAlu64 | kMov, 0, 0, 1},
               {kClassAlu64 | kMov | kSrcX, 0x01, 8, 0},
               {kClassJmp | kExit, 0, 0, 0}};
    has_cpu_v4_ = static_cast<bool>(load(storing_result(v4), false).fd);
  }

  static Loaded load(const Program& program, bool wants_log) {
    return load_into_kernel(program, BPF_PROG_TYPE_SYSCALL, wants_log);
  }

  static void expect_same(const std::string& name, const Program& program, uint64_t expected) {
    Program in_kernel = storing_result(program);
    Loaded loaded = load(in_kernel, false);
    if (!loaded.fd) {
      loaded = load(in_kernel, true);
      FAIL() << name << ": the kernel refuses: " << loaded.log.substr(0, 3000) << '\n'
             << disassemble(program);
    }
    std::optional<uint64_t> result = run_in_kernel(loaded.fd);
    ASSERT_TRUE(result.has_value()) << name;
    EXPECT_EQ(*result, expected) << name << '\n' << disassemble(program);
  }

  bool has_cpu_v4_ = false;
};

TEST_F(KernelConformance, EveryOpcodeGivesTheSameResult) {
  int skipped = 0;
  for (const OpcodeCase& c : opcode_cases()) {
    if (!ends_once(c.program)) continue;
    if (c.cpu_v4 && !has_cpu_v4_) {
      ++skipped;
      continue;
    }
    expect_same(c.name, c.program, c.expected);
  }
  if (skipped > 0) GTEST_SKIP() << skipped << " cpu v4 cases skipped: this kernel has cpu v3";
}

// Without cmpxchg of 32 bits: where it succeeds, r0 must be zero-extended, but Linux 6.18 on x86-64
// sometimes leaves the upper half (one program in 3000; the smallest found is a cmpxchg on
// constants, a conditional jump and an exit). The verifier adds the extension only where a path
// that it walked reads all of r0, and it prunes paths.
TEST_F(KernelConformance, RandomProgramsGiveTheSameResult) {
  RandomProgramOptions options{
      .operations = 50, .narrow_cmpxchg = false, .loops = false, .cpu_v4 = has_cpu_v4_};
  for (uint64_t seed = 0; seed < conformance_programs(400); ++seed) {
    Program program = random_program(seed, options);
    Result<RunResult> here = run(program, 0, {});
    ASSERT_TRUE(here);
    expect_same(fmt::format("seed {}", seed), program, here->r0);
    if (HasFailure()) return;
  }
}

TEST_F(KernelConformance, RandomProgramsWithLoopsGiveTheSameResult) {
  RandomProgramOptions options{.operations = 30, .narrow_cmpxchg = false, .cpu_v4 = has_cpu_v4_};
  for (uint64_t seed = 0; seed < conformance_programs(100); ++seed) {
    Program program = random_program(seed, options);
    Result<RunResult> here = run(program, 0, {});
    ASSERT_TRUE(here);
    expect_same(fmt::format("seed {}", seed), program, here->r0);
    if (HasFailure()) return;
  }
}

// ---- verifier
// ------------------------------------------------------------------------------------------------------

Fd create_map(const MapInfo& map) {
  constexpr uint32_t types[] = {BPF_MAP_TYPE_HASH, BPF_MAP_TYPE_ARRAY, BPF_MAP_TYPE_PERCPU_HASH,
                                BPF_MAP_TYPE_PERCPU_ARRAY, BPF_MAP_TYPE_RINGBUF};
  bpf_attr attr = {};
  attr.map_type = types[static_cast<size_t>(map.kind)];
  attr.key_size = map.key_size;
  attr.value_size = map.value_size;
  attr.max_entries = map.max_entries;
  return Fd(static_cast<int>(sys_bpf(BPF_MAP_CREATE, attr)));
}

/// Map indices become descriptors.
Program with_descriptors(Program program, const std::vector<Fd>& maps) {
  for (Insn& insn : program) {
    if (!is_lddw(insn) || insn.src() != kPseudoMapIdx) continue;
    insn.regs = static_cast<uint8_t>(insn.dst() | kPseudoMapFd << 4);
    insn.imm = maps[static_cast<size_t>(insn.imm)].get();
  }
  return program;
}

/// The checker knows a little more than some verifiers, such as the value of half of a spilled
/// constant: of programs that are made to be just barely right a few may be refused.
TEST_F(KernelConformance, TheVerifierAcceptsWhatTheCheckerAccepts) {
  std::vector<Fd> maps;
  for (const MapInfo& map : kGrownMaps) {
    maps.push_back(create_map(map));
    if (!maps.back()) GTEST_SKIP() << "BPF_MAP_CREATE is refused here: " << std::strerror(errno);
  }
  uint64_t programs = conformance_programs(300), refused = 0;
  std::string reasons;
  for (uint64_t seed = 1; seed <= programs; ++seed) {
    Program program = with_descriptors(ProgramGrower(seed, false).grow(60), maps);
    Loaded loaded = load_into_kernel(program, BPF_PROG_TYPE_KPROBE, true);
    if (loaded.fd) continue;
    ++refused;
    size_t end_of_log = loaded.log.size() - std::min<size_t>(loaded.log.size(), 500);
    reasons += fmt::format("seed {}: ...{}\n", seed, loaded.log.substr(end_of_log));
  }
  EXPECT_LE(refused, programs / 50) << reasons;
}

}  // namespace
}  // namespace spile::bpf
