// Case 2, at its hardest: each of the bytes behind a first instruction of one byte is an instruction that something jumps to. All have
// one byte, so there is nothing to choose a jump's distance by.
#include "asm_case.h"
CASE(every_head, nop; 1: nop; 2: nop; 3: nop; 4: lea 1(%rax), %rax; dec %ecx; cmp $6, %ecx; je 1b; cmp $4, %ecx; je 2b;
     cmp $2, %ecx; je 3b; cmp $0, %ecx; jg 4b; ret)
NO_EXECUTABLE_STACK
