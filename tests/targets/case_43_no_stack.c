// Case 43: a thread whose stack pointer points to nothing: what it was doing before a signal, if anything, cannot be found
// out. It spins with all signals blocked until SIGUSR1 comes to the main thread, then goes back to its stack and says `home`.
#define _GNU_SOURCE
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <unistd.h>

#include "target.h"

static volatile int parked, go;

// Two instructions under a jump, of which the first alone has enough bytes for a jump of another sort; one instruction.
uint64_t probe_me(uint64_t n), probe_me_long(uint64_t n);
__asm__(".text; .p2align 4; .globl probe_me; .type probe_me, @function; probe_me: .cfi_startproc\n"
        "lea 1(%rdi), %rax; nop; nop; ret\n"
        ".cfi_endproc; .size probe_me, . - probe_me\n"
        ".p2align 4; .globl probe_me_long; .type probe_me_long, @function; probe_me_long: .cfi_startproc\n"
        "mov $1, %rax; add %rdi, %rax; ret\n"
        ".cfi_endproc; .size probe_me_long, . - probe_me_long\n");

static void *spin_without_stack(void *unused) {
  (void)unused;
  sigset_t all;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, NULL);
  __asm__ volatile(
      "mov %%rsp, %%r12; mov $0x1000, %%esp; movl $1, %[parked]\n"
      "1: pause; cmpl $0, %[go]; je 1b; mov %%r12, %%rsp\n"
      : [parked] "=m"(parked)
      : [go] "m"(go)
      : "r12", "memory", "cc");
  printf("home\n");
  fflush(stdout);
  return NULL;
}

static void let_go(int number) {
  (void)number;
  go = 1;
}

int main(int argc, char **argv) {
  pthread_t thread;
  target_begin(argc, argv, 1000, "probe_me");
  uint64_t (*probed)(uint64_t) = target_mode_is("probe_me") ? probe_me : probe_me_long;
  const struct sigaction action = {.sa_handler = let_go, .sa_flags = SA_RESTART};
  TARGET_CHECK(sigaction(SIGUSR1, &action, NULL) == 0);
  TARGET_CHECK(pthread_create(&thread, NULL, spin_without_stack, NULL) == 0);
  while (!parked) usleep(1000);
  target_ready();
  for (long round = 0; target_more(round); round++) {
    for (uint64_t i = 0; i < 100; i++) TARGET_CHECK(probed(i) == i + 1);
    target_count(100);
  }
  const int result = target_end();
  go = 1;
  pthread_join(thread, NULL);
  return result;
}
