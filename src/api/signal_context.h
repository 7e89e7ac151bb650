// The registers of a signal's context as handlers of probes see them.
#pragma once

#include <spile/probes.h>
#include <ucontext.h>

namespace spile::api {

/// All but ip and sp.
inline constexpr struct {
  unsigned long spile_regs::* ours;
  int theirs;
} kContextWords[] = {
    {&spile_regs::r15, REG_R15},  {&spile_regs::r14, REG_R14}, {&spile_regs::r13, REG_R13},
    {&spile_regs::r12, REG_R12},  {&spile_regs::bp, REG_RBP},  {&spile_regs::bx, REG_RBX},
    {&spile_regs::r11, REG_R11},  {&spile_regs::r10, REG_R10}, {&spile_regs::r9, REG_R9},
    {&spile_regs::r8, REG_R8},    {&spile_regs::ax, REG_RAX},  {&spile_regs::cx, REG_RCX},
    {&spile_regs::dx, REG_RDX},   {&spile_regs::si, REG_RSI},  {&spile_regs::di, REG_RDI},
    {&spile_regs::flags, REG_EFL}};

inline spile_regs registers_of(const ucontext_t& context) {
  const greg_t* g = context.uc_mcontext.gregs;
  spile_regs regs = {};
  for (const auto& w : kContextWords) regs.*w.ours = static_cast<unsigned long>(g[w.theirs]);
  regs.ip = static_cast<unsigned long>(g[REG_RIP]);
  regs.sp = static_cast<unsigned long>(g[REG_RSP]);
  regs.orig_ax = ~0ul;
  regs.cs = 0x33;
  regs.ss = 0x2b;
  return regs;
}

/// ip and sp stay as they are there.
inline void put_registers(const spile_regs& regs, ucontext_t& context) {
  for (const auto& w : kContextWords)
    context.uc_mcontext.gregs[w.theirs] = static_cast<greg_t>(regs.*w.ours);
}

}  // namespace spile::api
