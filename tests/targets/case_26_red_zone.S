// Case 26: a leaf that keeps its data below the stack pointer, probed at each of its instructions: each step is a symbol of
// its own and falls through into the next. Every byte of the red zone is written before and read after each probe.
#include "asm_case.h"
#define STEP(name, n, ...) FUNCTION(name##_##n) __VA_ARGS__; END(name##_##n)
#define LEAF(name)                                                                                    \
  .p2align 4;                                                                                         \
  STEP(name, 1, mov %rax, -8(%rsp));                                                                   \
  STEP(name, 2, mov %rdx, -16(%rsp));                                                                  \
  STEP(name, 3, mov %rsi, -64(%rsp));                                                                  \
  STEP(name, 4, mov %r9, -120(%rsp));                                                                  \
  STEP(name, 5, movl $0x55aa55aa, -128(%rsp));                                                         \
  STEP(name, 6, add -16(%rsp), %rax);                                                                  \
  STEP(name, 7, xor -64(%rsp), %rax);                                                                  \
  STEP(name, 8, sub -120(%rsp), %rax);                                                                 \
  STEP(name, 9, adcl $0x01020304, -128(%rsp));                                                         \
  STEP(name, 10, movslq -128(%rsp), %rdx);                                                             \
  STEP(name, 11, mov -8(%rsp), %r10);                                                                  \
  STEP(name, 12, lea 1(%rax, %rdx), %rax; ret)
        .text
LEAF(probe_me)
LEAF(twin)
LIST_CASE(leaf, probe_me_1, twin_1, 12)
NO_EXECUTABLE_STACK
