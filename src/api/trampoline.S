/* From a detour to handlers and back, with every register as it was.
 *
 * A detour has stepped over the red zone, pushed its Site and called:
 *
 *   [rsp] back into the detour   [rsp+8] Site   [rsp+16 .. +144) red zone   rsp+144: the program's rsp
 *
 * The registers are laid out as struct spile_regs (21 words; offsets below). Backtraces of handlers lead through here to
 * the probed function: the frame is described as that of a signal.
 *
 * Where a handler wants the program to go on elsewhere, the address takes the place of the Site, and `ret $128` takes it
 * off together with the red zone: no register and no memory below rsp is needed for the jump.
 */
#define R15 0
#define AX 80
#define FLAGS 144
#define IP 128
#define SP 152
#define WORDS 168
#define SITE (WORDS + 8)
#define DF_AC 0x40400
#define XSAVE_BYTES 2752 /* up to AVX-512: 2688, and a header that is zeroed */

.section spile_hit_text, "ax", @progbits

/* Before the instruction a backtrace goes on at Site::address, its first member: regs->ip is one more there, which may
 * already be the next instruction, where the frame is another. DW_CFA_val_expression: rip = [[rbx + SITE]]. */
.macro unwind_at_site
        .cfi_escape 0x16, 16, 5, 0x73, (SITE & 0x7f) | 0x80, SITE >> 7, 0x06, 0x06
.endm
.macro unwind_at_ip
        .cfi_offset rip, IP - 312
.endm

.macro save unwind=unwind_at_site
        .cfi_startproc
        .cfi_signal_frame
        .cfi_def_cfa rsp, 144
        .cfi_offset rip, -144
        push    $0x2b
        push    %rsp
        pushfq
        push    $0x33
        push    $0
        push    $-1
        push    %rdi
        push    %rsi
        push    %rdx
        push    %rcx
        push    %rax
        push    %r8
        push    %r9
        push    %r10
        push    %r11
        push    %rbx
        push    %rbp
        push    %r12
        push    %r13
        push    %r14
        push    %r15
        .cfi_def_cfa_offset 312
        /* The push of rsp stored what it was behind one push: 152 below the program's. */
        addq    $152, SP(%rsp)
        testl   $DF_AC, FLAGS(%rsp)
        jz      1f
        push    $2                      /* handlers expect DF and AC clear */
        popfq
1:      mov     %rsp, %rbx
        .cfi_def_cfa_register rbx
        \unwind
        .cfi_offset r15, 0 - 312
        .cfi_offset r14, 8 - 312
        .cfi_offset r13, 16 - 312
        .cfi_offset r12, 24 - 312
        .cfi_offset rbp, 32 - 312
        .cfi_offset rbx, 40 - 312
.endm

.macro run_handlers function
        mov     %rbx, %rdi
        mov     SITE(%rbx), %rsi
        and     $-16, %rsp
        call    \function
.endm

.macro run_handlers_full function
        sub     $XSAVE_BYTES, %rsp
        and     $-64, %rsp
        xor     %edx, %edx              /* the header must be zero for xrstor */
        mov     %rdx, 512(%rsp)
        mov     %rdx, 520(%rsp)
        mov     %rdx, 528(%rsp)
        mov     %rdx, 536(%rsp)
        mov     %rdx, 544(%rsp)
        mov     %rdx, 552(%rsp)
        mov     %rdx, 560(%rsp)
        mov     %rdx, 568(%rsp)
        mov     spile_xsave_mask(%rip), %eax
        cmpl    $0, spile_has_xsavec(%rip)
        je      5f
        xsavec64 (%rsp)                 /* leaves out what nobody has used */
        jmp     6f
5:      xsave64 (%rsp)
6:
        mov     %rsp, %r12
        mov     %rbx, %rdi
        mov     SITE(%rbx), %rsi
        call    \function
        mov     %eax, %ecx
        mov     spile_xsave_mask(%rip), %eax
        xor     %edx, %edx
        xrstor64 (%r12)
        mov     %ecx, %eax
.endm

/* Every register from the words; rsp is at them. Flags without popfq where that does: it is slow. */
.macro restore skip
        testl   $DF_AC, FLAGS(%rsp)
        jnz     8f
        mov     FLAGS(%rsp), %ecx
        mov     %ecx, %eax
        shr     $11, %eax
        and     $1, %eax                /* OF */
        mov     %cl, %ah
        add     $127, %al
        sahf
        jmp     9f
8:      pushq   FLAGS(%rsp)
        popfq
9:      pop     %r15
        pop     %r14
        pop     %r13
        pop     %r12
        pop     %rbp
        pop     %rbx
        pop     %r11
        pop     %r10
        pop     %r9
        pop     %r8
        pop     %rax
        pop     %rcx
        pop     %rdx
        pop     %rsi
        pop     %rdi
        lea     \skip(%rsp), %rsp
.endm

.macro finish
        mov     %rbx, %rsp
        test    %eax, %eax
        jnz     elsewhere
        restore 48
        ret
        .cfi_endproc
.endm

.globl spile_hit_full, spile_hit_general, spile_hit_behind_full, spile_hit_behind_general
.hidden spile_hit_full, spile_hit_general, spile_hit_behind_full, spile_hit_behind_general
.hidden spile_dispatch, spile_dispatch_behind, spile_xsave_mask, spile_has_xsavec, spile_reader_word

.type spile_hit_full, @function
spile_hit_full:
        save unwind_at_site
        run_handlers_full spile_dispatch
        finish

.type spile_hit_behind_full, @function
spile_hit_behind_full:
        save unwind_at_ip
        run_handlers_full spile_dispatch_behind
        finish

.type spile_hit_general, @function
spile_hit_general:
        save unwind_at_site
        /* The first hit of a thread enters a path of the C library that may use vector registers. */
        mov     spile_reader_word@gottpoff(%rip), %rax
        cmpq    $0, %fs:(%rax)
        je      3f
        run_handlers spile_dispatch
4:      mov     %rbx, %rsp
        test    %eax, %eax
        jnz     elsewhere
        restore 48
        ret
3:      run_handlers_full spile_dispatch
        jmp     4b
        .cfi_endproc

.type spile_hit_behind_general, @function
spile_hit_behind_general:
        save unwind_at_ip
        mov     spile_reader_word@gottpoff(%rip), %rax
        cmpq    $0, %fs:(%rax)
        je      3f
        run_handlers spile_dispatch_behind
4:      mov     %rbx, %rsp
        restore 48
        ret
3:      run_handlers_full spile_dispatch_behind
        jmp     4b
        .cfi_endproc

elsewhere:
        mov     IP(%rsp), %rax
        mov     %rax, SITE(%rsp)
        restore 56
        ret     $128

/* Where spile_return_from_function() sends a function: to its caller. */
.globl spile_just_return
.hidden spile_just_return
.type spile_just_return, @function
spile_just_return:
        ret

.section .note.GNU-stack, "", @progbits
