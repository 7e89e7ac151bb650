// How a case in assembly is written: each body is assembled twice, as `probe_me_NAME` (which gets the probe) and as
// `twin_NAME` (which never does). asm_driver.c calls both with the same registers, flags and memory and compares all
// that comes out. On entry: rdi = a 256-byte buffer, rcx = 0..7 (1..7 for ENTRIES_RCX), r11 = asm_helper, the rest random.
#pragma once

#define FUNCTION(name) .globl name; .type name, @function; name:
#define END(name) .size name, . - name

// How often the first instruction of the probed function is executed in one call.
#define ENTRIES_ONE 1
#define ENTRIES_RCX 255
#define ENTRIES_NONE 0

#define LIST_CASE(name, probed, twin, entries)                              \
  .pushsection .rodata.case_names, "a"; 991: .asciz #name; .popsection;     \
  .pushsection asm_cases, "aw"; .balign 8;                                  \
  .quad probed, twin, 991b, entries; .popsection

// `before` is assembled in front of the function, so that the body can jump backward to it.
#define CASE_WITH(name, entries, before, ...)                               \
  .text; .p2align 4; before; FUNCTION(probe_me_##name) __VA_ARGS__;         \
  END(probe_me_##name); .p2align 4; before; FUNCTION(twin_##name)           \
  __VA_ARGS__; END(twin_##name);                                            \
  LIST_CASE(name, probe_me_##name, twin_##name, entries)

#define CASE(name, ...) CASE_WITH(name, ENTRIES_ONE, , __VA_ARGS__)

// A case whose first instruction needs more than the driver's registers: a stub does `setup` and calls the function. Setup and
// body are in parentheses, because they hold commas.
#define PLAIN(...) __VA_ARGS__
#define CASE_BEHIND(name, entries, setup, body)                             \
  .text; .p2align 4; FUNCTION(probe_me_##name) PLAIN body;                  \
  END(probe_me_##name); .p2align 4; FUNCTION(body_##name) PLAIN body;       \
  END(body_##name); .p2align 4; FUNCTION(stub_##name) PLAIN setup;          \
  call probe_me_##name; ret; END(stub_##name); .p2align 4;                  \
  FUNCTION(stub_twin_##name) PLAIN setup; call body_##name; ret;            \
  END(stub_twin_##name);                                                    \
  LIST_CASE(name, stub_##name, stub_twin_##name, entries)

// The same, entered by a jump: what the function finds on the stack is the stub's, who puts the address of `1:` where the
// function will look for it. r9 is cleared behind `1:`.
#define CASE_JUMPED_TO(name, entries, setup, body)                          \
  .text; .p2align 4; FUNCTION(probe_me_##name) PLAIN body; .nops 14;        \
  END(probe_me_##name); FUNCTION(body_##name) PLAIN body; .nops 14;         \
  END(body_##name); FUNCTION(stub_##name) PLAIN setup;                      \
  jmp probe_me_##name; 1: xor %r9d, %r9d; ret; END(stub_##name);            \
  FUNCTION(stub_twin_##name) PLAIN setup; jmp body_##name;                  \
  1: xor %r9d, %r9d; ret; END(stub_twin_##name);                            \
  LIST_CASE(name, stub_##name, stub_twin_##name, entries)

#define NO_EXECUTABLE_STACK .section .note.GNU-stack, "", @progbits
