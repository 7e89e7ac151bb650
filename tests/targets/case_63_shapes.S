// Case 63: 24,000 functions, of eight shapes of entry, and a table of them. Each adds its own number. One shape leaves
// a jump no room behind its first instruction, so that its neighbour has to move: more edits than one stop takes, in an order.
#include "asm_case.h"
        .altmacro
        .macro  shape0 n
        lea     \n(%rdi), %rax
        ret
        .endm
        .macro  shape1 n
        push    %rbx
1:      mov     %rdi, %rbx
        lea     \n(%rbx), %rax
        cmp     $-1, %rbx
        je      1b
        pop     %rbx
        ret
        .endm
        .macro  shape2 n
        endbr64
        sub     $24, %rsp
        lea     \n(%rdi), %rax
        add     $24, %rsp
        ret
        .endm
        .macro  shape3 n
        mov     number_\n(%rip), %rax
        add     %rdi, %rax
        ret
        .pushsection .rodata
        .balign 8
number_\n: .quad \n
        .popsection
        .endm
        .macro  shape4 n
        test    %rdi, %rdi
        jz      1f
        lea     \n(%rdi), %rax
        ret
1:      mov     $\n, %eax
        ret
        .endm
        .macro  shape5 n
        push    %rbp
        mov     %rsp, %rbp
        mov     %rdi, -8(%rbp)
        mov     -8(%rbp), %rax
        add     $\n, %rax
        pop     %rbp
        ret
        .endm
        .macro  shape6 n
        xor     %eax, %eax
        add     %rdi, %rax
        add     $\n, %rax
        ret
        .endm
        .macro  shape7 n
        xchg    %rax, %rdi
        add     $\n, %rax
        ret
        .endm
        .macro  one n
        .p2align 4
        .globl  probe_me_\n
        .type   probe_me_\n, @function
probe_me_\n:
        .if     \n % 8 == 0
        shape0  \n
        .elseif \n % 8 == 1
        shape1  \n
        .elseif \n % 8 == 2
        shape2  \n
        .elseif \n % 8 == 3
        shape3  \n
        .elseif \n % 8 == 4
        shape4  \n
        .elseif \n % 8 == 5
        shape5  \n
        .elseif \n % 8 == 6
        shape6  \n
        .else
        shape7  \n
        .endif
        .size   probe_me_\n, . - probe_me_\n
        .pushsection .data.rel.ro, "aw"
        .quad   probe_me_\n
        .popsection
        .endm
        .section .data.rel.ro, "aw"
        .balign 8
        .globl  many
many:
        .text
        .set    n, 0
        .rept   24000
        one     %n
        .set    n, n + 1
        .endr
NO_EXECUTABLE_STACK
