// Case 10: functions that begin with an instruction that leaves them: ret with bytes to drop, tail jumps direct, through a
// register, through a table and through memory behind rsp, push and ret.
#include "asm_case.h"
CASE_BEHIND(ret_imm16, ENTRIES_ONE, (push %rdx; push %rsi), (ret $16; .nops 13))
CASE_BEHIND(ret_0, ENTRIES_ONE, (), (ret $0; .nops 13))
CASE_BEHIND(pop_then_push, ENTRIES_ONE, (), (pop %r9; lea 1(%rdx), %rax; push %r9; mov $5, %r9d; ret))
CASE(push_then_ret, push %r11; ret; .nops 12)
CASE(jmp_register, jmp *%r11; .nops 12)
CASE(jmp_near, jmp asm_helper)
CASE(jmp_memory, jmp *jump_table(%rip))
CASE_BEHIND(jmp_table, ENTRIES_ONE, (lea jump_table(%rip), %r9; and $1, %ecx), (jmp *(%r9, %rcx, 8); .nops 12))
CASE_BEHIND(jmp_through_the_stack, ENTRIES_ONE, (mov %r11, -72(%rsp)), (jmp *-64(%rsp); .nops 11))
        .text
other_end: lea 7(%rdx), %rax
        ret
        .section .data.rel.local, "aw"
        .balign 8
jump_table: .quad asm_helper, other_end
NO_EXECUTABLE_STACK
