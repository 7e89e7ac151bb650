# A 32-bit program that sleeps for ever: pause().
    .globl _start
_start:
    mov $29, %eax
    int $0x80
    jmp _start
