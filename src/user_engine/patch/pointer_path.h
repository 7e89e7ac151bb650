// Where the pointer of an indirect jump comes from, as far as the code before the jump shows.
//
//   mov x(%rip),%rax          the word at x                    base x, offsets {0}
//   jmp *%rax
//   mov x@GOTPCREL(%rip),%rax the word 0x90 behind what the    base x, offsets {0, 0x90}
//   jmp *0x90(%rax)           word at x says
//   mov (%rdi),%rax           a member of a table that is not  no base, offsets {0, 0x18}
//   jmp *0x18(%rax)           known: a virtual function
//
// A guess: what stands before the jump need not run before it. Whoever uses it checks what the
// pointer holds when the jump runs.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "user_engine/patch/code_map.h"

namespace spile::patch {

/// Words are read one after the other: the first at base + offsets[0], the next at its value +
/// offsets[1], and so on; the last one is where the jump goes.
struct PointerPath {
  std::optional<TargetAddr> base;  ///< nullopt: it starts at an address that is not known
  std::vector<int64_t> offsets;
};

/// `index`: of an indirect jump in code.insns. nullopt: nothing is known, not even an offset.
std::optional<PointerPath> find_pointer_path(const CodeMap& map, const Sweep& code, size_t index);

}  // namespace spile::patch
