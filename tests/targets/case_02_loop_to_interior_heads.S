// Case 2: first instructions of 1 to 4 bytes, each with a loop back to an instruction at entry+1 .. entry+4.
#include "asm_case.h"
CASE(two_to_2, xor %eax, %eax; 1: add %rdx, %rax; sub $1, %ecx; jg 1b; ret)
CASE(three_to_3, mov %rdx, %rax; 1: inc %eax; sub $1, %ecx; jg 1b; ret)
CASE(four_to_4, lea 8(%rax), %rax; 1: inc %eax; sub $1, %ecx; jg 1b; ret)
CASE(one_one_to_2, push %rbx; push %rbp; 1: lea 1(%rax), %rax; sub $1, %ecx; jg 1b; pop %rbp; pop %rbx; ret)
CASE(one_two_to_3, push %rbx; xor %eax, %eax; 1: lea 7(%rax), %rax; sub $1, %ecx; jg 1b; pop %rbx; ret)
CASE(two_two_to_4, xor %eax, %eax; mov %ecx, %edx; 1: inc %eax; dec %ecx; jg 1b; ret)
CASE(one_three_to_4, push %rbx; mov %rdx, %rax; 1: inc %rax; dec %ecx; jg 1b; pop %rbx; ret)
CASE(four_ones_to_4, push %rbx; push %rbp; push %rsi; push %rdi; 1: lea 1(%rax), %rax; sub $1, %ecx; jg 1b;
     pop %rdi; pop %rsi; pop %rbp; pop %rbx; ret)
NO_EXECUTABLE_STACK
