// Case 17: the program single-steps itself through the probed function. The trap flag must be set at each of the function's
// instructions as without a probe (pushf shows it), the handler may see more steps but not fewer.
#define _GNU_SOURCE
#include <signal.h>

#include "target.h"

enum { kTrapFlag = 0x100, kInstructions = 7 };
uint64_t probe_me(uint64_t a, uint64_t b), probe_me_flags(uint64_t, uint64_t);
uint64_t call_stepping(uint64_t (*fn)(uint64_t, uint64_t), uint64_t a, uint64_t b);
__asm__(
    ".text\n.p2align 4\n"
    ".globl probe_me\n.type probe_me,@function\nprobe_me: lea (%rdi,%rsi), %rax\n imul $3, %rax, %rax\n xor %rsi, %rax\n"
    " rol $7, %rax\n push %rax\n pop %rdx\n ret\n.size probe_me,.-probe_me\n.p2align 4\n"
    ".globl probe_me_flags\n.type probe_me_flags,@function\nprobe_me_flags: pushfq\n pop %rax\n and $0x100, %eax\n ret\n"
    ".size probe_me_flags,.-probe_me_flags\n.p2align 4\n"
    ".type call_stepping,@function\ncall_stepping: mov %rdi, %rcx\n mov %rsi, %rdi\n mov %rdx, %rsi\n pushfq\n orl $0x100, (%rsp)\n popfq\n"
    " call *%rcx\n pushfq\n andl $~0x100, (%rsp)\n popfq\n ret\n.size call_stepping,.-call_stepping\n");

static volatile sig_atomic_t steps;

static void on_trap(int number) {
  (void)number;
  steps++;
}

static uint64_t expected(uint64_t a, uint64_t b) {
  const uint64_t x = ((a + b) * 3) ^ b;
  return x << 7 | x >> 57;
}

int main(int argc, char **argv) {
  target_begin(argc, argv, 200, NULL);
  const struct sigaction action = {.sa_handler = on_trap};
  TARGET_CHECK(sigaction(SIGTRAP, &action, NULL) == 0);
  target_ready();
  for (long round = 0; target_more(round); round++) {
    target_count(4);
    const uint64_t a = (uint64_t)round * 0x9e3779b97f4a7c15, b = (uint64_t)round ^ 77;
    steps = 0;
    TARGET_CHECK(call_stepping(probe_me, a, b) == expected(a, b));
    TARGET_CHECK(steps >= kInstructions);
    TARGET_CHECK(call_stepping(probe_me_flags, 0, 0) == kTrapFlag);
    const int so_far = steps;
    TARGET_CHECK(probe_me(a, b) == expected(a, b));
    TARGET_CHECK(probe_me_flags(0, 0) == 0);
    TARGET_CHECK(steps == so_far);
  }
  return target_end();
}
