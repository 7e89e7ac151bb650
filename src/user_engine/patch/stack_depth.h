// How far the stack pointer is below the return address, instruction by instruction.
//
// A tail jump leaves with the stack pointer where it was at the entry; a jump with anything else on
// the stack stays in its function. A `ret` with something on the stack is none: it pops what was
// pushed. Both questions are answered by following push, pop and arithmetic on rsp along the direct
// branches of a region.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "user_engine/patch/code_map.h"

namespace spile::patch {

/// One instruction's stack, before it runs.
struct StackDepth {
  std::optional<int64_t> bytes;  ///< below the slot of the return address; nullopt: not known
  bool from_entry = false;       ///< reached from the region's start by direct branches alone
};

struct StackDepths {
  std::vector<StackDepth> before;  ///< one an instruction of Sweep::insns
  /// Loads the stack pointer from memory: the code goes on on another stack.
  std::optional<TargetAddr> switches_stack;
};

/// `starts_function`: the region is entered at its start with only the return address on the stack;
/// otherwise (a part that the compiler put elsewhere) nothing is known there.
StackDepths find_stack_depths(const CodeMap& map, const Sweep& code, bool starts_function);

}  // namespace spile::patch
