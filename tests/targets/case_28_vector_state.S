// Case 28: xmm, ymm, zmm, mask registers, mxcsr in every rounding mode, and a full x87 stack must be as they were.
#include "asm_case.h"
CASE(general, lea 1(%rax, %rdx), %rax; ret)
CASE(sse, paddd %xmm1, %xmm0; lea 1(%rax), %rax; ret)
CASE(x87, fxch %st(3); fchs; nop; ret)
CASE(rounding, cvtsi2sd %rdx, %xmm3; cvtsd2si %xmm3, %rax; ret)
        .section .rodata
        .globl asm_check_vectors
        .balign 8
asm_check_vectors: .quad 1
NO_EXECUTABLE_STACK
