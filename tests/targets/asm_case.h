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

#define NO_EXECUTABLE_STACK .section .note.GNU-stack, "", @progbits
