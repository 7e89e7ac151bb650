// eBPF as text, in the notation of llvm-objdump and of the kernel's verifier log.
//
//   r0 = *(u64 *)(r1 + 112)          if r0 == 0 goto +3         lock *(u64 *)(r0 + 0) += r1
//   call ringbuf_reserve#131         r1 = map[2] ll             w2 s>>= 4
#pragma once

#include <cstddef>
#include <string>

#include "bpf/insn.h"

namespace spile::bpf {

/// One instruction. `at` is its index in `program`; a lddw takes its second half from there.
/// Bytes that are no instruction print as "unknown opcode 0x..": this never fails, so that refused
/// programs can be shown.
std::string disassemble(const Program& program, size_t at);

/// The whole program, one instruction a line: index, colon, text; jumps also name the index they go
/// to:
///
///      5: if r0 == 0 goto +3 <9>
std::string disassemble(const Program& program);

}  // namespace spile::bpf
