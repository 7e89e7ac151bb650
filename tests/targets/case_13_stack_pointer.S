// Case 13: first instructions that move, read or use the stack pointer, on which the probe's own code works too, and those that
// push or pop flags.
#include "asm_case.h"
#define RETURN_ADDRESS lea 1f(%rip), %r9; push %r9
CASE(push_rsp, push %rsp; pop %r8; sub %rsp, %r8; ret)
CASE_JUMPED_TO(pop_rsp, ENTRIES_ONE, (RETURN_ADDRESS; mov %rsp, %r9; sub $72, %rsp; push %r9), (pop %rsp; ret))
CASE_JUMPED_TO(pop_rsp_lower, ENTRIES_ONE, (RETURN_ADDRESS; lea -96(%rsp), %r9; push %r9),
  (pop %rsp; push %rdx; pop %r8; lea 96(%rsp), %rsp; ret))
CASE_BEHIND(mov_to_rsp, ENTRIES_ONE, (lea -40(%rsp), %r9), (mov %r9, %rsp; push $5; pop %r8; lea 32(%r9), %rsp; xor %r9d, %r9d; ret))
CASE_BEHIND(xchg_rsp, ENTRIES_ONE, (lea -256(%rsp), %rax), (xchg %rax, %rsp; push %rdx; pop %r8; xchg %rax, %rsp; xor %eax, %eax; ret))
CASE(lea_rsp, lea -24(%rsp), %rsp; mov %rdx, 16(%rsp); add $24, %rsp; mov -8(%rsp), %r8; ret)
CASE(sub_rsp, sub $40, %rsp; mov %rdx, (%rsp); mov (%rsp), %r8; add $40, %rsp; ret)
CASE_BEHIND(and_rsp, ENTRIES_ONE, (mov %rsp, %rax), (and $-128, %rsp; push %rdx; pop %r8; lea -8(%rax), %rsp; xor %eax, %eax; ret))
CASE(enter, enter $16, $0; mov %rdx, -8(%rbp); mov -8(%rbp), %r8; leave; ret)
CASE(enter_nested, lea -64(%rsp), %rbp; enter $32, $3; leave; xor %ebp, %ebp; ret)
CASE_JUMPED_TO(leave, ENTRIES_ONE, (RETURN_ADDRESS; push %rbp; mov %rsp, %rbp; push %rdx; sub $40, %rsp), (leave; ret))
CASE(load_by_rsp, mov (%rsp), %r9; sub (%rsp), %r9; lea 8(%rsp), %r8; sub %rsp, %r8; ret)
CASE(store_by_rsp, mov %rdx, -8(%rsp); mov %rsi, -16(%rsp); mov -8(%rsp), %rax; xor -16(%rsp), %rax; ret)
CASE(push_memory, push 8(%rdi); pop %rax; ret)
CASE(push_by_rsp, push (%rsp); pop %r9; sub (%rsp), %r9; ret)
CASE_JUMPED_TO(pop_by_rsp, ENTRIES_ONE, (push $3; push $0; lea 1f(%rip), %r9; push %r9), (pop (%rsp); ret $8))
CASE(pushf, pushfq; pop %r8; and $0xcd5, %r8d; ret)
CASE_JUMPED_TO(popf, ENTRIES_ONE, (RETURN_ADDRESS; push %rdx; andq $0x8d5, (%rsp); orq $0x202, (%rsp)), (popfq; ret))
CASE_JUMPED_TO(popf_direction, ENTRIES_ONE, (RETURN_ADDRESS; push $0x602), (popfq; pushfq; pop %r8; cld; ret))
CASE(push_imm, push $0x12345678; pop %rax; push $-3; pop %r8; ret)
CASE(push_word, pushw %dx; popw %ax; ret)
NO_EXECUTABLE_STACK
