/* A "module" as kernel programmers write it, for functions of this program. It checks itself; the last line is exit-success. */
#define pr_fmt(format) "module: " format
#define TRACE_SYSTEM demo
#include <errno.h>
#include <spile/fprobe.h>
#include <spile/kprobes.h>
#include <spile/tracepoint.h>
#include <stdio.h>

enum { kBufferBytes = 64 };
static char symbol[kBufferBytes] = "work";
module_param_string(symbol, symbol, kBufferBytes, 0644);

__attribute__((noinline, noclone)) long work(long n) {
  volatile long v = n * 3;
  return v + 1;
}
__attribute__((noinline, noclone)) long other(long n) {
  volatile long v = n * 5;
  return v + 2;
}

static long before, behind, entries, returns, last;

static int __kprobes handler_pre(struct kprobe* p, struct pt_regs* regs) {
  if (before++ == 0)
    pr_info("<%s> p->addr = 0x%p, ip = %lx, flags = 0x%lx\n", p->symbol_name, p->addr, regs->ip, regs->flags);
  return 0;
}
static void __kprobes handler_post(struct kprobe* p, struct pt_regs* regs, unsigned long flags) {
  (void)p, (void)regs, (void)flags;
  behind++;
}
static struct kprobe kp = {.symbol_name = symbol, .pre_handler = handler_pre, .post_handler = handler_post};

struct my_data {
  long argument;
};
static int entry_handler(struct kretprobe_instance* ri, struct pt_regs* regs) {
  ((struct my_data*)ri->data)->argument = (long)regs_get_kernel_argument(regs, 0);
  entries++;
  return 0;
}
static int ret_handler(struct kretprobe_instance* ri, struct pt_regs* regs) {
  last = ((struct my_data*)ri->data)->argument * 1000 + (long)regs_return_value(regs);
  returns++;
  return 0;
}
static struct kretprobe my_kretprobe = {
    .handler = ret_handler, .entry_handler = entry_handler, .data_size = sizeof(struct my_data), .maxactive = 20};

static int init_error = 1;
static int __init probes_init(void) {
  init_error = register_kprobe(&kp);
  if (init_error < 0) {
    pr_err("register_kprobe failed, returned %d: %s\n", init_error, spile_error_text());
    return init_error;
  }
  pr_info("Planted kprobe at %p\n", kp.addr);
  return 0;
}
static void __exit probes_exit(void) {
  unregister_kprobe(&kp);
  pr_info("kprobe at %p unregistered\n", kp.addr);
}
module_init(probes_init) module_exit(probes_exit)
MODULE_LICENSE("GPL");

static long seen;
static int count_entry(struct fprobe* fp, unsigned long ip, unsigned long ret_ip, struct pt_regs* regs, void* data) {
  (void)fp, (void)regs, (void)data;
  if (seen++ == 0) pr_info("Enter <%pS> ip = 0x%px ret_ip %lx\n", (void*)ip, (void*)ip, ret_ip);
  return 0;
}

DECLARE_TRACE(request, TP_PROTO(int fd, const char* path), TP_ARGS(fd, path));
DECLARE_TRACE_CONDITION(large, TP_PROTO(unsigned long size), TP_ARGS(size), TP_CONDITION(size > 100));
DEFINE_TRACE(request);
DEFINE_TRACE(large);

static long requests, larges;
static void on_request(void* data, int fd, const char* path) { requests += data == &requests && path[0] == 'p' ? fd : 1000; }
static void on_large(void* data, unsigned long size) {
  (void)data;
  larges += (long)size;
}

static int failed;
#define CHECK(condition) \
  do { \
    if (!(condition)) failed = 1, printf("failed at line %d: %s (%s)\n", __LINE__, #condition, spile_error_text()); \
  } while (0)

static void tracepoints(void) {
  trace_request(1, "p");
  CHECK(requests == 0 && !trace_request_enabled());
  CHECK(register_trace_request(on_request, &requests) == 0);
  CHECK(register_trace_request(on_request, &requests) == -EEXIST);
  CHECK(register_trace_prio_large(on_large, NULL, 20) == 0);
  trace_request(7, "p");
  trace_large(50);
  trace_large(500);
  CHECK(requests == 7 && larges == 500);
  CHECK(unregister_trace_request(on_request, &requests) == 0);
  CHECK(unregister_trace_request(on_request, &requests) == -ENOENT);
  CHECK(unregister_trace_large(on_large, NULL) == 0);
  tracepoint_synchronize_unregister();
  trace_request(7, "p");
  CHECK(requests == 7);
}

int main(void) {
  CHECK(init_error == 0);
  CHECK(work(5) == 16 && before == 1 && behind == 1);

  my_kretprobe.kp.symbol_name = "other";
  CHECK(register_kretprobe(&my_kretprobe) == 0);
  CHECK(other(4) == 22 && entries == 1 && returns == 1 && last == 4022);
  unregister_kretprobe(&my_kretprobe);
  CHECK(other(4) == 22 && entries == 1);

  static struct fprobe fp = {.entry_handler = count_entry};
  const char* targets[] = {"work", "other"};
  CHECK(register_fprobe_syms(&fp, targets, ARRAY_SIZE(targets)) == 0);
  work(1), other(1);
  CHECK(seen == 2 && before == 2);
  disable_fprobe(&fp);
  work(1);
  CHECK(seen == 2 && before == 3);
  enable_fprobe(&fp);
  CHECK(unregister_fprobe(&fp) == 0);
  other(1);
  CHECK(seen == 2);
  tracepoints();
  if (!failed) printf("exit-success\n");
  return failed;
}
