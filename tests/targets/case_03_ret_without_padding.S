// Case 3 with no padding at all, which is case 4's first function: the byte after `ret` begins the next function.
#include "asm_case.h"
        .text
        .p2align 4
FUNCTION(probe_me_nop0)
        ret
END(probe_me_nop0)
FUNCTION(neighbour_nop0)
        endbr64
        lea     1(%rax), %rax
        ret
END(neighbour_nop0)
        .p2align 4
FUNCTION(twin_nop0)
        ret
END(twin_nop0)
        .p2align 4
FUNCTION(neighbour_twin_nop0)
        endbr64
        lea     1(%rax), %rax
        ret
END(neighbour_twin_nop0)
LIST_CASE(nop0, probe_me_nop0, twin_nop0, ENTRIES_ONE)
LIST_CASE(neighbour_of_nop0, neighbour_nop0, neighbour_twin_nop0, ENTRIES_NONE)
NO_EXECUTABLE_STACK
