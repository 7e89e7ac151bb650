// Backward pass: which instructions matter.
//
// A probe program is written for the kernel's verifier: it spills keys to the stack, loads map
// pointers and checks for null. Once a lookup is inlined most of that has no reader any more. An
// instruction is kept if it has an effect outside (a store to a map, a call), or if something kept
// reads what it makes. Tracked: registers and bytes of eBPF's stack.
#pragma once

#include <bitset>
#include <cstdint>
#include <vector>

#include "bpf/checker.h"
#include "bpf/insn.h"
#include "user_engine/jit/facts.h"
#include "user_engine/jit/shape.h"

namespace spile::jit {

struct Live {
  uint16_t registers = 0;             ///< bit n: rn
  std::bitset<kBpfStackBytes> stack;  ///< bit n: the byte at r10 - 512 + n
  bool operator==(const Live&) const = default;
};

struct Liveness {
  std::vector<bool> kept;    ///< by instruction
  std::vector<Live> after;   ///< what is read later
  uint32_t stack_bytes = 0;  ///< of eBPF's stack that kept instructions can touch, multiple of 8
  uint16_t entry_registers = 0;  ///< read before anything in the program sets them: r1 or none
  SlotMask context_reads = 0;    ///< HitFrame words that kept instructions can read
};

Liveness find_liveness(const bpf::Program& program,
                       const Shape& shape,
                       const bpf::Analysis& analysis,
                       const Facts& facts,
                       const JitEnv& env);

}  // namespace spile::jit
