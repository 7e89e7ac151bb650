// Case 21: two instruction streams share bytes: a jump leads behind a prefix or into an immediate of the first instruction.
// A decoder that goes in a line never sees the second stream.
#include "asm_case.h"
#define ENTERED_LATE(name, skipped, ...)                                                                           \
  .text; .p2align 4; FUNCTION(probe_me_##name) __VA_ARGS__; END(probe_me_##name);                                  \
  .p2align 4; FUNCTION(late_##name) lea 3(%rax), %rax; jmp probe_me_##name + skipped; END(late_##name);            \
  .p2align 4; FUNCTION(twin_##name) __VA_ARGS__; END(twin_##name);                                                 \
  .p2align 4; FUNCTION(late_twin_##name) lea 3(%rax), %rax; jmp twin_##name + skipped; END(late_twin_##name);      \
  LIST_CASE(name, probe_me_##name, twin_##name, ENTRIES_ONE)                                                       \
  LIST_CASE(late_##name, late_##name, late_twin_##name, ENTRIES_NONE)
// A jump behind the lock prefix.
ENTERED_LATE(lock_skipped, 1, lock cmpxchg %rdx, (%rdi); setz %r8b; ret)
// Behind rep: the same instruction once.
ENTERED_LATE(rep_skipped, 1, rep nop; lea 1(%rdx), %rax; ret)
// Behind the operand-size prefix: another length of immediate. 66 05 iw | 05 id
ENTERED_LATE(operand_size_skipped, 1, .byte 0x66, 0x05, 0x90, 0x90, 0x90, 0x90; ret)
// Into the eight bytes of an immediate: inc %rax; ret.
ENTERED_LATE(code_in_an_immediate, 2, movabs $0x90c3c0ff48909090, %r8; ret)
// Into the displacement, which is add $5, %rax; ret when entered there. 48 8d 90 | 04 05 c3 90
ENTERED_LATE(code_in_a_displacement, 3, .byte 0x48, 0x8d, 0x90, 0x04, 0x05, 0xc3, 0x90; ret)
// The entry of one function is the immediate of the other's last instruction: mov $imm32, %r8d whose immediate is ours.
        .text
        .p2align 4
#define INSIDE(prefix)                                                                                             \
  .p2align 4; FUNCTION(prefix##_around) .byte 0x41, 0xb8;                                                          \
  FUNCTION(prefix##_inside) lea 1(%rax), %eax; nop; ret; END(prefix##_inside); END(prefix##_around)
INSIDE(probe_me)
INSIDE(twin)
LIST_CASE(inside, probe_me_inside, twin_inside, ENTRIES_ONE)
LIST_CASE(around, probe_me_around, twin_around, ENTRIES_ONE)
// A loop that comes back behind the prefix, inside the same function.
CASE(loop_behind_the_prefix, .byte 0xf0; 1: addq $3, (%rdi); sub $1, %ecx; jg 1b; ret)
NO_EXECUTABLE_STACK
