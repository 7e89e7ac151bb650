// What the benchmark traces: functions whose entry instruction is known, called in a loop that times itself.
//
// Reads commands from stdin, one a line: `run FUNCTION`, or `pace FUNCTION` for short chunks with pauses between them.
// Answers with one line: median and minimum ns a call over the
// chunks, and the number of calls. FUNCTION: hot (mov first), nop5 (a five-byte nop first), push (push first), int3 (its own trap first).
#define _GNU_SOURCE
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

// mov %rdi,%rax; imul; ret: a kernel uprobe on the first instruction is single-stepped.
__asm__(".text\n.p2align 5\n.globl hot\n.type hot,@function\nhot:\n mov %rdi,%rax\n imul %rsi,%rax\n lea 1(%rax,%rdx),%rax\n ret\n.size hot,.-hot\n");
// A nop of five bytes first: the cheapest place for a kernel uprobe (Linux 6.18).
__asm__(".text\n.p2align 5\n.globl nop5\n.type nop5,@function\nnop5:\n nopl 0(%rax,%rax)\n mov %rdi,%rax\n imul %rsi,%rax\n lea 1(%rax,%rdx),%rax\n ret\n.size nop5,.-nop5\n");
// push first: emulated by the kernel.
__asm__(".text\n.p2align 5\n.globl push\n.type push,@function\npush:\n push %rbx\n mov %rdi,%rbx\n mov %rbx,%rax\n imul %rsi,%rax\n lea 1(%rax,%rdx),%rax\n pop %rbx\n ret\n.size push,.-push\n");

// An int3 of the program itself, for comparison: its handler does nothing.
__asm__(".text\n.p2align 5\n.globl int3\n.type int3,@function\nint3:\n int3\n mov %rdi,%rax\n imul %rsi,%rax\n lea 1(%rax,%rdx),%rax\n ret\n.size int3,.-int3\n");

typedef long function(const char* text, long b, long c);
extern function hot, nop5, push, int3;

enum { kChunks = 51 };

static double now_ns(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec * 1e9 + (double)t.tv_nsec;
}

static int by_value(const void* a, const void* b) {
  double x = *(const double*)a, y = *(const double*)b;
  return (x > y) - (x < y);
}

static volatile long sink;
static long calls;

static double chunk(function* f, const char* text, long count) {
  double start = now_ns();
  long sum = 0;
  for (long i = 0; i < count; i++) sum += f(text, i & 1023, sum);
  sink = sum;
  calls += count;
  return (now_ns() - start) / (double)count;
}

static void run(function* f, int paced) {
  static const char text[] = "sixteen bytes...";
  double ns[kChunks];
  calls = 0;
  // A chunk lasts about 5 ms, whatever a call costs.
  double guess = chunk(f, text, 2000);
  long count = (long)(5e6 / (guess > 0.5 ? guess : 0.5));
  if (count < 20) count = 20;
  if (paced) count = 1000;
  for (int i = 0; i < kChunks; i++) {
    if (paced) usleep(20000);
    ns[i] = chunk(f, text, count);
  }
  qsort(ns, kChunks, sizeof ns[0], by_value);
  printf("%.3f %.3f %ld\n", ns[kChunks / 2], ns[0], calls);
  fflush(stdout);
}

static void on_trap(int number, siginfo_t* info, void* context) { (void)number, (void)info, (void)context; }
static const struct sigaction own_traps = {.sa_sigaction = on_trap, .sa_flags = SA_SIGINFO};

int main(void) {
  char line[64];
  printf("ready\n");
  fflush(stdout);
  while (fgets(line, sizeof line, stdin) != NULL) {
    int paced = strncmp(line, "pace ", 5) == 0;
    const char* name = line + (paced ? 5 : 4);
    if (strcmp(name, "hot\n") == 0) run(hot, paced);
    else if (strcmp(name, "nop5\n") == 0) run(nop5, paced);
    else if (strcmp(name, "push\n") == 0) run(push, paced);
    else if (strcmp(name, "int3\n") == 0) sigaction(SIGTRAP, &own_traps, NULL), run(int3, paced);
    else return 1;
  }
  return 0;
}
