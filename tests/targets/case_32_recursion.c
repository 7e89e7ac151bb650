// Case 32: 100,000 calls of one function under way at once, then their returns. Modes: `plain` (its own ret), `tracked`
// (returns by a tail jump), `mutual` (two functions call each other, one of them by a tail jump at the end).
#include "target.h"

enum { kDepth = 100000 };

#define FN(name) ".p2align 4\n.globl " name "\n.type " name ", @function\n" name ":\n"
#define END(name) ".size " name ", . - " name "\n"

uint64_t probe_me_plain(uint64_t depth), probe_me_tracked(uint64_t depth), probe_me_even(uint64_t depth), finish(uint64_t);

__asm__(".text\n"
        FN("finish") "lea 1(%rax), %rax\n nopl 0(%rax)\n ret\n" END("finish")
        FN("probe_me_plain") "test %rdi, %rdi\n je 1f\n sub $8, %rsp\n dec %rdi\n call probe_me_plain\n"
        "add $8, %rsp\n lea 1(%rax), %rax\n ret\n 1: mov $1, %eax\n ret\n" END("probe_me_plain")
        FN("probe_me_tracked") "xor %eax, %eax\n test %rdi, %rdi\n je finish\n sub $8, %rsp\n dec %rdi\n"
        "call probe_me_tracked\n add $8, %rsp\n jmp finish\n" END("probe_me_tracked")
        FN("probe_me_even") "xor %eax, %eax\n test %rdi, %rdi\n je finish\n sub $8, %rsp\n dec %rdi\n call odd\n"
        "add $8, %rsp\n jmp finish\n" END("probe_me_even")
        FN("odd") "sub $8, %rsp\n dec %rdi\n call probe_me_even\n add $8, %rsp\n jmp finish\n" END("odd"));

int main(int argc, char **argv) {
  target_begin(argc, argv, 3, "plain");
  target_ready();
  for (long round = 0; target_more(round); round++) {
    if (target_mode_is("plain")) {
      TARGET_CHECK(probe_me_plain(kDepth - 1) == kDepth);
      target_count(kDepth);
    } else if (target_mode_is("tracked")) {
      TARGET_CHECK(probe_me_tracked(kDepth - 1) == kDepth);
      target_count(kDepth);
    } else {
      TARGET_CHECK(probe_me_even(kDepth) == kDepth + 1);
      target_count(kDepth / 2 + 1);
    }
  }
  return target_end();
}
