// Case 22: data between instructions that decodes as something else: it swallows the heads of real instructions, so that
// the branches into the first bytes are not seen in a line, or it looks like branches that do not exist.
#include "asm_case.h"
// The loop back to entry+2 stands where a decoder that goes on behind the jump sees the immediate of a movabs.
CASE(swallowed_loop, xor %eax, %eax; 1: inc %eax; lea 1(%rdx, %rax), %rdx; jmp 2f; .byte 0x48, 0xb8;
  2: dec %ecx; jg 1b; nop; nop; nop; nop; ret)
// The same, reached by an address that the code computes.
CASE(computed_and_swallowed, xor %eax, %eax; 1: inc %eax; lea 2f(%rip), %r9; jmp 3f; 3: jmp *%r9; .byte 0x48, 0xb8;
  2: dec %ecx; jg 1b; xor %r9d, %r9d; ret)
// The same, reached by a table of distances behind the jump.
CASE(table_and_swallowed, xor %eax, %eax; 1: inc %eax; lea 4f(%rip), %r9; movslq (%r9), %r8; add %r9, %r8; jmp *%r8;
  4: .long 2f - 4b, 2f - 4b; .byte 0x48, 0xb8; 2: dec %ecx; jg 1b; xor %r9d, %r9d; xor %r8d, %r8d; ret)
// The same, reached by a return.
CASE(returned_to_and_swallowed, xor %eax, %eax; 1: inc %eax; lea 2f(%rip), %r9; push %r9; ret; .byte 0x48, 0xb8;
  2: dec %ecx; jg 1b; xor %r9d, %r9d; ret)
// A literal pool behind the function that decodes as a jump to entry+1: no reason to refuse, none to crash.
CASE(false_branch, lea 1(%rdx), %rax; movq 5f(%rip), %r8; ret; 5: .byte 0xeb, 0xf1, 0xe9, 0xef, 0xff, 0xff, 0xff, 0x90)
// Words between entry and code, with the entry a jump over them. They must stay what they are.
CASE(words_behind_the_entry, jmp 6f; 7: .long 0x12345678, 0x90909090, 0xcccccccc; 6: mov 7b(%rip), %eax;
  add 7b + 4(%rip), %eax; add 7b + 8(%rip), %eax; ret)
// The function reads its own first bytes' successors as data.
CASE(reads_its_padding, lea 1(%rdx), %rax; mov 8f(%rip), %r8; ret; 8: .byte 0x90, 0x90, 0x90, 0x90, 0x90, 0x90, 0x90, 0x90)
NO_EXECUTABLE_STACK
