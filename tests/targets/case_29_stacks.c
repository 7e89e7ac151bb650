// Case 29: the probed function runs on misaligned stacks, on a small signal stack, and with only `kRoom` bytes between its
// stack pointer and a guard page: the red zone (128) and 512 bytes for the probe.
#define _GNU_SOURCE
#include <signal.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "target.h"

enum { kPage = 4096, kRoom = 128 + 512 };

uint64_t call_on_stack(void *top, uint64_t argument, uint64_t (*fn)(uint64_t));
uint64_t probe_me(uint64_t);

static uint64_t handled;
static void on_signal(int number) {
  (void)number;
  handled = probe_me(handled);
  target_count(1);
}

static void small_signal_stack(void) {
  // The kernel's frame takes what AT_MINSIGSTKSZ says; the handler and the probe have the rest.
  const size_t size = (size_t)sysconf(_SC_MINSIGSTKSZ) + 1024;
  char *pages = mmap(NULL, 64 * kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  TARGET_CHECK(pages != MAP_FAILED && mprotect(pages, 16 * kPage, PROT_NONE) == 0);
  const stack_t stack = {.ss_sp = pages + 16 * kPage, .ss_size = size};
  const struct sigaction action = {.sa_handler = on_signal, .sa_flags = SA_ONSTACK};
  TARGET_CHECK(sigaltstack(&stack, NULL) == 0 && sigaction(SIGUSR1, &action, NULL) == 0);
}

int main(int argc, char **argv) {
  target_begin(argc, argv, 2000, NULL);
  char *stack = mmap(NULL, 3 * kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  TARGET_CHECK(stack != MAP_FAILED && mprotect(stack, kPage, PROT_NONE) == 0);
  if (target_mode_is("signal")) small_signal_stack();
  target_ready();
  uint64_t want = 0;
  for (long i = 0; target_more(i); i++) {
    const uint64_t n = (uint64_t)i;
    target_count(9);
    for (int shift = 0; shift < 8; shift++)
      TARGET_CHECK(call_on_stack(stack + 2 * kPage - shift, n, probe_me) == 4 * n + 1);
    TARGET_CHECK(call_on_stack(stack + kPage + kRoom + 8, n, probe_me) == 4 * n + 1);
    if (target_mode_is("signal") && i % 8 == 0) {
      want = 4 * want + 1;
      raise(SIGUSR1);
      TARGET_CHECK(handled == want);
    }
  }
  return target_end();
}
