// The library that cases 5 and 56 load.
#include <stdint.h>

#define EXPORTED __attribute__((visibility("default"), noinline))

EXPORTED uint64_t probe_me(uint64_t n) { return n * 11 + 5; }

#ifdef CALLS_AT_ONCE
#include <stdlib.h>
// By the library's own constructor, before dlopen returns.
static volatile uint64_t result_of_constructor;
__attribute__((constructor)) static void begin(void) {
  const char *load = getenv("CASE_56_LOAD");
  for (int i = 0; load != NULL && i < 10; i++) result_of_constructor = probe_me(strtoul(load, NULL, 10));
}
#endif

// Holds a restartable sequence (case 49) that nobody runs: who has no file to read its section from must know it all the same.
EXPORTED void restartable(void *rseq, uint64_t *slots) {
  __asm__ volatile(
      ".pushsection __rseq_cs, \"aw\"; .balign 32; 3: .long 0, 0; .quad 1f, 2f - 1f, 4f; .popsection\n"
      "5: lea 3b(%%rip), %%rax; mov %%rax, 8(%[rseq])\n"
      "1: mov 4(%[rseq]), %%eax\n"
      ".globl in_restartable_sequence; .type in_restartable_sequence, @function; in_restartable_sequence:\n"
      "   lea (%[slots], %%rax, 8), %%rcx; mov (%%rcx), %%rdx; inc %%rdx\n"
      "   mov %%rdx, (%%rcx)\n"
      "2: jmp 6f; .size in_restartable_sequence, . - in_restartable_sequence\n"
      ".byte 0x0f, 0xb9, 0x3d; .long 0x53053053\n"
      "4: jmp 5b\n"
      "6: movq $0, 8(%[rseq])\n"
      :
      : [rseq] "r"(rseq), [slots] "r"(slots)
      : "rax", "rcx", "rdx", "memory", "cc");
}
