// Case 18: a jump table whose entries lead back into the first bytes of the function, as offsets from the table (what
// compilers emit today) and as absolute addresses.
#include "asm_case.h"
#define RELATIVE(name, ...)                                                                        \
  CASE(name, __VA_ARGS__; 1: add $3, %eax; sub $1, %ecx; mov %ecx, %r8d; shr $31, %r8d;            \
       lea 7f(%rip), %rdx; movslq (%rdx, %r8, 4), %r8; add %rdx, %r8; jmp *%r8;                    \
       2: xor %r8d, %r8d; xor %edx, %edx; ret;                                                     \
       .pushsection .rodata; .balign 4; 7: .long 1b - 7b, 2b - 7b; .popsection)
#define ABSOLUTE(name, ...)                                                                        \
  CASE(name, __VA_ARGS__; 1: add $3, %eax; sub $1, %ecx; mov %ecx, %r8d; shr $31, %r8d;            \
       lea 7f(%rip), %rdx; jmp *(%rdx, %r8, 8);                                                    \
       2: xor %edx, %edx; ret;                                                                     \
       .pushsection .data.rel.ro.local, "aw"; .balign 8; 7: .quad 1b, 2b; .popsection)
RELATIVE(relative_to_2, xor %eax, %eax)
RELATIVE(relative_to_1, nop)
RELATIVE(relative_to_4, lea 8(%rax), %rax)
ABSOLUTE(absolute_to_2, xor %eax, %eax)
ABSOLUTE(absolute_to_3, mov %rdx, %rax)
NO_EXECUTABLE_STACK
