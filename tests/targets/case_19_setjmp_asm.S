// Case 19: the functions of case_19_returns_into_window.cc whose windows are entered by a second return and by the unwinder.
#include "asm_case.h"
        .text
// int probe_me_setjmp(jmp_buf, int (*setjmp)(jmp_buf), void (*jump)(jmp_buf)): setjmp returns to entry+2, twice.
        .p2align 4
FUNCTION(probe_me_setjmp)
        .cfi_startproc
        call    *%rsi                   // 2 bytes
        nop
        nop
        lea     40(%rax), %eax
        cmp     $41, %eax
        je      1f
        lea     saved_buffer(%rip), %rdi
        sub     $8, %rsp
        .cfi_adjust_cfa_offset 8
        call    jump_back
        .cfi_adjust_cfa_offset -8
1:      ret
        .cfi_endproc
END(probe_me_setjmp)

// int probe_me_landing_pad(int): throws, and its landing pad is at entry+2, reached also by falling through.
        .p2align 4
FUNCTION(probe_me_landing_pad)
        .cfi_startproc
        .cfi_personality 0x9b, DW.ref.__gxx_personality_v0
        .cfi_lsda 0x1b, .Llsda
        xor     %eax, %eax              // 2 bytes
.Lpad:  test    %rax, %rax
        jnz     1f
        sub     $8, %rsp
        .cfi_adjust_cfa_offset 8
.Lcall_begin:
        call    throw_it
.Lcall_end:
        ud2
1:      mov     %rax, %rdi
        call    caught
        add     $8, %rsp
        .cfi_adjust_cfa_offset -8
        ret
        .cfi_endproc
END(probe_me_landing_pad)

        .section .gcc_except_table, "a", @progbits
        .balign 4
.Llsda: .byte   0xff                    // landing pads are relative to the function
        .byte   0x9b                    // type table: indirect, relative, 4 bytes
        .uleb128 .Ltypes - .Lafter_types_offset
.Lafter_types_offset:
        .byte   1                       // call sites: uleb128
        .uleb128 .Lsites_end - .Lsites
.Lsites:
        .uleb128 .Lcall_begin - probe_me_landing_pad
        .uleb128 .Lcall_end - .Lcall_begin
        .uleb128 .Lpad - probe_me_landing_pad
        .uleb128 1                      // first action
.Lsites_end:
        .byte   1, 0                    // catch type 1, no further action
        .balign 4
        .long   0                       // type 1: catch (...)
.Ltypes:
        .balign 4

        .hidden DW.ref.__gxx_personality_v0
        .weak   DW.ref.__gxx_personality_v0
        .section .data.rel.local.DW.ref.__gxx_personality_v0, "awG", @progbits, DW.ref.__gxx_personality_v0, comdat
        .balign 8
        .type   DW.ref.__gxx_personality_v0, @object
        .size   DW.ref.__gxx_personality_v0, 8
DW.ref.__gxx_personality_v0:
        .quad   __gxx_personality_v0
NO_EXECUTABLE_STACK
