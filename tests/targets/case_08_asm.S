// Case 8: functions that begin with a string instruction, and what gives it its registers.
#include "asm_case.h"
#define ENTERED(name, setup, body)                                                                 \
  .text; .p2align 4; FUNCTION(name) PLAIN setup; jmp probe_me_##name; END(name);                   \
  .p2align 4; FUNCTION(probe_me_##name) PLAIN body; END(probe_me_##name)
ENTERED(copy, (mov %rdx, %rcx), (rep movsb; ret))
ENTERED(fill, (mov %rdx, %rcx; mov %esi, %eax), (rep stosb; ret))
ENTERED(find, (mov %rdx, %rcx; mov %esi, %eax), (repne scasb; lea -1(%rdi), %rax; ret))
NO_EXECUTABLE_STACK
