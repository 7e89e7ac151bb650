// Case 14: entries in the last four bytes of a page, with a window that needs bytes of the next page.
#include "asm_case.h"
#define AT_OFFSET(name, offset, ...)                                                                             \
  .text; .p2align 12; .skip offset, 0xcc; FUNCTION(probe_me_##name) __VA_ARGS__; END(probe_me_##name);           \
  .p2align 4; FUNCTION(twin_##name) __VA_ARGS__; END(twin_##name);                                               \
  LIST_CASE(name, probe_me_##name, twin_##name, ENTRIES_ONE)
#define BODY lea 1(%rax), %rax; push %rbx; sub %rdx, %rax; pop %rbx; ret
AT_OFFSET(page_4092, 4092, BODY)
AT_OFFSET(page_4093, 4093, BODY)
AT_OFFSET(page_4094, 4094, BODY)
AT_OFFSET(page_4095, 4095, BODY)
AT_OFFSET(page_4095_push, 4095, push %rbx; lea 1(%rax), %rax; pop %rbx; ret)
NO_EXECUTABLE_STACK
