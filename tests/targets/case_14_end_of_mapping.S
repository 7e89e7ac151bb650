// Case 14: a function whose last byte is the last byte of its mapping; the next page is unmapped before the work starts.
#include "asm_case.h"
        .section .text.last_page, "ax", @progbits
        .p2align 12
        .skip   4096-6, 0xcc
FUNCTION(probe_me_ends_at_the_hole)
        lea     1(%rax, %rdx), %rax
        ret
END(probe_me_ends_at_the_hole)
FUNCTION(page_to_unmap)
        .skip   4096, 0xcc
END(page_to_unmap)
        .text
        .p2align 4
FUNCTION(twin_ends_at_the_hole)
        lea     1(%rax, %rdx), %rax
        ret
END(twin_ends_at_the_hole)
LIST_CASE(ends_at_the_hole, probe_me_ends_at_the_hole, twin_ends_at_the_hole, ENTRIES_ONE)
FUNCTION(asm_prepare)
        lea     page_to_unmap(%rip), %rdi
        mov     $4096, %esi
        mov     $11, %eax               // munmap
        syscall
        ret
END(asm_prepare)
NO_EXECUTABLE_STACK
