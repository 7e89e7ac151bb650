// Case 11: functions whose first instruction raises a signal: `ud2`, `hlt`, `int3`, bytes that no decoder knows. The handler leaves
// by siglongjmp; it looks at the signal only, not at the address.
#define _GNU_SOURCE
#include <setjmp.h>
#include <signal.h>
#include <string.h>

#include "target.h"

void probe_me_ud2(void), probe_me_hlt(void), probe_me_int3(void), probe_me_bad(void);
__asm__(
    ".text\n.p2align 4\n"
    ".globl probe_me_ud2\n.type probe_me_ud2,@function\nprobe_me_ud2: ud2\n.nops 8\nret\n.size probe_me_ud2,.-probe_me_ud2\n.p2align 4\n"
    ".globl probe_me_hlt\n.type probe_me_hlt,@function\nprobe_me_hlt: hlt\n.nops 8\nret\n.size probe_me_hlt,.-probe_me_hlt\n.p2align 4\n"
    ".globl probe_me_int3\n.type probe_me_int3,@function\nprobe_me_int3: int3\n.nops 8\nret\n.size probe_me_int3,.-probe_me_int3\n.p2align 4\n"
    ".globl probe_me_bad\n.type probe_me_bad,@function\nprobe_me_bad: .byte 0x06\n.nops 8\nret\n.size probe_me_bad,.-probe_me_bad\n");

static sigjmp_buf back;
static volatile sig_atomic_t last;

static void on_signal(int number) {
  last = number;
  siglongjmp(back, 1);
}

int main(int argc, char **argv) {
  target_begin(argc, argv, 3000, "ud2");
  void (*const fn)(void) = target_mode_is("ud2") ? probe_me_ud2 : target_mode_is("hlt") ? probe_me_hlt
                         : target_mode_is("int3") ? probe_me_int3 : probe_me_bad;
  const int want = target_mode_is("hlt") ? SIGSEGV : target_mode_is("int3") ? SIGTRAP : SIGILL;
  const struct sigaction action = {.sa_handler = on_signal};
  TARGET_CHECK(sigaction(SIGILL, &action, NULL) == 0 && sigaction(SIGSEGV, &action, NULL) == 0 && sigaction(SIGTRAP, &action, NULL) == 0);
  target_ready();
  for (volatile long round = 0; target_more(round); round++) {
    last = 0;
    target_count(1);
    if (sigsetjmp(back, 1) == 0) {
      fn();
      target_fail("the instruction raised nothing");
    }
    TARGET_CHECK(last == want);
  }
  return target_end();
}
