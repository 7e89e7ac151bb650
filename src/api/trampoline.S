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
#define OF_PROGRAM 312 /* from the words to what rsp was */
#define SITE (WORDS + 8)
#define DF_AC 0x40400
#define XSAVE_BYTES 2752 /* up to AVX-512: 2688, and a header that is zeroed */

/* struct ThreadState (readers.h), struct Site, struct Hook (hit.h) */
#define THREAD_WORD 0
#define THREAD_ERRNO 8
#define RUNS_HANDLERS 1
#define SITE_ADDRESS 0
#define SITE_HOOKS 8
#define HOOK_BEFORE 0

/* Vector state that is kept by hand, from rsp (aligned to 64). */
#define HIGH_VECTORS 1024
#define MASKS 2048
#define MXCSR 2112
#define FSW 2116
#define WIDE 2120 /* not 0: upper halves of the first 16 are not zero */
#define MXCSR_NOW 2124
#define FSW_NOW 2128
#define FCW 2132
#define FCW_NOW 2134
#define FENV 2136 /* 28 bytes of fnstenv */

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
        lea     -8(%rsp), %rsp          /* sp, below */
        pushfq
        push    $0x33
        lea     -8(%rsp), %rsp          /* ip: whoever calls handlers knows it */
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
        lea     OF_PROGRAM(%rsp), %rax
        mov     %rax, SP(%rsp)
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

/* Vector state by hand: xrstor alone takes 85 ns where this takes some 15 together.
 *
 * All of it is kept, not only what the ABI passes arguments in: gcc leaves values in other registers across a call to a
 * function that it has seen not to use them (-fipa-ra), and callers of preserve_all functions do, too. What is left out
 * is the x87 stack: at a function's entry it is empty (the ABI; no compiler keeps anything there across calls). Its top
 * shows where that is not so, and elsewhere XINUSE says it; then xsave does it all. The x87 status word is put back
 * where a handler has changed it.
 *
 * Upper halves that were zero are made zero again by vzeroupper: else every later SSE instruction of the program would
 * have to merge with them.
 */
.macro keep_512
        .irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
        vmovaps %zmm\n, 64*\n(%rsp)
        .endr
        .irp n, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31
        vmovaps %zmm\n, 64*\n(%rsp)
        .endr
        .irp n, 0, 1, 2, 3, 4, 5, 6, 7
        kmovq   %k\n, MASKS + 8*\n(%rsp)
        .endr
        vporq   %zmm0, %zmm1, %zmm16
        vporq   %zmm2, %zmm3, %zmm17
        vpternlogq $0xfe, %zmm4, %zmm5, %zmm16
        vpternlogq $0xfe, %zmm6, %zmm7, %zmm17
        vpternlogq $0xfe, %zmm8, %zmm9, %zmm16
        vpternlogq $0xfe, %zmm10, %zmm11, %zmm17
        vpternlogq $0xfe, %zmm12, %zmm13, %zmm16
        vpternlogq $0xfe, %zmm14, %zmm15, %zmm17
        vporq   %zmm16, %zmm17, %zmm16
        vptestmq %zmm16, %zmm16, %k1
        kmovd   %k1, %eax
        and     $0xfc, %eax             /* the lowest 128 bits do not count */
        mov     %eax, WIDE(%rsp)
        keep_control
.endm

.macro put_back_512
        cmpl    $0, WIDE(%rsp)
        je      10f
        .irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
        vmovaps 64*\n(%rsp), %zmm\n
        .endr
        jmp     11f
10:     vzeroupper
        .irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
        movaps  64*\n(%rsp), %xmm\n
        .endr
11:     .irp n, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31
        vmovaps 64*\n(%rsp), %zmm\n
        .endr
        .irp n, 0, 1, 2, 3, 4, 5, 6, 7
        kmovq   MASKS + 8*\n(%rsp), %k\n
        .endr
        put_back_control
.endm

.macro keep_avx
        .irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
        vmovaps %ymm\n, 64*\n(%rsp)
        .endr
        vorps   %ymm0, %ymm1, %ymm0
        vorps   %ymm2, %ymm3, %ymm2
        vorps   %ymm4, %ymm5, %ymm4
        vorps   %ymm6, %ymm7, %ymm6
        vorps   %ymm8, %ymm9, %ymm8
        vorps   %ymm10, %ymm11, %ymm10
        vorps   %ymm12, %ymm13, %ymm12
        vorps   %ymm14, %ymm15, %ymm14
        vorps   %ymm0, %ymm2, %ymm0
        vorps   %ymm4, %ymm6, %ymm4
        vorps   %ymm8, %ymm10, %ymm8
        vorps   %ymm12, %ymm14, %ymm12
        vorps   %ymm0, %ymm4, %ymm0
        vorps   %ymm8, %ymm12, %ymm8
        vorps   %ymm0, %ymm8, %ymm0
        vextractf128 $1, %ymm0, %xmm0
        xor     %eax, %eax
        vptest  %xmm0, %xmm0
        setnz   %al
        mov     %eax, WIDE(%rsp)
        vzeroupper
        keep_control
.endm

.macro put_back_avx
        cmpl    $0, WIDE(%rsp)
        je      10f
        .irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
        vmovaps 64*\n(%rsp), %ymm\n
        .endr
        jmp     11f
10:     vzeroupper
        .irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
        movaps  64*\n(%rsp), %xmm\n
        .endr
11:     put_back_control
.endm

.macro keep_control
        stmxcsr MXCSR(%rsp)
        fnstsw  FSW(%rsp)
        fnstcw  FCW(%rsp)
.endm

/* Writing is dear: only what has changed. Both x87 words at once: fldcw alone would report what a handler has unmasked
 * (#MF), fnstenv and fldenv report nothing. */
