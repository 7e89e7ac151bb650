// Case 10: far returns and the return from an interrupt, which load cs, ss, rsp and flags too. Refused, or exact.
#include "asm_case.h"
#define ADDRESS mov %cs, %r8d; push %r8; lea 1f(%rip), %r9; push %r9; xor %r8d, %r8d
CASE_JUMPED_TO(lretq, ENTRIES_ONE, (ADDRESS), (lretq))
CASE_JUMPED_TO(iretq, ENTRIES_ONE, (mov %rsp, %r9; mov %ss, %r8d; push %r8; push %r9; pushfq; ADDRESS), (iretq))
NO_EXECUTABLE_STACK
