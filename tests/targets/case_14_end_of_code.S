// Case 14: the last four bytes of an executable segment in the file; the page goes on. The linker puts the section behind all
// others (see CMakeLists.txt).
#include "asm_case.h"
        .section end_of_code, "ax", @progbits
FUNCTION(in_front)
        ret
END(in_front)
        .nops   15, 1
FUNCTION(probe_me_last)
        lea     1(%rdi), %eax
        ret
END(probe_me_last)
        .text
        .p2align 4
FUNCTION(twin_last)
        lea     1(%rdi), %eax
        ret
END(twin_last)
LIST_CASE(last, probe_me_last, twin_last, ENTRIES_ONE)
NO_EXECUTABLE_STACK
