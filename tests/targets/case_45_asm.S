// Case 45: functions whose first five bytes lie over a cache line in each possible way, and over an eight-byte word.
#include "asm_case.h"
#define AT(offset)                                                                                    \
  .p2align 6; .skip offset, 0xcc; FUNCTION(probe_me_##offset)                                         \
  nop; lea (%rdi, %rsi), %rax; add $offset, %rax; ret; END(probe_me_##offset); .p2align 6
        .text
AT(60)
AT(61)
AT(62)
AT(63)
AT(59)
AT(3)
AT(5)
AT(7)
        .section .data.rel.ro, "aw"
        .balign 8
        .globl  straddling, straddling_offsets
straddling:
        .quad   probe_me_60, probe_me_61, probe_me_62, probe_me_63, probe_me_59, probe_me_3, probe_me_5, probe_me_7
straddling_offsets:
        .quad   60, 61, 62, 63, 59, 3, 5, 7
NO_EXECUTABLE_STACK
