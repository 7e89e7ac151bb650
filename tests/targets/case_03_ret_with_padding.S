// Case 3: a function of one byte, `ret`, followed by padding that a jump may take: 4 bytes (just enough) and 15, of the
// kinds that assemblers and linkers write. The next function must stay untouched.
#include "asm_case.h"
#define PADDED(name, entries, ...)                                                                     \
  .p2align 4; FUNCTION(probe_me_##name) ret; END(probe_me_##name); __VA_ARGS__;                        \
  FUNCTION(neighbour_##name) endbr64; lea 1(%rax), %rax; ret; END(neighbour_##name);                   \
  .p2align 4; FUNCTION(twin_##name) ret; END(twin_##name);                                             \
  .p2align 4; FUNCTION(neighbour_twin_##name) endbr64; lea 1(%rax), %rax; ret; END(neighbour_twin_##name); \
  LIST_CASE(name, probe_me_##name, twin_##name, ENTRIES_ONE)                                           \
  LIST_CASE(neighbour_of_##name, neighbour_##name, neighbour_twin_##name, ENTRIES_NONE)
        .text
PADDED(nop4, 1, .nops 4)
PADDED(nop15, 1, .nops 15)
PADDED(single_nops15, 1, .skip 15, 0x90)
PADDED(int3s15, 1, .skip 15, 0xcc)
CASE(five_bytes, lea 1(%rdx), %rax; ret)
CASE(two_bytes, rep ret)
CASE(three_bytes, xor %eax, %eax; ret)
NO_EXECUTABLE_STACK
