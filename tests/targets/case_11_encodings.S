// Case 11: first instructions with rare encodings: VEX, 15 bytes, redundant and useless prefixes, locked, REX before a legacy
// prefix that takes its effect away, all lengths of nop, 16-bit immediates, moffs addresses.
#include "asm_case.h"
CASE(vex, vpaddd %ymm1, %ymm2, %ymm3; vzeroupper; ret)
CASE(vex_memory, vmovdqu (%rdi), %ymm0; vpxor 32(%rdi), %ymm0, %ymm1; vmovdqu %ymm1, 64(%rdi); vzeroupper; ret)
CASE(vex_rip_relative, vpaddd table(%rip), %xmm2, %xmm3; vmovdqu %xmm3, (%rdi); lea 1(%rdx), %rax; ret)
CASE(fifteen_bytes, .byte 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x0f, 0x1f, 0x40, 0x00; mov %rdx, %rax; ret)
CASE(fifteen_bytes_add, .byte 0x2e, 0x3e, 0x26, 0x36, 0x48, 0x81, 0x87; .long 8, 0x12345678; ret)
CASE(useless_segments, .byte 0x2e, 0x3e, 0x26, 0x48, 0x01, 0xd0; ret)
CASE(rex_without_effect, .byte 0x48, 0x66, 0x89, 0xd0; ret)
CASE(two_rex, .byte 0x41, 0x48, 0x89, 0xd0; ret)
CASE(address_size, lea 5(%edx), %eax; lea 3(%edx, %esi, 2), %r8; ret)
CASE(operand_size, mov $0x1234, %ax; add $0x7fff, %dx; ret)
CASE(locked, lock addl $3, 16(%rdi); lock xaddq %rdx, 24(%rdi); ret)
CASE(locked_rip_relative, lock orl $0, counter(%rip); lea 1(%rdx), %rax; ret)
CASE_BEHIND(cmpxchg16b, ENTRIES_ONE, (mov (%rdi), %rax; mov 8(%rdi), %rdx; mov %rsi, %rbx), (lock cmpxchg16b (%rdi); setz %r8b; ret))
CASE(nop_1, nop; lea 1(%rdx), %rax; ret)
CASE(nop_2, .byte 0x66, 0x90; lea 1(%rdx), %rax; ret)
CASE(nop_3, nopl (%rax); lea 1(%rdx), %rax; ret)
CASE(nop_4, nopl 0(%rax); lea 1(%rdx), %rax; ret)
CASE(nop_7, nopl 0x12345678(%rax); lea 1(%rdx), %rax; ret)
CASE(nop_9, nopw 0x12345678(%rax, %rax, 1); lea 1(%rdx), %rax; ret)
CASE(pause_and_prefetch, pause; prefetchnta (%rdi); prefetchw 8(%rdi); lea 1(%rdx), %rax; ret)
CASE(movabs, movabs $0x123456789abcdef0, %rax; ret)
CASE(movbe, movbe (%rdi), %rax; ret)
CASE(crc32, crc32q 8(%rdi), %rax; ret)
CASE(bmi, andn %rdx, %rsi, %rax; pdep %rdx, %rsi, %r8; ret)
CASE(x87, fldl (%rdi); fstpl 64(%rdi); ret)
        .section .rodata
        .balign 16
table:  .long 1, 2, 3, 4
        .data
        .balign 8
counter: .quad 0
NO_EXECUTABLE_STACK
