#include "kernel_engine/session_program.h"

#include <algorithm>

#include "base/error.h"

namespace spile::kernel_engine {

namespace {

using bpf::Insn;
using bpf::Reg;

Insn make(uint8_t code, Reg dst, uint8_t src, int16_t off, int32_t imm) {
  return {code, static_cast<uint8_t>(static_cast<uint8_t>(dst) | src << 4), off, imm};
}

Insn move(Reg dst, Reg src) {
  return make(bpf::kClassAlu64 | bpf::kMov | bpf::kSrcX, dst, static_cast<uint8_t>(src), 0, 0);
}

bool is_call(const Insn& insn, bpf::Helper helper) {
  return insn.code == (bpf::kClassJmp | bpf::kCall) && insn.src() == bpf::kCallHelper &&
         insn.imm == static_cast<int32_t>(helper);
}

}  // namespace

bpf::Program join_session(const bpf::Program& entry,
                          const bpf::Program& at_return,
                          int32_t is_return_id) {
  SPILE_CHECK(entry.size() < INT16_MAX);
  const auto over_entry = static_cast<int16_t>(entry.size());
  bpf::Program joined = {
      move(Reg::r6, Reg::r1),
      make(bpf::kClassJmp | bpf::kCall, Reg::r0, kPseudoKfuncCall, 0, is_return_id),
      move(Reg::r1, Reg::r6),
      // The kernel's function gives a bool: the rest of r0 is not known.
      make(bpf::kClassAlu64 | bpf::kAnd, Reg::r0, 0, 0, 0xff),
      make(bpf::kClassJmp | bpf::kJne, Reg::r0, 0, over_entry, 0),
  };
  joined.insert(joined.end(), entry.begin(), entry.end());
  joined.insert(joined.end(), at_return.begin(), at_return.end());
  return joined;
}

void fix_cookie(bpf::Program& program, uint64_t cookie) {
  SPILE_CHECK(cookie <= INT32_MAX);
  for (Insn& insn : program) {
    if (is_call(insn, bpf::Helper::kGetAttachCookie))
      insn = make(bpf::kClassAlu64 | bpf::kMov, Reg::r0, 0, 0, static_cast<int32_t>(cookie));
  }
}

bool calls(const bpf::Program& program, bpf::Helper helper) {
  return std::ranges::any_of(program, [&](const Insn& insn) { return is_call(insn, helper); });
}

}  // namespace spile::kernel_engine
