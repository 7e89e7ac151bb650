// The skeleton of a program: where instructions begin and where each may go next.
//
// The checker has looked at this already. It is validated again because here a wrong edge would
// become a wild jump.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "base/error.h"
#include "bpf/insn.h"

namespace spile::jit {

/// Where control goes after one instruction; -1: not there.
struct Edges {
  int32_t next = -1;    ///< falls through
  int32_t target = -1;  ///< jumps; with `next` set: conditionally
};

struct Shape {
  std::vector<Edges> edges;   ///< one for each Insn
  std::vector<bool> is_head;  ///< false for the second half of lddw

  bool jumps_back(size_t insn) const {
    return edges[insn].target >= 0 && static_cast<size_t>(edges[insn].target) <= insn;
  }
};

/// Errors: invalid  too long or empty, an unknown opcode or register, a jump outside or into a
/// lddw, no exit at the end
Result<Shape> find_shape(const bpf::Program& program);

// What an opcode is, by its bits.
bool is_alu(const bpf::Insn& insn);
bool is_alu64(const bpf::Insn& insn);
bool is_load(const bpf::Insn& insn);   ///< from memory to a register
bool is_store(const bpf::Insn& insn);  ///< of a register or constant; not an atomic
bool is_atomic(const bpf::Insn& insn);
bool is_lddw(const bpf::Insn& insn);
bool is_call(const bpf::Insn& insn);
bool is_exit(const bpf::Insn& insn);
bool is_branch(const bpf::Insn& insn);  ///< conditional
/// ALU or branch whose second operand is a register.
bool has_source_register(const bpf::Insn& insn);
constexpr uint8_t operation(const bpf::Insn& insn) {
  return insn.code & 0xf0;
}
constexpr uint8_t insn_class(const bpf::Insn& insn) {
  return insn.code & 0x07;
}
/// Of a load, store or atomic, in bytes.
int access_bytes(const bpf::Insn& insn);

}  // namespace spile::jit
