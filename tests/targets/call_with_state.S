// void call_with_state(void (*fn)(void), const struct registers *in, struct registers *out,
//                      const void *vectors_in, void *vectors_out);
//
// Loads every general register, the flags and (if vectors_in is not null) the extended state, calls fn, and stores all
// that fn left behind. The flags may include DF and AC: between popf and pushf all accesses here are aligned.
#include "asm_case.h"
        .text
        .p2align 4
FUNCTION(call_with_state)
        .cfi_startproc
        push    %rbp
        .cfi_adjust_cfa_offset 8
        push    %rbx
        .cfi_adjust_cfa_offset 8
        push    %r12
        .cfi_adjust_cfa_offset 8
        push    %r13
        .cfi_adjust_cfa_offset 8
        push    %r14
        .cfi_adjust_cfa_offset 8
        push    %r15
        .cfi_adjust_cfa_offset 8
        sub     $56, %rsp
        .cfi_adjust_cfa_offset 56
        mov     %rdi, 0(%rsp)
        mov     %rdx, 8(%rsp)
        mov     %r8, 16(%rsp)
        test    %rcx, %rcx
        jz      1f
        mov     asm_vector_mask(%rip), %eax
        xor     %edx, %edx
        xrstor64 (%rcx)
1:      pushq   120(%rsi)
        popfq
        mov     0(%rsi), %rax
        mov     8(%rsi), %rbx
        mov     16(%rsi), %rcx
        mov     24(%rsi), %rdx
        mov     40(%rsi), %rdi
        mov     48(%rsi), %rbp
        mov     56(%rsi), %r8
        mov     64(%rsi), %r9
        mov     72(%rsi), %r10
        mov     80(%rsi), %r11
        mov     88(%rsi), %r12
        mov     96(%rsi), %r13
        mov     104(%rsi), %r14
        mov     112(%rsi), %r15
        mov     32(%rsi), %rsi
        call    *0(%rsp)
        mov     %rsi, 24(%rsp)
        mov     8(%rsp), %rsi
        pushfq
        popq    120(%rsi)
        mov     %rax, 0(%rsi)
        mov     %rbx, 8(%rsi)
        mov     %rcx, 16(%rsi)
        mov     %rdx, 24(%rsi)
        mov     24(%rsp), %rax
        mov     %rax, 32(%rsi)
        mov     %rdi, 40(%rsi)
        mov     %rbp, 48(%rsi)
        mov     %r8, 56(%rsi)
        mov     %r9, 64(%rsi)
        mov     %r10, 72(%rsi)
        mov     %r11, 80(%rsi)
        mov     %r12, 88(%rsi)
        mov     %r13, 96(%rsi)
        mov     %r14, 104(%rsi)
        mov     %r15, 112(%rsi)
        pushq   $0x202
        popfq
        mov     16(%rsp), %rcx
        test    %rcx, %rcx
        jz      2f
        mov     asm_vector_mask(%rip), %eax
        xor     %edx, %edx
        xsave64 (%rcx)
        fninit
        ldmxcsr asm_default_mxcsr(%rip)
2:      add     $56, %rsp
        .cfi_adjust_cfa_offset -56
        pop     %r15
        pop     %r14
        pop     %r13
        pop     %r12
        pop     %rbx
        pop     %rbp
        .cfi_adjust_cfa_offset -48
        ret
        .cfi_endproc
END(call_with_state)

        .p2align 4
FUNCTION(asm_helper)
        lea     3(%rax,%rdx), %rax
        ret
END(asm_helper)
        .section .rodata
        .balign 4
asm_default_mxcsr: .long 0x1f80
NO_EXECUTABLE_STACK
