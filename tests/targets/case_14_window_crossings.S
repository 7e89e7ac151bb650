// Case 14: windows that cross an eight-byte word, a cache line and a page.
#include "asm_case.h"
#define AT_OFFSET(name, alignment, offset, ...)                                                                  \
  .text; .p2align alignment; .skip offset, 0xcc; FUNCTION(probe_me_##name) __VA_ARGS__; END(probe_me_##name);    \
  .p2align 4; FUNCTION(twin_##name) __VA_ARGS__; END(twin_##name);                                               \
  LIST_CASE(name, probe_me_##name, twin_##name, ENTRIES_ONE)
#define BODY lea 1(%rax), %rax; push %rbx; sub %rdx, %rax; pop %rbx; ret
#define LONG_BODY movabs $0x1122334455667788, %rax; ret
AT_OFFSET(word_4, 3, 4, BODY)
AT_OFFSET(word_5, 3, 5, BODY)
AT_OFFSET(word_6, 3, 6, BODY)
AT_OFFSET(word_7, 3, 7, BODY)
AT_OFFSET(line_60, 6, 60, BODY)
AT_OFFSET(line_61, 6, 61, BODY)
AT_OFFSET(line_62, 6, 62, BODY)
AT_OFFSET(line_63, 6, 63, BODY)
AT_OFFSET(line_63_long, 6, 63, LONG_BODY)
NO_EXECUTABLE_STACK
