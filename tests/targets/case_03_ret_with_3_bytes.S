// Case 3: `ret` and three bytes of padding: one byte too few for a jump that owns all it overwrites. The next function
// starts with endbr64, and free padding lies within reach of a short jump, so tactics exist.
#include "asm_case.h"
        .text
        .p2align 4
FUNCTION(probe_me_nop3)
        ret
END(probe_me_nop3)
        .nops   3
FUNCTION(neighbour_nop3)
        endbr64
        lea     1(%rax), %rax
        ret
END(neighbour_nop3)
        .skip   16, 0xcc
        .p2align 4
FUNCTION(twin_nop3)
        ret
END(twin_nop3)
        .p2align 4
FUNCTION(neighbour_twin_nop3)
        endbr64
        lea     1(%rax), %rax
        ret
END(neighbour_twin_nop3)
LIST_CASE(nop3, probe_me_nop3, twin_nop3, ENTRIES_ONE)
LIST_CASE(neighbour_of_nop3, neighbour_nop3, neighbour_twin_nop3, ENTRIES_NONE)
NO_EXECUTABLE_STACK
