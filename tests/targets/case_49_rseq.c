// Case 49: a restartable sequence with a symbol inside. A probe there would leave the sequence: the kernel would no longer
// restart it, and per-CPU data would be lost in silence. The probe must be refused; the program runs on.
#define _GNU_SOURCE
#include <sched.h>
#include <sys/rseq.h>

#include "target.h"

enum { kSlots = 1024 };
static uint64_t slots[kSlots] __attribute__((aligned(64)));

static struct rseq *area(void) { return (struct rseq *)((char *)__builtin_thread_pointer() + __rseq_offset); }

// slots[cpu]++ as a restartable sequence; probe_me is the address of an instruction in the middle of it.
__attribute__((noinline)) static void increment(void) {
  struct rseq *self = area();
  __asm__ volatile(
      ".pushsection __rseq_cs, \"aw\"; .balign 32; 3: .long 0, 0; .quad 1f, 2f - 1f, 4f; .popsection\n"
      "5: lea 3b(%%rip), %%rax; mov %%rax, 8(%[rseq])\n"
      "1: mov 4(%[rseq]), %%eax\n"
      ".globl probe_me; .type probe_me, @function; probe_me:\n"
      "   lea (%[slots], %%rax, 8), %%rcx; mov (%%rcx), %%rdx; inc %%rdx\n"
      "   mov %%rdx, (%%rcx)\n"
      "2: jmp 6f; .size probe_me, . - probe_me\n"
      ".byte 0x0f, 0xb9, 0x3d; .long 0x53053053\n"
      "4: jmp 5b\n"
      "6: movq $0, 8(%[rseq])\n"
      :
      : [rseq] "r"(self), [slots] "r"(slots)
      : "rax", "rcx", "rdx", "memory", "cc");
}

int main(int argc, char **argv) {
  target_begin(argc, argv, 200000, NULL);
  if (__rseq_size == 0) target_skip("libc registered no rseq area");
  target_ready();
  long done = 0;
  for (; target_more(done); done++) {
    target_count(1);
    increment();
  }
  uint64_t sum = 0;
  for (int i = 0; i < kSlots; i++) sum += slots[i];
  TARGET_CHECK(sum == (uint64_t)done);
  return target_end();
}
