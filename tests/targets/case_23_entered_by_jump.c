// Case 23: functions that nobody calls: tail jumps, a jump with an own return address, nested functions whose static chain is in
// r10 (called directly and through a trampoline on the stack), and a function that runs on a stack of its own.
#include <stdlib.h>
#include <string.h>

#include "target.h"

PROBED uint64_t probe_me_tail(uint64_t n, uint64_t depth);
PROBED uint64_t probe_me_bounce(uint64_t n, uint64_t depth) { return depth == 0 ? n : probe_me_tail(n + 3, depth - 1); }
PROBED uint64_t probe_me_tail(uint64_t n, uint64_t depth) { return depth == 0 ? n * 5 : probe_me_bounce(n ^ 9, depth - 1); }

// Neither is called: the caller pushes where they return to, and the first gives the second its own return address.
uint64_t jump_in(uint64_t n);
__asm__(
    ".text\n.p2align 4\n.globl jump_in\n.type jump_in,@function\n"
    "jump_in: lea 1f(%rip), %rax\n push %rax\n jmp probe_me_jumped_to\n1: ret\n.size jump_in,.-jump_in\n.p2align 4\n"
    ".globl probe_me_jumped_to\n.type probe_me_jumped_to,@function\n"
    "probe_me_jumped_to: lea 2f(%rip), %rax\n push %rax\n lea 1(%rdi), %rdi\n jmp probe_me_behind\n2: lea 4(%rax), %rax\n ret\n"
    ".size probe_me_jumped_to,.-probe_me_jumped_to\n.p2align 4\n"
    ".globl probe_me_behind\n.type probe_me_behind,@function\nprobe_me_behind: lea (%rdi,%rdi), %rax\n ret\n"
    ".size probe_me_behind,.-probe_me_behind\n"
    // uint64_t on_stack(void *top, uint64_t n): calls probe_me_elsewhere(n) on another stack.
    ".p2align 4\n.globl on_stack\n.type on_stack,@function\non_stack: push %rbx\n mov %rsp, %rbx\n mov %rdi, %rsp\n mov %rsi, %rdi\n"
    " call probe_me_elsewhere\n mov %rbx, %rsp\n pop %rbx\n ret\n.size on_stack,.-on_stack\n");
uint64_t on_stack(void *top, uint64_t n);
PROBED uint64_t probe_me_elsewhere(uint64_t n) {
  volatile uint64_t kept[4] = {n, n + 1, n + 2, n + 3};
  return kept[n & 3] * 7;
}

static uint64_t apply(void (*fn)(uint64_t), uint64_t times) {
  for (uint64_t i = 0; i < times; i++) fn(i);
  return times;
}

static uint64_t nested(uint64_t n) {
  uint64_t sum = 0;
  PROBED void probe_me_direct(uint64_t i) { sum += i * n; }
  PROBED void probe_me_by_trampoline(uint64_t i) { sum ^= (i << 9) + n; }
  for (uint64_t i = 0; i < 5; i++) probe_me_direct(i);
  target_count(5 + apply(probe_me_by_trampoline, 6));
  return sum;
}

static uint64_t nested_expected(uint64_t n) {
  uint64_t sum = 10 * n;
  for (uint64_t i = 0; i < 6; i++) sum ^= (i << 9) + n;
  return sum;
}

int main(int argc, char **argv) {
  target_begin(argc, argv, 2000, NULL);
  char *stack = malloc(65536);
  TARGET_CHECK(stack != NULL);
  target_ready();
  for (long round = 0; target_more(round); round++) {
    const uint64_t n = (uint64_t)round;
    target_count(9 + 1 + 2 + 1);
    uint64_t want = n;
    for (int i = 0; i < 4; i++) want = (want ^ 9) + 3;
    TARGET_CHECK(probe_me_tail(n, 8) == want * 5);
    TARGET_CHECK(probe_me_bounce(n, 0) == n);
    TARGET_CHECK(jump_in(n) == 2 * (n + 1) + 4);
    TARGET_CHECK(on_stack(stack + 65536, n) == (n + (n & 3)) * 7);
    TARGET_CHECK(nested(n) == nested_expected(n));
  }
  free(stack);
  return target_end();
}
