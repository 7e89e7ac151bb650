// Case 3: a lone `ret` before zero bytes. They may be data, so they are no padding, and a jump made of them leads right behind itself.
#include "asm_case.h"
#define PADDED(name, entries, ...)                                                                     \
  .p2align 4; FUNCTION(probe_me_##name) ret; END(probe_me_##name); __VA_ARGS__;                        \
  FUNCTION(neighbour_##name) endbr64; lea 1(%rax), %rax; ret; END(neighbour_##name);                   \
  .p2align 4; FUNCTION(twin_##name) ret; END(twin_##name);                                             \
  .p2align 4; FUNCTION(neighbour_twin_##name) endbr64; lea 1(%rax), %rax; ret; END(neighbour_twin_##name); \
  LIST_CASE(name, probe_me_##name, twin_##name, ENTRIES_ONE)                                           \
  LIST_CASE(neighbour_of_##name, neighbour_##name, neighbour_twin_##name, ENTRIES_NONE)
        .text
PADDED(zeros15, 1, .skip 15, 0)
NO_EXECUTABLE_STACK
