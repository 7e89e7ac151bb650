// Case 66: bytes behind or before a function look like padding (nops, int3, zeros) and are read as data: found by an operand
// relative to the instruction pointer, by a pointer in data, by an offset from the function's own address; and the four-byte hash that
// control-flow integrity keeps in front of an entry.
#include "asm_case.h"
// Read by rip: the nine bytes behind `ret`.
#define BY_RIP(name, byte)                                                                                        \
  CASE(name, ret; 9: .skip 15, byte)                                                                              \
  .text; .p2align 4; FUNCTION(reader_##name) mov probe_me_##name + 1(%rip), %rax; movzbl probe_me_##name + 4(%rip), %edx; \
  ret; END(reader_##name); FUNCTION(twin_reader_##name) mov twin_##name + 1(%rip), %rax;                          \
  movzbl twin_##name + 4(%rip), %edx; ret; END(twin_reader_##name);                                               \
  LIST_CASE(reader_##name, reader_##name, twin_reader_##name, ENTRIES_NONE)
BY_RIP(nops_read_by_rip, 0x90)
BY_RIP(int3s_read_by_rip, 0xcc)
BY_RIP(zeros_read_by_rip, 0)
// Read through a pointer in data.
#define BY_POINTER(name, byte)                                                                                    \
  CASE(name, ret; 9: .skip 15, byte)                                                                              \
  .text; .p2align 4; FUNCTION(reader_##name) mov pointer_##name(%rip), %rax; mov (%rax), %rax; ret;               \
  END(reader_##name); FUNCTION(twin_reader_##name) mov twin_pointer_##name(%rip), %rax; mov (%rax), %rax; ret;    \
  END(twin_reader_##name);                                                                                        \
  .pushsection .data.rel.local, "aw"; .balign 8; pointer_##name: .quad probe_me_##name + 1;                       \
  twin_pointer_##name: .quad twin_##name + 1; .popsection;                                                        \
  LIST_CASE(reader_##name, reader_##name, twin_reader_##name, ENTRIES_NONE)
BY_POINTER(nops_read_by_pointer, 0x90)
BY_POINTER(int3s_read_by_pointer, 0xcc)
// The hash of a function's type in front of its entry, compared by who calls through a pointer (kernel control-flow integrity).
#define HASHED(name, hash, body)                                                                                   \
  .text; .p2align 4; .long hash; FUNCTION(probe_me_##name) body; ret; END(probe_me_##name);                 \
  .long hash; FUNCTION(neighbour_##name) lea 1(%rax), %rax; ret; END(neighbour_##name);                     \
  .p2align 4; .long hash; FUNCTION(twin_##name) body; ret; END(twin_##name);                                \
  .long hash; FUNCTION(twin_neighbour_##name) lea 1(%rax), %rax; ret; END(twin_neighbour_##name);           \
  .p2align 4; FUNCTION(caller_##name) lea neighbour_##name(%rip), %r9; mov -4(%r9), %r8d; call *%r9;              \
  xor %r9d, %r9d; ret; END(caller_##name);                                                                        \
  .p2align 4; FUNCTION(twin_caller_##name) lea twin_neighbour_##name(%rip), %r9; mov -4(%r9), %r8d; call *%r9;    \
  xor %r9d, %r9d; ret; END(twin_caller_##name);                                                                   \
  LIST_CASE(name, probe_me_##name, twin_##name, ENTRIES_ONE)                                                      \
  LIST_CASE(caller_##name, caller_##name, twin_caller_##name, ENTRIES_NONE)
HASHED(hash_behind_a_lone_ret, 0x7d3a1b42, )
HASHED(hash_behind_three_bytes, 0x7d3a1b42, inc %eax)
// The first byte of the hash is a nop, or its first three are; one of four nops cannot be told from padding.
HASHED(hash_begins_with_a_nop, 0x42421b90, )
HASHED(hash_is_almost_nops, 0x42909090, )
HASHED(hash_is_almost_int3s, 0x42cccccc, )
NO_EXECUTABLE_STACK
