// 40,000 functions and a table of them.
        .altmacro
        .macro  function number
        .p2align 4
        .globl  probe_me_\number
        .type   probe_me_\number, @function
probe_me_\number:
        lea     \number(%rdi), %rax
        xor     $0x5a5a, %rax
        ret
        .size   probe_me_\number, . - probe_me_\number
        .endm
        .macro  entry number
        .quad   probe_me_\number
        .endm

        .text
        .set    i, 0
        .rept   40000
        function %i
        .set    i, i + 1
        .endr

        .section .data.rel.ro, "aw"
        .globl  many_functions
many_functions:
        .set    i, 0
        .rept   40000
        entry   %i
        .set    i, i + 1
        .endr
        .section .note.GNU-stack, "", @progbits