.macro put_back_control
        stmxcsr MXCSR_NOW(%rsp)
        mov     MXCSR(%rsp), %edx
        cmp     MXCSR_NOW(%rsp), %edx
        je      12f
        ldmxcsr MXCSR(%rsp)
12:     fnstsw  FSW_NOW(%rsp)
        fnstcw  FCW_NOW(%rsp)
        movzwl  FSW(%rsp), %edx
        movzwl  FCW(%rsp), %esi
        cmp     FSW_NOW(%rsp), %dx
        jne     13f
        cmp     FCW_NOW(%rsp), %si
        je      14f
13:     fnstenv FENV(%rsp)
        mov     %si, FENV(%rsp)
        mov     %dx, FENV + 4(%rsp)
        fldenv  FENV(%rsp)
14:
.endm

.macro run_handlers_kept function how
        sub     $XSAVE_BYTES, %rsp
        and     $-64, %rsp
        keep_\how
        mov     %rbx, %rdi
        mov     SITE(%rbx), %rsi
        call    \function
        mov     %eax, %ecx
        put_back_\how
        mov     %ecx, %eax
.endm

/* Leaves for `otherwise` where something is on the x87 stack. */
.macro unless_x87_at_entry otherwise
        fnstsw  %ax
        test    $0x3800, %eax           /* TOP */
        jnz     \otherwise
.endm
.macro unless_x87_in_use otherwise
        mov     $1, %ecx
        xgetbv
        test    $1, %al
        jnz     \otherwise
.endm

.macro define_kept name how function check unwind
.globl \name
.hidden \name
.type \name, @function
\name:
        save \unwind
        \check 20f
        run_handlers_kept \function \how
        mov     %rbx, %rsp
        test    %eax, %eax
        jnz     elsewhere
        restore 48
        ret
20:     run_handlers_full \function
        finish
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

.macro end_handlers
        mov     %fs:THREAD_ERRNO(%rbp), %rax
        cmp     %r15d, (%rax)           /* stores are dear here, and it is seldom another */
        je      17f
        mov     %r15d, (%rax)
17:
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
.hidden spile_dispatch, spile_dispatch_behind, spile_xsave_mask, spile_has_xsavec, spile_thread, spile_epoch

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

/* hit.cc's run<run_before> by hand: every register is kept already, so nothing is pushed here. In rbp the place of the
 * thread's state, in r12 its word, in r13 the Site, in r14 its hooks, in r15 errno. */
.type spile_hit_general, @function
spile_hit_general:
        save unwind_at_site
        mov     spile_thread@gottpoff(%rip), %rbp
        mov     %fs:THREAD_WORD(%rbp), %r12
        /* The first hit of a thread enters a path of the C library that may use vector registers. */
        test    %r12, %r12
        jz      3f
        cmpq    $0, (%r12)              /* in a handler, or in a callback of a tracepoint */
        jne     5f
        mov     SITE(%rbx), %r13
        mov     SITE_ADDRESS(%r13), %rax
        inc     %rax
        mov     %rax, IP(%rbx)
        mov     spile_epoch(%rip), %rax
        or      $RUNS_HANDLERS, %rax
        mov     %rax, (%r12)            /* begin_reading */
        mov     SITE_HOOKS(%r13), %r14
        test    %r14, %r14
        jz      2f
        mov     %fs:THREAD_ERRNO(%rbp), %rax
        mov     (%rax), %r15d
        and     $-16, %rsp
        mov     (%r14), %rdi
1:      mov     HOOK_BEFORE(%rdi), %rax
        test    %rax, %rax
        jz      4f
        mov     %r13, %rsi
        mov     %rbx, %rdx
        call    *%rax
        test    %eax, %eax
        jnz     6f
4:      add     $8, %r14
        mov     (%r14), %rdi
        test    %rdi, %rdi
        jnz     18f
        end_handlers
2:      movq    $0, (%r12)              /* end_reading */
        mov     %rbx, %rsp
        restore 48
        ret
18:     lea     OF_PROGRAM(%rbx), %rax  /* each sees the program as it is there */
        mov     %rax, SP(%rbx)
        mov     SITE_ADDRESS(%r13), %rax
        inc     %rax
        mov     %rax, IP(%rbx)
        jmp     1b
6:      end_handlers
        movq    $0, (%r12)
        mov     %rbx, %rsp
        jmp     elsewhere
5:      run_handlers spile_dispatch
        jmp     7f
3:      run_handlers_full spile_dispatch
7:      mov     %rbx, %rsp
        test    %eax, %eax
        jnz     elsewhere
        restore 48
        ret
        .cfi_endproc

.type spile_hit_behind_general, @function
spile_hit_behind_general:
        save unwind_at_ip
        mov     spile_thread@gottpoff(%rip), %rax
        cmpq    $0, %fs:THREAD_WORD(%rax)
        je      3f
        run_handlers spile_dispatch_behind
4:      mov     %rbx, %rsp
        restore 48
        ret
3:      run_handlers_full spile_dispatch_behind
        jmp     4b
        .cfi_endproc

define_kept spile_hit_entry_512, 512, spile_dispatch, unless_x87_at_entry, unwind_at_site
define_kept spile_hit_entry_avx, avx, spile_dispatch, unless_x87_at_entry, unwind_at_site
define_kept spile_hit_inside_512, 512, spile_dispatch, unless_x87_in_use, unwind_at_site
define_kept spile_hit_inside_avx, avx, spile_dispatch, unless_x87_in_use, unwind_at_site
define_kept spile_hit_behind_512, 512, spile_dispatch_behind, unless_x87_in_use, unwind_at_ip
define_kept spile_hit_behind_avx, avx, spile_dispatch_behind, unless_x87_in_use, unwind_at_ip

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
