// The control flow of a program, and what can be said about it without knowing any value.
#pragma once

#include <cstdint>
#include <vector>

#include "base/error.h"
#include "bpf/insn.h"

namespace spile::bpf {

struct CfgNode {
  bool is_insn = true;  ///< false: second half of lddw
  bool is_jump_target = false;
  bool is_merge = false;      ///< reached from two places or more
  bool is_loop_head = false;  ///< the target of a jump backwards
  uint16_t live_in = 0;       ///< bit n: rn is read later before it is written
  uint16_t live_out = 0;
};

struct CfgBackEdge {
  uint32_t insn = 0;
  uint32_t target = 0;
};

struct Cfg {
  std::vector<CfgNode> nodes;           ///< one for each Insn
  std::vector<CfgBackEdge> back_edges;  ///< jumps to themselves or to an earlier instruction
  uint64_t longest_path = 0;            ///< instructions; 0 where there are back edges
};

/// Where control goes after the instruction at `at`: none, one or two indices; the one of the taken
/// jump last.
struct Successors {
  uint32_t next[2] = {0, 0};
  int count = 0;
};
Successors successors(const Program& program, size_t at);

/// Checks every encoding, every jump, that no path runs off the end and that every instruction is
/// reached by some path. Errors: those of check_encoding; unsafe where control flow is wrong;
/// unsupported beyond `max_insns`.
Result<Cfg> build_cfg(const Program& program, uint32_t max_insns);

}  // namespace spile::bpf
