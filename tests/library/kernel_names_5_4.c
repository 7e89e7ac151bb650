/* A module in the form of kernel 5.4: its kprobe has a fault handler. It checks itself; the last line is exit-success. */
#define _GNU_SOURCE
#include <linux/kernel.h>
#include <linux/module.h>
#include <linux/kprobes.h>
#include <signal.h>
#include <stdio.h>
#include <ucontext.h>

__attribute__((noinline, noclone)) long work(long n) {
  volatile long v = n * 3;
  return v + 1;
}

static int failed;
#define CHECK(condition) \
  do { \
    if (!(condition)) failed = 1, printf("failed at line %d: %s (%s)\n", __LINE__, #condition, spile_error_text()); \
  } while (0)

static int handler_pre(struct kprobe* p, struct pt_regs* regs) {
  pr_info("<%s> pre_handler: p->addr = 0x%p, ip = %lx, flags = 0x%lx\n", p->symbol_name, p->addr, regs->ip, regs->flags);
  return 0;
}
static void handler_post(struct kprobe* p, struct pt_regs* regs, unsigned long flags) {
  (void)flags;
  pr_info("<%s> post_handler: p->addr = 0x%p, flags = 0x%lx\n", p->symbol_name, p->addr, regs->flags);
}
static int handler_fault(struct kprobe* p, struct pt_regs* regs, int trapnr) {
  (void)regs;
  pr_info("fault_handler: p->addr = 0x%p, trap #%d\n", p->addr, trapnr);
  return 0;
}
static struct kprobe kp = {
    .symbol_name = "work", .pre_handler = handler_pre, .post_handler = handler_post, .fault_handler = handler_fault};

/* Reads at 0; who repairs it goes on at `resume`. */
static unsigned long resume;
static long runs, behind, faults, own_faults, trap, answer, repaired;
static void read_at_0(void) {
  long value = 5;
  __asm__ volatile("lea 1f(%%rip), %%rcx\n\tmov %%rcx, %1\n\txor %%ecx, %%ecx\n\tmov (%%rcx), %0\n1:"
                   : "+r"(value), "=m"(resume) : : "rcx", "memory");
  repaired += value == 5;
}
static int faulty_pre(struct kprobe* p, struct pt_regs* regs) {
  (void)p, (void)regs;
  runs++;
  read_at_0();
  return 0;
}
static void faulty_post(struct kprobe* p, struct pt_regs* regs, unsigned long flags) {
  (void)p, (void)regs, (void)flags;
  behind++;
  read_at_0();
}
static int repair(struct kprobe* p, struct pt_regs* regs, int trapnr) {
  (void)p;
  faults++;
  trap = trapnr;
  if (answer != 0) regs->ip = resume;
  return (int)answer;
}
static struct kprobe faulty = {
    .symbol_name = "work", .pre_handler = faulty_pre, .post_handler = faulty_post, .fault_handler = repair};

static void on_fault(int signal, siginfo_t* info, void* context) {
  (void)signal, (void)info;
  own_faults++;
  ((ucontext_t*)context)->uc_mcontext.gregs[REG_RIP] = (greg_t)resume;
}

int main(void) {
  struct sigaction action = {0};
  action.sa_sigaction = on_fault;
  action.sa_flags = SA_SIGINFO;
  sigaction(SIGSEGV, &action, NULL);

  CHECK(register_kprobe(&kp) == 0);
  CHECK(kp.addr == (void*)&work && (kp.flags & KPROBE_FLAG_OPTIMIZED));
  CHECK(register_kprobe(&kp) == -EINVAL);
  CHECK(work(5) == 16);
  CHECK(disable_kprobe(&kp) == 0 && work(5) == 16 && enable_kprobe(&kp) == 0);
  unregister_kprobe(&kp);

  struct kprobe* list[] = {&faulty};
  CHECK(register_kprobes(list, 1) == 0);
  answer = 1;
  CHECK(work(5) == 16);
  CHECK(runs == 1 && behind == 1 && faults == 2 && repaired == 2 && trap == 14 && own_faults == 0);
  answer = 0; /* the program's own handler repairs it */
  CHECK(work(5) == 16);
  CHECK(runs == 2 && behind == 2 && faults == 4 && repaired == 4 && own_faults == 2);
  read_at_0(); /* outside of handlers it is the program's */
  CHECK(faults == 4 && own_faults == 3);
  unregister_kprobes(list, 1);
  CHECK(work(5) == 16 && runs == 2);
  CHECK(faulty.nmissed == 0);
  if (!failed) printf("exit-success\n");
  return failed;
}
