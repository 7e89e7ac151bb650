// Case 7: every conditional branch as the first instruction, short and long, forward and backward, taken and not (the
// flags are random), and the branches that exist only with eight bits of displacement, also to their own address.
#include "asm_case.h"
#define JCC(cc)                                                                                       \
  CASE(j##cc##_short_forward, j##cc 1f; lea 1(%rax), %rax; ret; 1: lea 2(%rax), %rax; ret)            \
  CASE(j##cc##_long_forward, {disp32} j##cc 1f; lea 1(%rax), %rax; ret; 1: lea 2(%rax), %rax; ret)    \
  CASE_WITH(j##cc##_short_backward, ENTRIES_ONE, BACKWARD, j##cc 1b; lea 1(%rax), %rax; ret)          \
  CASE_WITH(j##cc##_long_backward, ENTRIES_ONE, BACKWARD, {disp32} j##cc 1b; lea 1(%rax), %rax; ret)
#define BACKWARD 1: lea 2(%rax), %rax; ret
JCC(o)
JCC(no)
JCC(b)
JCC(nb)
JCC(z)
JCC(nz)
JCC(be)
JCC(nbe)
JCC(s)
JCC(ns)
JCC(p)
JCC(np)
JCC(l)
JCC(nl)
JCC(le)
JCC(nle)
CASE(jrcxz, jrcxz 1f; lea 1(%rax), %rax; ret; 1: lea 2(%rax), %rax; ret)
CASE(jecxz, jecxz 1f; lea 1(%rax), %rax; ret; 1: lea 2(%rax), %rax; ret)
CASE(loop, loop 1f; lea 1(%rax), %rax; ret; 1: lea 2(%rax), %rax; ret)
CASE(loope, loope 1f; lea 1(%rax), %rax; ret; 1: lea 2(%rax), %rax; ret)
CASE(loopne, loopne 1f; lea 1(%rax), %rax; ret; 1: lea 2(%rax), %rax; ret)
CASE_WITH(loop_backward, ENTRIES_ONE, BACKWARD, loop 1b; lea 1(%rax), %rax; ret)
CASE_WITH(loop_to_itself, ENTRIES_RCX, , 1: loop 1b; lea 1(%rax), %rax; ret)
CASE_WITH(loop_to_the_entry, ENTRIES_RCX, , 1: lea 3(%rax), %rax; dec %ecx; jg 1b; ret)
CASE(second_in_window, test %ecx, %ecx; jz 1f; lea 1(%rax), %rax; ret; 1: lea 2(%rax), %rax; ret)
CASE(jmp_short, jmp 1f; lea 1(%rax), %rax; ret; 1: lea 2(%rax), %rax; ret)
CASE(jmp_long, {disp32} jmp 1f; lea 1(%rax), %rax; ret; 1: lea 2(%rax), %rax; ret)
NO_EXECUTABLE_STACK
