// Spends its life in a restartable sequence. Whoever interrupts it must make it abort: a sequence that survives an
// interruption with its descriptor forgotten is never aborted again, and the program says so.
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/rseq.h>
#include <unistd.h>

static volatile int forgotten;

/// Spins for `loops` in a sequence. 1: committed with the descriptor still set; 0: aborted; -1: the descriptor was
/// taken away while we were inside.
static int section(struct rseq* area, unsigned long loops) {
  int result = 1;
  uint64_t left = 0;
  __asm__ goto(
      ".pushsection __rseq_cs, \"aw\"\n"
      ".balign 32\n"
      "3: .long 0, 0\n"
      ".quad 1f, 2f - 1f, 4f\n"
      ".popsection\n"
      "lea 3b(%%rip), %%rax\n"
      "mov %%rax, 8(%0)\n"
      "1: dec %1\n"
      "jnz 1b\n"
      "2: jmp 5f\n"
      ".byte 0x0f, 0xb9, 0x3d\n"
      ".long 0x53053053\n"
      "4: jmp %l[aborted]\n"
      "5:\n"
      : : "r"(area), "r"(loops) : "rax", "memory", "cc" : aborted);
  left = *(volatile uint64_t*)((char*)area + 8);
  if (left == 0) result = -1;
  *(volatile uint64_t*)((char*)area + 8) = 0;
  return result;
aborted:
  return 0;
}

int main(void) {
  if (__rseq_size == 0) return 3;
  struct rseq* area = (struct rseq*)((char*)__builtin_thread_pointer() + __rseq_offset);
  fcntl(0, F_SETFL, O_NONBLOCK);
  puts("ready"), fflush(stdout);
  long aborts = 0;
  for (;;) {
    const int result = section(area, 200000);
    aborts += result == 0;
    forgotten += result < 0;
    char c;
    if (read(0, &c, 1) == 1) break;
  }
  if (forgotten) return printf("%d sequences forgotten, %ld aborted\n", forgotten, aborts), 1;
  puts("exit-success");
  return 0;
}
