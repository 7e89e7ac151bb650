// Case 48: the probed function runs in a handler on the alternate stack, and its first instruction faults by design: the
// handler gives it a good pointer and retries (`retry`), or leaves by siglongjmp (`jump`).
#define _GNU_SOURCE
#include <setjmp.h>
#include <signal.h>
#include <stdlib.h>
#include <ucontext.h>

#include "target.h"

uint64_t probe_me_load(const uint64_t *pointer);
PROBED uint64_t probe_me_handler(uint64_t n) { return n * 5 + 1; }

// A load as the first instruction: three bytes, so that it is displaced together with the next ones.
__asm__(".text; .p2align 4; .globl probe_me_load; .type probe_me_load, @function\n"
        "probe_me_load: mov (%rdi), %rax; add $1, %rax; ret; .size probe_me_load, . - probe_me_load");

static const uint64_t kGood = 1234;
static sigjmp_buf escape;
static volatile uint64_t handled;

static void on_fault(int number, siginfo_t *info, void *context) {
  (void)number;
  ucontext_t *saved = context;
  if ((uintptr_t)info->si_addr != 16) _Exit(3);
  target_count(1);
  handled = probe_me_handler(handled);
  if (target_mode_is("jump")) siglongjmp(escape, 1);
  saved->uc_mcontext.gregs[REG_RDI] = (greg_t)(intptr_t)&kGood;
}

static void one_round(void) {
  const uint64_t before = handled;
  volatile bool jumped = false;
  target_count(1);
  if (sigsetjmp(escape, 1) == 0) {
    TARGET_CHECK(probe_me_load((const uint64_t *)16) == kGood + 1);
  } else {
    jumped = true;
  }
  TARGET_CHECK(jumped == target_mode_is("jump"));
  TARGET_CHECK(handled == before * 5 + 1);
  target_count(1);
  TARGET_CHECK(probe_me_load(&kGood) == kGood + 1);
}

int main(int argc, char **argv) {
  target_begin(argc, argv, 5000, "retry");
  static char stack[65536];
  const stack_t alternate = {.ss_sp = stack, .ss_size = sizeof stack};
  const struct sigaction action = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO | SA_ONSTACK};
  TARGET_CHECK(sigaltstack(&alternate, NULL) == 0 && sigaction(SIGSEGV, &action, NULL) == 0);
  target_ready();
  for (long round = 0; target_more(round); round++) one_round();
  return target_end();
}
