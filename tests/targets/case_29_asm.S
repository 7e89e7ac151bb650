// Case 29: uint64_t call_on_stack(void *stack_top, uint64_t argument, uint64_t (*fn)(uint64_t)): calls fn with the stack
// pointer exactly at stack_top (so that it may be misaligned or near a guard page).
#include "asm_case.h"
        .text
        .p2align 4
FUNCTION(call_on_stack)
        push    %rbp
        mov     %rsp, %rbp
        mov     %rdi, %rsp
        mov     %rsi, %rdi
        call    *%rdx
        mov     %rbp, %rsp
        pop     %rbp
        ret
END(call_on_stack)
        .p2align 4
FUNCTION(probe_me)                      // a leaf that needs no stack of its own but its red zone
        mov     %rdi, -8(%rsp)
        lea     1(%rdi, %rdi, 2), %rax
        add     -8(%rsp), %rax
        ret
END(probe_me)
NO_EXECUTABLE_STACK
