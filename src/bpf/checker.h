// Proves that an eBPF program can only do what its environment allows, before anything runs it.
//
// The check has two passes. The first looks at each instruction by itself (known opcode, unused
// fields zero, jumps that land on an instruction, no code that nothing reaches). The second walks
// every path with an abstract state: for each register and stack slot whether it is initialised, a
// number in a range, or a pointer to the context, the stack, a map value or a ring record, with its
// offset. Paths that meet keep a few states apart and are joined after that; loops are widened
// until nothing changes. So the walk always ends, after a bounded number of steps.
//
// What is proved, for every run of an accepted program:
//   - each read is of initialised stack, of readable context bytes, or inside a map value or a
//   record that is not null;
//   - each write is inside the stack, a map value or a record; the context stays as it was;
//   - no address is stored outside the stack, none is computed out of its object and then used;
//   - helpers get what their signature asks for (helpers.h);
//   - each reserved record is submitted or discarded exactly once, and never held across a jump
//   backwards, so that a
//     run may be ended there;
//   - r0 is a number at the exit.
// What is not proved: that loops end. Each jump backwards is in Analysis::back_edges; who runs the
// program counts there.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "base/error.h"
#include "bpf/helpers.h"
#include "bpf/insn.h"

namespace spile::bpf {

enum class MapKind : uint8_t { kHash, kArray, kPerCpuHash, kPerCpuArray, kRing, kStacks };

/// A map as programs see it: lddw with kPseudoMapIdx and its index in CheckEnv::maps.
struct MapInfo {
  MapKind kind = MapKind::kHash;
  uint32_t key_size = 0;     ///< bytes; 4 for arrays
  uint32_t value_size = 0;   ///< bytes, of one CPU
  uint32_t max_entries = 0;  ///< kRing: bytes
};

struct CheckLimits {
  uint32_t max_insns = 32768;  ///< a lddw counts as two
  uint32_t max_stack_bytes = 512;
  uint64_t insn_budget = 1'000'000;  ///< a program without loops may not run longer than this
  uint64_t max_steps = 1'000'000;  ///< of the walk; more and the program is refused as too complex
  uint32_t states_kept =
      8;  ///< how many states are walked apart where paths meet, before they are joined
};

struct CheckEnv {
  uint32_t context_size = 0;  ///< bytes; 0: r1 is only good for get_attach_cookie
  uint32_t context_first_byte =
      0;  ///< bytes before it cannot be read (8 for tracepoints, as in the kernel)
  bool context_writable = false;
  std::vector<MapInfo> maps;
  std::optional<std::vector<Helper>>
      helpers;  ///< those that may be called; not set: all of enum Helper
  CheckLimits limits;
};

/// What a load, store or atomic works on, on every path.
enum class Memory : uint8_t { kNone, kContext, kStack, kMapValue, kRecord, kMixed };

struct InsnFacts {
  bool reached =
      false;  ///< false: no run gets here (its condition is decided), or second half of lddw
  bool jump_target = false;
  Memory memory = Memory::kNone;
  uint16_t live_in = 0;   ///< bit n: the value of rn before this instruction is still needed
  uint16_t live_out = 0;  ///< the same, after it
};

/// What is the same for a call on every path.
struct CallFacts {
  uint32_t insn = 0;
  Helper helper = Helper::kMapLookupElem;
  int map = -1;                  ///< index of the map in r1; -1: none, or not always the same
  std::optional<uint64_t> size;  ///< the size argument (of memory or of a record) where constant
  std::optional<std::vector<uint8_t>>
      constant_key;  ///< the bytes that r2 points to, where it is a map key
  /// lookup: the key is a constant inside an array, so the result is never 0. The program checks it
  /// all the same.
  bool never_null = false;
};

struct BackEdge {
  uint32_t insn = 0;    ///< the jump
  uint32_t target = 0;  ///< <= insn
};

struct ContextRead {
  uint32_t offset = 0;
  uint32_t size = 0;
  constexpr auto operator<=>(const ContextRead&) const = default;
};

struct Analysis {
  uint32_t stack_bytes = 0;      ///< below r10, multiple of 8
  std::vector<InsnFacts> insns;  ///< one for each Insn
  std::vector<CallFacts> calls;  ///< reached calls, in program order
  std::vector<BackEdge> back_edges;
  std::vector<ContextRead> context_reads;  ///< sorted, each once
  /// The context's address is passed to a helper as an address to read: any of its bytes may be
  /// read.
  bool context_escapes = false;
  std::vector<Helper> helpers;  ///< called, sorted, each once
  uint64_t longest_path = 0;    ///< instructions of the longest run; 0: the program has loops

  /// Null where `insn` is no reached call.
  const CallFacts* call_at(uint32_t insn) const;
};

/// Errors: unsafe       the program could do harm; the message names the instruction and the
/// register
///         unsupported  an instruction or helper that is not built, or a program too large or too
///         complex
Result<Analysis> check(const Program& program, const CheckEnv& env);

}  // namespace spile::bpf
