// Case 27: all general registers and flags, with the direction flag and the alignment check set at the probe. The first
// instructions read flags that the caller left, as hand-written assembly does.
#include "asm_case.h"
CASE(mov, mov %rdx, %r10; mov %rcx, %rbx; ret)
CASE(adc, adc %rdx, %rax; ret)
CASE(lahf, lahf; seto %al; nop; ret)
CASE(pushf, pushfq; pop %rax; and $0x40cd5, %eax; ret)
CASE(cmov, cmovp %rdx, %rax; cmovs %rsi, %r8; ret)
CASE(rcl, rcl $1, %rax; ret)
CASE(string_store, lea 128(%rdi), %rdi; stosq; mov %rdi, %rsi; lodsq; ret)
CASE(swap, xchg %rax, %r15; xchg %rbx, %r14; ret)
CASE(five_nops, nopl 0(%rax, %rax, 1); ret)
        .section .rodata
        .globl asm_extra_flags
        .balign 8
asm_extra_flags: .quad 0x40400          // AC and DF
NO_EXECUTABLE_STACK
