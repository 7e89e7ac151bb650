# The self-restoring stub, as bytes to be copied into a target (inject.cc). It is never executed here.
#
#   spile_stub_begin    magic, 16 bytes; then the stub's size, 8 bytes
#   spile_stub_memfd    entered for memfd_create: the result becomes the descriptor to be closed
#   spile_stub_call     entered for every other call: ebx holds the open descriptor, or -1
#   tail                close, signal mask, registers, home: runs only when the tracer has died
#   data                filled in by inject.cc; read only by the stub, written only by the tracer
#
# No stack, no flags (mov, lea and jmp change none), no address that depends on where it lies.
    .section .rodata.spile_stub, "a", @progbits
    .balign 16
    .globl spile_stub_begin, spile_stub_memfd, spile_stub_after_memfd, spile_stub_call, spile_stub_after_call
    .globl spile_stub_mask, spile_stub_registers, spile_stub_target, spile_stub_name, spile_stub_end
    .hidden spile_stub_begin, spile_stub_memfd, spile_stub_after_memfd, spile_stub_call, spile_stub_after_call
    .hidden spile_stub_mask, spile_stub_registers, spile_stub_target, spile_stub_name, spile_stub_end
spile_stub_begin:
    .ascii "\017\013spile:stub:v1\n"            # begins with ud2: a stray jump here stops at once
    .quad spile_stub_end - spile_stub_begin
spile_stub_memfd:
    syscall
spile_stub_after_memfd:
    mov     %eax, %ebx
    jmp     .Ltail
spile_stub_call:
    syscall
spile_stub_after_call:
.Ltail:
    mov     %ebx, %edi
    mov     $3, %eax                             # close(ebx): EBADF where nothing is open
    syscall
    mov     $2, %edi                             # rt_sigprocmask(SIG_SETMASK, mask, NULL, 8)
    lea     spile_stub_mask(%rip), %rsi
    mov     $0, %edx
    mov     $8, %r10d
    mov     $14, %eax
    syscall
    mov     spile_stub_registers + 0x00(%rip), %r15
    mov     spile_stub_registers + 0x08(%rip), %r14
    mov     spile_stub_registers + 0x10(%rip), %r13
    mov     spile_stub_registers + 0x18(%rip), %r12
    mov     spile_stub_registers + 0x20(%rip), %rbp
    mov     spile_stub_registers + 0x28(%rip), %rbx
    mov     spile_stub_registers + 0x30(%rip), %r11
    mov     spile_stub_registers + 0x38(%rip), %r10
    mov     spile_stub_registers + 0x40(%rip), %r9
    mov     spile_stub_registers + 0x48(%rip), %r8
    mov     spile_stub_registers + 0x50(%rip), %rax
    mov     spile_stub_registers + 0x58(%rip), %rcx
    mov     spile_stub_registers + 0x60(%rip), %rdx
    mov     spile_stub_registers + 0x68(%rip), %rsi
    mov     spile_stub_registers + 0x70(%rip), %rdi
    jmp     *spile_stub_target(%rip)
    .balign 8
spile_stub_mask:
    .quad 0
spile_stub_registers:                            # user_regs_struct's first 15 words, in its order
    .fill 15, 8, 0
spile_stub_target:
    .quad 0
spile_stub_name:
    .fill 32, 1, 0
spile_stub_end:
    .section .note.GNU-stack, "", @progbits
