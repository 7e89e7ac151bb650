// Case 5: first instructions that address memory relative to themselves; a copy elsewhere needs another displacement.
#include "asm_case.h"
CASE(load, mov cell(%rip), %rax; ret)
CASE(load_byte, movzbl cell+3(%rip), %eax; ret)
CASE(store, mov %rdx, spare(%rip); mov spare(%rip), %rax; ret)
CASE(store_imm32, movl $0x12345678, spare(%rip); mov spare(%rip), %rax; ret)
CASE(store_imm8, movb $0x5a, spare+1(%rip); mov spare(%rip), %rax; ret)
CASE(lea, lea cell(%rip), %rax; ret)
CASE(cmp_imm32, cmpl $0x89abcdef, cell(%rip); sete %al; ret)
CASE(cmp_imm8, cmpb $0x7f, cell(%rip); setl %al; ret)
CASE(test_imm8, testb $1, cell(%rip); ret)
CASE(imul_imm32, imul $1000003, cell(%rip), %rax; ret)
CASE(got, mov cell@GOTPCREL(%rip), %rax; mov (%rax), %rax; ret)
CASE(add_to_memory, add %rdx, spare(%rip); mov spare(%rip), %rax; sub %rdx, spare(%rip); ret)
CASE(sse, movdqa vector(%rip), %xmm0; movq %xmm0, %rax; ret)
CASE(sse_imm8, pshufd $0x1b, vector(%rip), %xmm0; movq %xmm0, %rax; ret)
CASE(jmp_indirect, jmp *helper_pointer(%rip))
CASE(call_indirect, call *helper_pointer(%rip); inc %rax; ret)
CASE(push_memory, push cell(%rip); pop %rax; ret)
CASE(second_in_window, xor %eax, %eax; add cell(%rip), %rax; ret)
CASE(third_in_window, nop; nop; mov cell(%rip), %rax; ret)
        .section .data.rel.local, "aw"
        .balign 16
vector: .quad   0x0123456789abcdef, 0xfedcba9876543210
cell:   .quad   0x0f1e2d3c89abcdef
spare:  .quad   0
helper_pointer: .quad asm_helper
NO_EXECUTABLE_STACK
