// Case 19: the address of an instruction inside the window is kept in writable data, and the function jumps through it:
// nothing in the code says where that jump goes.
#include "asm_case.h"
#define THROUGH_DATA(name, ...)                                                                    \
  CASE(name, __VA_ARGS__; 1: add $3, %eax; sub $1, %ecx; js 2f; jmp *7f(%rip); 2: ret;             \
       .pushsection .data.rel.local, "aw"; .balign 8; 7: .quad 1b; .popsection)
THROUGH_DATA(to_1, nop)
THROUGH_DATA(to_2, xor %eax, %eax)
THROUGH_DATA(to_3, mov %rdx, %rax)
THROUGH_DATA(to_4, lea 8(%rax), %rax)
CASE(through_lea, nop; nop; 1: add $3, %eax; sub $1, %ecx; js 2f; lea 1b(%rip), %rdx; jmp *%rdx; 2: xor %edx, %edx; ret)
NO_EXECUTABLE_STACK
