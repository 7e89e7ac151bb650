// Case 6: calls inside the window. The return address that the callee sees must be the original one where it is read
// (`call .+5; pop`), and the call must come back to where the function goes on.
#include "asm_case.h"
CASE(call_first, call asm_helper; inc %rax; ret)
CASE(call_after_one, nop; call asm_helper; inc %rax; ret)
CASE(call_last, xor %eax, %eax; nop; call asm_helper; lea 2(%rax), %rax; ret)
CASE(call_register_first, call *%r11; inc %eax; inc %rax; ret)
CASE(call_register_middle, nop; call *%r11; inc %eax; ret)
CASE(getpc, call 1f; 1: pop %rax; lea 1b(%rip), %rdx; sub %rdx, %rax; mov $0, %edx; ret)
CASE(getpc_middle, nop; nop; call 1f; 1: pop %rax; lea 1b(%rip), %rdx; sub %rdx, %rax; mov $0, %edx; ret)
CASE(getpc_thunk, call read_return_address; 1: lea 1b(%rip), %rdx; sub %rdx, %rax; mov $0, %edx; ret)
CASE(tail_jump, jmp asm_helper)
CASE(tail_jump_register, jmp *%r11)
        .text
        .p2align 4
FUNCTION(read_return_address)
        mov     (%rsp), %rax
        ret
END(read_return_address)
NO_EXECUTABLE_STACK
