// Case 43: functions whose window holds the place where a thread waits: read(fd, buffer, 1) blocks in the kernel with the
// saved instruction pointer 2, 3 or 4 bytes behind the entry. The caller sets eax = 0 (SYS_read).
#include "asm_case.h"
        .text
#define READ_AT(name, ...)                                                                       \
  .p2align 4; FUNCTION(name) __VA_ARGS__; syscall; nop; nop; nop; ret; END(name)
READ_AT(probe_me_read_2, )
READ_AT(probe_me_read_3, nop)
READ_AT(probe_me_read_4, xor %r8d, %r8d)
// Its window ends where that of the next function begins, into which it runs: behind the system call stands another probe.
        .p2align 4
FUNCTION(probe_me_read_then_next)
        xor     %r8d, %r8d
        syscall
END(probe_me_read_then_next)
FUNCTION(probe_me_next)
        nop
        nop
        nop
        nop
        nop
        ret
END(probe_me_next)
// Runs under the trap flag; the handler of SIGTRAP parks it at each of its interior instructions.
        .p2align 4
FUNCTION(probe_me_steps)
        nop
        nop
        inc     %edi
        mov     %edi, %eax
        ret
END(probe_me_steps)
// long call_read(long (*fn)(int, void *, long), int fd, void *buffer)
        .p2align 4
FUNCTION(call_read)
        mov     %rdi, %r9
        mov     %esi, %edi
        mov     %rdx, %rsi
        mov     $1, %edx
        xor     %eax, %eax
        jmp     *%r9
END(call_read)
// long call_with_trap_flag(long (*fn)(int), int value): sets TF, calls, clears it.
        .p2align 4
FUNCTION(call_with_trap_flag)
        push    %rbx
        mov     %rdi, %rax
        mov     %esi, %edi
        pushfq
        orl     $0x100, (%rsp)
        popfq
        call    *%rax
        pushfq
        andl    $~0x100, (%rsp)
        popfq
        pop     %rbx
        ret
END(call_with_trap_flag)
NO_EXECUTABLE_STACK
