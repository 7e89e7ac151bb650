// Case 20: another function jumps into the first bytes of ours (hand-written assembly shares tails), directly and by a
// conditional branch; and a second name for the same bytes, called under both names.
#include "asm_case.h"
#define ENTERED_BY(name, first, jump)                                                                            \
  .text; .p2align 4; FUNCTION(probe_me_##name) first; 1: lea 5(%rax, %rdx), %rax; ret; END(probe_me_##name);     \
  .p2align 4; FUNCTION(other_##name) add $7, %rdx; jump; ret; END(other_##name);                                 \
  .p2align 4; FUNCTION(twin_##name) first; 1: lea 5(%rax, %rdx), %rax; ret; END(twin_##name);                    \
  .p2align 4; FUNCTION(other_twin_##name) add $7, %rdx; jump; ret; END(other_twin_##name);                       \
  LIST_CASE(name, probe_me_##name, twin_##name, ENTRIES_ONE)                                                     \
  LIST_CASE(other_##name, other_##name, other_twin_##name, ENTRIES_NONE)
ENTERED_BY(jmp_to_1, nop, jmp 1b)
ENTERED_BY(jmp_to_2, inc %eax, jmp 1b)
ENTERED_BY(jcc_to_3, inc %rax, jc 1b)
        .text
        .p2align 4
        .globl  other_name
        .type   other_name, @function
        .set    other_name, probe_me_twice_named
FUNCTION(probe_me_twice_named)
        push    %rbx
        lea     9(%rax), %rax
        pop     %rbx
        ret
END(probe_me_twice_named)
        .p2align 4
FUNCTION(twin_twice_named)
        push    %rbx
        lea     9(%rax), %rax
        pop     %rbx
        ret
END(twin_twice_named)
LIST_CASE(twice_named, probe_me_twice_named, twin_twice_named, ENTRIES_ONE)
LIST_CASE(by_its_other_name, other_name, twin_twice_named, ENTRIES_ONE)
NO_EXECUTABLE_STACK
