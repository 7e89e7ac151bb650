// Signal handlers that interrupt a known instruction, `spot`. Usage: frames MODE; says "ready", ends after a byte on
// stdin with "exit-success".
//   nest    a handler on the normal stack is interrupted by one on the alternate stack: spot is two frames away
//   beside  a coroutine at the bottom of 64 MiB, whose handler has returned on an alternate stack further up
//   other   the same, while the handler has not returned
#define _GNU_SOURCE
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

static const char* mode;
static volatile int over;

/// kill(pid, signal), so that the saved rip is the address behind the system call.
__attribute__((noinline)) static void interrupted(int pid, int signal) {
  long result;
  __asm__ volatile("syscall\n.globl spot\nspot:\n" : "=a"(result) : "a"(SYS_kill), "D"(pid), "S"(signal) : "rcx", "r11", "memory");
}

static void wait_byte(void) {
  char c;
  printf("ready\n");
  fflush(stdout);
  while (read(0, &c, 1) != 1) {}
  over = 1;
}
static void inner(int signal) { (void)signal, wait_byte(); }
static void outer(int signal) { (void)signal, raise(SIGUSR2); }
static void quick(int signal) { (void)signal; }

static void use_alternate_stack(void* at) {
  stack_t stack = {.ss_sp = at, .ss_size = 64 << 10};
  if (sigaltstack(&stack, NULL) != 0) perror("sigaltstack"), exit(1);
}
static void on_signal(int signal, void (*handler)(int), int flags) {
  struct sigaction action = {.sa_handler = handler, .sa_flags = flags};
  sigaction(signal, &action, NULL);
}
static void* map(size_t size) {
  void* at = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (at == MAP_FAILED) perror("mmap"), exit(1);
  return at;
}

static void coroutine(void) {
  on_signal(SIGUSR1, !strcmp(mode, "other") ? inner : quick, SA_ONSTACK);
  interrupted(getpid(), SIGUSR1);
  if (!over) wait_byte();
}

int main(int argc, char** argv) {
  static ucontext_t back, there;
  mode = argc > 1 ? argv[1] : "";
  if (!strcmp(mode, "nest")) {
    use_alternate_stack(map(64 << 10));
    on_signal(SIGUSR1, outer, 0);
    on_signal(SIGUSR2, inner, SA_ONSTACK);
    interrupted(getpid(), SIGUSR1);
  } else {
    char* memory = map(64 << 20);
    use_alternate_stack(memory + (512 << 10));
    getcontext(&there);
    there.uc_stack.ss_sp = memory;
    there.uc_stack.ss_size = 256 << 10;
    there.uc_link = &back;
    makecontext(&there, coroutine, 0);
    swapcontext(&back, &there);
  }
  if (over) printf("exit-success\n");
  return !over;
}
