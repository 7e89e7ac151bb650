// Case 11: EVEX first: compressed displacements, masks, broadcasts, zmm16 and above; instructions on mask registers.
#include "asm_case.h"
CASE(zmm, vpaddd %zmm1, %zmm2, %zmm3; ret)
CASE(zmm_high, vmovdqu64 (%rdi), %zmm31; vpxorq %zmm31, %zmm17, %zmm18; ret)
CASE(compressed_displacement, vmovdqu64 %zmm5, 64(%rdi); ret)
CASE(rip_relative, vmovdqu64 table(%rip), %zmm20; vpaddq %zmm20, %zmm21, %zmm22; ret)
CASE(rip_relative_broadcast, vpaddd table(%rip){1to16}, %zmm20, %zmm23; ret)
CASE(masked, vmovdqu8 %zmm1, (%rdi){%k1}; vmovdqu8 %zmm3, %zmm4{%k2}{z}; ret)
CASE(mask_registers, kmovq %k1, %rax; kandq %k2, %k3, %k4; kmovq %rdx, %k5; ret)
CASE(rounding, vaddps {rz-sae}, %zmm1, %zmm2, %zmm6; ret)
        .section .rodata
        .balign 64
table:  .long 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16
        .globl asm_check_vectors
asm_check_vectors: .quad 1
NO_EXECUTABLE_STACK
