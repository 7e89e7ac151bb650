#include "user_engine/patch/testing/machine.h"

#include <ucontext.h>

// iretq loads rip, rflags and rsp at once, and serialises: bytes just written are what runs.
asm(R"(
  .text
  .globl spile_differential_run, spile_differential_done
spile_differential_run:
  push %rbx; push %rbp; push %r12; push %r13; push %r14; push %r15
  mov %rsp, host_rsp(%rip)
  mov %rsi, out_state(%rip)
  movups 144(%rdi),%xmm0;  movups 160(%rdi),%xmm1;  movups 176(%rdi),%xmm2;  movups 192(%rdi),%xmm3
  movups 208(%rdi),%xmm4;  movups 224(%rdi),%xmm5;  movups 240(%rdi),%xmm6;  movups 256(%rdi),%xmm7
  movups 272(%rdi),%xmm8;  movups 288(%rdi),%xmm9;  movups 304(%rdi),%xmm10; movups 320(%rdi),%xmm11
  movups 336(%rdi),%xmm12; movups 352(%rdi),%xmm13; movups 368(%rdi),%xmm14; movups 384(%rdi),%xmm15
  movq 144(%rdi),%mm0; movq 160(%rdi),%mm1; movq 176(%rdi),%mm2; movq 192(%rdi),%mm3
  movq 208(%rdi),%mm4; movq 224(%rdi),%mm5; movq 240(%rdi),%mm6; movq 256(%rdi),%mm7
  mov %ss,%eax
  push %rax
  push 32(%rdi)
  push 128(%rdi)
  mov %cs,%eax
  push %rax
  push 136(%rdi)
  mov (%rdi),%rax;    mov 8(%rdi),%rcx;   mov 16(%rdi),%rdx;  mov 24(%rdi),%rbx
  mov 40(%rdi),%rbp;  mov 48(%rdi),%rsi;  mov 64(%rdi),%r8;   mov 72(%rdi),%r9
  mov 80(%rdi),%r10;  mov 88(%rdi),%r11;  mov 96(%rdi),%r12;  mov 104(%rdi),%r13
  mov 112(%rdi),%r14; mov 120(%rdi),%r15; mov 56(%rdi),%rdi
  iretq
spile_differential_done:
  mov %rsp, guest_rsp(%rip)
  mov host_rsp(%rip), %rsp
  pushfq
  push %rdi
  mov out_state(%rip), %rdi
  mov %rax,(%rdi);    mov %rcx,8(%rdi);   mov %rdx,16(%rdi);  mov %rbx,24(%rdi)
  mov %rbp,40(%rdi);  mov %rsi,48(%rdi);  mov %r8,64(%rdi);   mov %r9,72(%rdi)
  mov %r10,80(%rdi);  mov %r11,88(%rdi);  mov %r12,96(%rdi);  mov %r13,104(%rdi)
  mov %r14,112(%rdi); mov %r15,120(%rdi)
  pop %rax; mov %rax,56(%rdi)
  pop %rax; mov %rax,128(%rdi)
  mov guest_rsp(%rip),%rax; mov %rax,32(%rdi)
  movups %xmm0,144(%rdi);  movups %xmm1,160(%rdi);  movups %xmm2,176(%rdi);  movups %xmm3,192(%rdi)
  movups %xmm4,208(%rdi);  movups %xmm5,224(%rdi);  movups %xmm6,240(%rdi);  movups %xmm7,256(%rdi)
  movups %xmm8,272(%rdi);  movups %xmm9,288(%rdi);  movups %xmm10,304(%rdi); movups %xmm11,320(%rdi)
  movups %xmm12,336(%rdi); movups %xmm13,352(%rdi); movups %xmm14,368(%rdi); movups %xmm15,384(%rdi)
  emms
  cld
  pop %r15; pop %r14; pop %r13; pop %r12; pop %rbp; pop %rbx
  ret
  .bss
  .balign 8
host_rsp: .skip 8
out_state: .skip 8
guest_rsp: .skip 8
  .text
)");

namespace spile::patch {

FaultState& fault_state() {
  static FaultState state;
  return state;
}

void on_fault(int number, siginfo_t*, void* context) {
  if (!fault_state().running) {
    signal(number, SIG_DFL);
    return;
  }
  static constexpr int kOrder[16] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP,
                                     REG_RSI, REG_RDI, REG_R8,  REG_R9,  REG_R10, REG_R11,
                                     REG_R12, REG_R13, REG_R14, REG_R15};
  const auto& regs = static_cast<ucontext_t*>(context)->uc_mcontext.gregs;
  for (size_t i = 0; i < 16; ++i)
    fault_state().state.gpr[i] = static_cast<uint64_t>(regs[kOrder[i]]);
  fault_state().state.flags = static_cast<uint64_t>(regs[REG_EFL]);
  fault_state().state.rip = static_cast<uint64_t>(regs[REG_RIP]);
  fault_state().signal = number;
  fault_state().running = 0;
  siglongjmp(fault_state().back, 1);
}

}  // namespace spile::patch
