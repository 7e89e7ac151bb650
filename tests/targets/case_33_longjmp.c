// Case 33: longjmp past 20,000 frames of probed functions, then calls at the same stack slots: what never returned must
// not be told as a return, then or later. Also siglongjmp out of a signal handler. Modes: `plain`, `tracked`.
#include <setjmp.h>
#include <signal.h>
#include <stdlib.h>

#include "target.h"

enum { kDepth = 20000, kAfter = 200 };

static jmp_buf out;
static sigjmp_buf out_of_handler;

uint64_t finish(uint64_t), probe_me_ends_in_jump(uint64_t depth, void (*at_bottom)(void));
__asm__(".text\n.p2align 4\n.globl finish\n.type finish, @function\n"
        "finish: lea 1(%rax), %rax\n nopl 0(%rax)\n ret\n.size finish, . - finish\n"
        ".p2align 4\n.globl probe_me_ends_in_jump\n.type probe_me_ends_in_jump, @function\nprobe_me_ends_in_jump:\n"
        "sub $8, %rsp\n test %rdi, %rdi\n je 1f\n dec %rdi\n call probe_me_ends_in_jump\n add $8, %rsp\n jmp finish\n"
        "1: call *%rsi\n xor %eax, %eax\n add $8, %rsp\n jmp finish\n"
        ".size probe_me_ends_in_jump, . - probe_me_ends_in_jump\n");

PROBED uint64_t probe_me_plain(uint64_t depth, void (*at_bottom)(void)) {
  if (depth == 0) {
    at_bottom();
    return 1;
  }
  return probe_me_plain(depth - 1, at_bottom) + (depth > 1000000 ? 2 : 1);
}

static void jump_out(void) { longjmp(out, 1); }
static void go_on(void) {}
static void raise_one(void) { raise(SIGUSR1); }
static void handler(int number) {
  (void)number;
  siglongjmp(out_of_handler, 1);
}

typedef uint64_t (*recursive)(uint64_t, void (*)(void));

// `volatile`: every call comes from the same instruction, whatever it calls.
static uint64_t call(recursive volatile *which, uint64_t depth, void (*at_bottom)(void)) { return (*which)(depth, at_bottom); }

static uint64_t call_finish(uint64_t n, void (*at_bottom)(void)) {
  (void)at_bottom;
  return finish(n);
}

int main(int argc, char **argv) {
  target_begin(argc, argv, 20, "plain");
  recursive volatile probed = target_mode_is("plain") ? probe_me_plain : probe_me_ends_in_jump;
  recursive volatile other = call_finish;
  signal(SIGUSR1, handler);
  target_ready();
  for (long round = 0; target_more(round); round++) {
    if (setjmp(out) == 0) {
      call(&probed, kDepth - 1, jump_out);
      target_fail("it came back");
    }
    if (sigsetjmp(out_of_handler, 1) == 0) {
      call(&probed, 100, raise_one);
      target_fail("it came back from the handler");
    }
    for (int i = 0; i < kAfter; i++) {
      TARGET_CHECK(call(&probed, 3, go_on) == 4);
      call(&other, 3, go_on);
    }
    target_count(4 * kAfter);
  }
  return target_end();
}
