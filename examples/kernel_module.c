/* The source of a kernel module, for a function of a program: as in the kernel, init plants a kprobe and exit takes it out.
 *
 *   SPILE_PARAM_symbol=encode ./kernel_module
 */
#define pr_fmt(fmt) "module: " fmt
#include <linux/kernel.h>
#include <linux/kprobes.h>
#include <linux/module.h>
#include <stdio.h>

static char symbol[KSYM_NAME_LEN] = "encode";
module_param_string(symbol, symbol, KSYM_NAME_LEN, 0644);
static int limit = 2;
module_param(limit, int, 0644);

static struct kprobe kp = {.symbol_name = symbol};
static int calls;

static int handler_pre(struct kprobe* p, struct pt_regs* regs) {
  if (++calls <= limit) pr_info("<%s> pre_handler: %ld\n", p->symbol_name, (long)regs_get_kernel_argument(regs, 0));
  return 0;
}

static int __init probe_init(void) {
  int ret;
  kp.pre_handler = handler_pre;
  ret = register_kprobe(&kp);
  if (ret < 0) {
    pr_err("register_kprobe failed, returned %d: %s\n", ret, spile_error_text());
    return ret;
  }
  pr_info("Planted kprobe at %pS\n", (void*)kp.addr);
  return 0;
}

static void __exit probe_exit(void) {
  unregister_kprobe(&kp);
  pr_info("%d calls\n", calls);
}

module_init(probe_init)
module_exit(probe_exit)
MODULE_LICENSE("GPL");

__attribute__((noinline, noclone)) long encode(long n) {
  volatile long v = n * 31;
  return v ^ 5;
}
__attribute__((noinline, noclone)) long decode(long n) {
  volatile long v = n ^ 5;
  return v / 31;
}

int main(void) {
  long good = 0;
  for (long i = 1; i <= 3; ++i) good += decode(encode(i)) == i;
  printf("%ld of 3\n", good);
  return good == 3 ? 0 : 1;
}
