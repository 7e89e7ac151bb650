// An entry and a return program -> one for kprobe.session, which the kernel runs at both.
#pragma once

#include <cstdint>

#include "bpf/insn.h"

namespace spile::kernel_engine {

/// The number of a kernel function in a call instruction.
inline constexpr uint8_t kPseudoKfuncCall = 2;

/// Asks bpf_session_is_return() (the BTF id) which of the two is meant, and goes on there. Both get
/// the context in r1 as alone, and end the session program where they end.
bpf::Program join_session(const bpf::Program& entry,
                          const bpf::Program& at_return,
                          int32_t is_return_id);

/// Every call of get_attach_cookie becomes r0 = cookie: for ways to attach that have no cookie.
void fix_cookie(bpf::Program& program, uint64_t cookie);

bool calls(const bpf::Program& program, bpf::Helper helper);

}  // namespace spile::kernel_engine
