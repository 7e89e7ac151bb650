// Cases 10 and 23: functions that end in jumps into others. Every call of a probed function must be told as one return,
// whatever way it takes, and calls of the others must not. Return probes on probe_me*; calls=N counts returns.
#include <stdlib.h>

#include "target.h"

#define FN(name) ".p2align 4\n.globl " name "\n.type " name ", @function\n" name ":\n"
#define END(name) ".size " name ", . - " name "\n"

uint64_t probe_me_direct(uint64_t), probe_me_conditional(uint64_t), probe_me_chain(uint64_t), probe_me_got(const char *),
    probe_me_plt(const char *), probe_me_target(uint64_t), probe_me_to_probed(uint64_t), probe_me_shared_middle(uint64_t),
    probe_me_falls_into(uint64_t), probe_me_pops(uint64_t, uint64_t), probe_me_rep(uint64_t), probe_me_short(uint64_t),
    plain_target(uint64_t), chain_2(uint64_t), enters_the_middle(uint64_t), after_the_fall(uint64_t),
    call_popping(uint64_t);

__asm__(".text\n"
        FN("plain_target") "lea 1(%rdi,%rdi,2), %rax\n ret\n" END("plain_target")
        FN("probe_me_direct") "inc %rdi\n jmp plain_target\n" END("probe_me_direct")
        // An odd number returns here, an even one there.
        FN("probe_me_conditional") "test $1, %dil\n jz plain_target\n lea 5(%rdi), %rax\n ret\n" END("probe_me_conditional")
        FN("probe_me_chain") "inc %rdi\n jmp chain_1\n" END("probe_me_chain")
        FN("chain_1") "inc %rdi\n nop\n jmp chain_2\n" END("chain_1")
        FN("chain_2") "lea (%rdi,%rdi), %rax\n nopl 0(%rax)\n ret\n" END("chain_2")
        FN("probe_me_got") "nopl 8(%rax)\n jmp *atol@GOTPCREL(%rip)\n" END("probe_me_got")
        FN("probe_me_plt") "nopl 8(%rax)\n jmp atol@PLT\n" END("probe_me_plt")
        FN("probe_me_target") "lea 7(%rdi), %rax\n nopl 0(%rax)\n ret\n" END("probe_me_target")
        FN("probe_me_to_probed") "inc %rdi\n nopl 0(%rax)\n jmp probe_me_target\n" END("probe_me_to_probed")
        FN("probe_me_shared_middle") "lea 3(%rdi), %rax\n nopl 0(%rax)\n"
        "shared_middle: nopl 8(%rax)\n lea 1(%rax), %rax\n ret\n" END("probe_me_shared_middle")
        FN("enters_the_middle") "lea 100(%rdi), %rax\n jmp shared_middle\n" END("enters_the_middle")
        FN("probe_me_falls_into") "inc %rdi\n nopl 0(%rax)\n" END("probe_me_falls_into")
        ".globl after_the_fall\n.type after_the_fall, @function\nafter_the_fall:\n"
        "lea 9(%rdi), %rax\n nopl 0(%rax)\n ret\n" END("after_the_fall")
        FN("probe_me_pops") "lea (%rdi,%rsi), %rax\n add 8(%rsp), %rax\n ret $8\n" END("probe_me_pops")
        FN("call_popping") "push %rdi\n mov $2, %esi\n call probe_me_pops\n ret\n" END("call_popping")
        FN("probe_me_rep") "lea 11(%rdi), %rax\n nopl 0(%rax)\n rep ret\n" END("probe_me_rep")
        // Both jumps are two bytes long.
        FN("probe_me_short") "cmp $3, %rdi\n je short_target\n inc %rdi\n jmp short_target\n" END("probe_me_short")
        ".type short_target, @function\nshort_target: lea (%rdi,%rdi,4), %rax\n nopl 0(%rax)\n ret\n" END("short_target"));

static void round_of_calls(uint64_t i) {
  TARGET_CHECK(probe_me_direct(i) == 3 * (i + 1) + 1);
  TARGET_CHECK(plain_target(i) == 3 * i + 1);
  TARGET_CHECK(probe_me_conditional(i) == (i % 2 == 0 ? 3 * i + 1 : i + 5));
  TARGET_CHECK(probe_me_chain(i) == 2 * (i + 2));
  TARGET_CHECK(chain_2(i) == 2 * i);
  TARGET_CHECK(probe_me_got("42") == 42);
  TARGET_CHECK(atol("17") == 17);
  TARGET_CHECK(probe_me_plt("-3") == (uint64_t)-3);
  TARGET_CHECK(probe_me_target(i) == i + 7);
  TARGET_CHECK(probe_me_to_probed(i) == i + 8);  // two returns at once
  TARGET_CHECK(probe_me_shared_middle(i) == i + 4);
  TARGET_CHECK(enters_the_middle(i) == i + 101);
  TARGET_CHECK(probe_me_falls_into(i) == i + 10);
  TARGET_CHECK(after_the_fall(i) == i + 9);
  TARGET_CHECK(call_popping(i) == 2 * i + 2);
  TARGET_CHECK(probe_me_rep(i) == i + 11);
  TARGET_CHECK(probe_me_short(i) == 5 * (i == 3 ? i : i + 1));
  target_count(13);
}

int main(int argc, char **argv) {
  target_begin(argc, argv, 2000, NULL);
  target_ready();
  for (long round = 0; target_more(round); round++) round_of_calls((uint64_t)round % 8);
  return target_end();
}
