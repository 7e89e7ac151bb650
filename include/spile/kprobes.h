/* The kernel's names for probes on the program itself: what a kernel module writes, in C, for a program's own functions.
 *
 *   static struct kprobe kp = { .symbol_name = "f", .pre_handler = handler };
 *   ret = register_kprobe(&kp);
 *
 * The rules are those of probes.h. A module's own includes (<linux/kprobes.h>, <linux/ktime.h>, `current`) are found with
 * -I of spile/kernel. With -DSPILE_KERNEL_VERSION=0x050400 there is a fault_handler, which the kernel dropped in 5.14.
 * Do not include <asm/ptrace.h> together with this.
 */
#ifndef SPILE_KPROBES_H
#define SPILE_KPROBES_H

#include <spile/module.h>
#include <spile/probes.h>

#if SPILE_KERNEL_VERSION < 0x050e00
#include <spile/detail/kprobe_5_4.h>
#define kprobe spile_kprobe_5_4
#define register_kprobe spile_register_kprobe_5_4
static inline int spile_unregister_5_4_(struct kprobe* p) { return spile_unregister_kprobe(p == NULL ? NULL : &p->own); }
static inline int enable_kprobe(struct kprobe* p) { return spile_enable_kprobe(p == NULL ? NULL : &p->own); }
static inline int disable_kprobe(struct kprobe* p) { return spile_disable_kprobe(p == NULL ? NULL : &p->own); }
static inline void unregister_kprobe(struct kprobe* p) { (void)spile_unregister_5_4_(p); }
static inline void unregister_kprobes(struct kprobe** list, int count) {
  for (int i = 0; i < count; ++i) (void)spile_unregister_5_4_(list[i]);
}
static inline int register_kprobes(struct kprobe** list, int count) {
  for (int i = 0; i < count; ++i) {
    const int error = spile_register_kprobe_5_4(list[i]);
    if (error == 0) continue;
    unregister_kprobes(list, i);
    return error;
  }
  return count <= 0 ? -22 /* EINVAL */ : 0;
}
#else
#define kprobe spile_kprobe
#define register_kprobe spile_register_kprobe
#define register_kprobes spile_register_kprobes
#define enable_kprobe spile_enable_kprobe
#define disable_kprobe spile_disable_kprobe
static inline void unregister_kprobe(struct kprobe* p) { (void)spile_unregister_kprobe(p); }
static inline void unregister_kprobes(struct kprobe** list, int count) { (void)spile_unregister_kprobes(list, count); }
#endif
#define kretprobe spile_kretprobe
#define kretprobe_instance spile_kretprobe_instance
#define pt_regs spile_regs

typedef unsigned char kprobe_opcode_t;
typedef int (*kprobe_pre_handler_t)(struct kprobe*, struct pt_regs*);
typedef void (*kprobe_post_handler_t)(struct kprobe*, struct pt_regs*, unsigned long flags);
typedef int (*kprobe_fault_handler_t)(struct kprobe*, struct pt_regs*, int trapnr);
typedef int (*kretprobe_handler_t)(struct kretprobe_instance*, struct pt_regs*);

#define KPROBE_FLAG_GONE SPILE_FLAG_GONE
#define KPROBE_FLAG_DISABLED SPILE_FLAG_DISABLED
#define KPROBE_FLAG_OPTIMIZED SPILE_FLAG_OPTIMIZED
#define KPROBE_FLAG_FTRACE SPILE_FLAG_FTRACE
#define KPROBE_FLAG_ON_FUNC_ENTRY SPILE_FLAG_ON_FUNC_ENTRY

#define register_kretprobe spile_register_kretprobe

static inline void unregister_kretprobe(struct kretprobe* rp) { (void)spile_unregister_kretprobe(rp); }

static inline unsigned long regs_return_value(struct pt_regs* regs) { return regs->ax; }
static inline void regs_set_return_value(struct pt_regs* regs, unsigned long value) { regs->ax = value; }
static inline unsigned long instruction_pointer(struct pt_regs* regs) { return regs->ip; }
static inline void instruction_pointer_set(struct pt_regs* regs, unsigned long ip) { regs->ip = ip; }
static inline unsigned long kernel_stack_pointer(struct pt_regs* regs) { return regs->sp; }
static inline unsigned long regs_get_kernel_argument(struct pt_regs* regs, unsigned n) { return spile_argument(regs, n); }
static inline void override_function_with_return(struct pt_regs* regs) { spile_return_from_function(regs, regs->ax); }
static inline unsigned long regs_get_kernel_stack_nth(struct pt_regs* regs, unsigned n) {
  return ((const unsigned long*)regs->sp)[n];
}
static inline unsigned long user_stack_pointer(struct pt_regs* regs) { return regs->sp; }
static inline int user_mode(struct pt_regs* regs) { return (regs->cs & 3) == 3; }
static inline unsigned long get_kretprobe_retaddr(struct kretprobe_instance* ri) { return (unsigned long)ri->ret_addr; }
static inline struct kretprobe* get_kretprobe(struct kretprobe_instance* ri) { return ri->rp; }

#endif
