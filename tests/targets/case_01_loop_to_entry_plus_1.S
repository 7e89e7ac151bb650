// Case 1: a one-byte first instruction and a loop that jumps back to the byte after it. A five-byte jump over the entry
// puts its displacement where the loop lands.
#include "asm_case.h"
CASE(push_rbx, push %rbx; 1: lea 1(%rax), %rax; sub $1, %ecx; jg 1b; pop %rbx; ret)
CASE(push_rbp, push %rbp; 1: add $3, %rax; dec %ecx; jns 1b; mov %rsp, %rbp; pop %rbp; ret)
CASE(cmc, cmc; 1: adc %rdx, %rax; dec %ecx; jns 1b; ret)
CASE(nop, nop; 1: xor %rcx, %rax; sub $1, %ecx; jnb 1b; ret)
CASE(long_branch, push %rbx; 1: lea 1(%rax), %rax; sub $1, %ecx; {disp32} jg 1b; pop %rbx; ret)
NO_EXECUTABLE_STACK
