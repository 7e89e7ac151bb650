// Programs for tests of whatever runs eBPF: one per opcode with its result, and random ones from a
// seed.
//
// All of them pass check() with a default CheckEnv: they use no context, no maps and no helpers,
// and leave what they computed in r0. The same seed gives the same program in every run of one
// build.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "bpf/insn.h"

namespace spile::bpf {

struct RandomProgramOptions {
  int operations = 60;  ///< roughly how many instructions between setup and exit
  bool memory = true;   ///< loads and stores of the stack
  bool atomics = true;
  bool narrow_cmpxchg = true;  ///< cmpxchg of 32 bits
  bool forward_jumps = true;
  bool loops = true;   ///< counted, nested at most once, a few rounds
  bool cpu_v4 = true;  ///< sdiv, smod, movsx, ldsx, bswap, gotol: kernels from 6.6 on
};

Program random_program(uint64_t seed, const RandomProgramOptions& options = {});

struct OpcodeCase {
  std::string name;  ///< "add32_k wraps"
  Program program;
  uint64_t expected = 0;  ///< r0
  bool cpu_v4 = false;
};

/// At least one for each opcode that the checker accepts, and the corner cases: wrapping, division
/// by 0 and of the smallest number, masked shifts, sign and zero extension, jumps taken and not
/// taken.
const std::vector<OpcodeCase>& opcode_cases();

}  // namespace spile::bpf
