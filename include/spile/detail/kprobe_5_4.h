// The kprobe of kernels before 5.14, which has a fault handler. C and C++; programs use kprobes.h.
#ifndef SPILE_DETAIL_KPROBE_5_4_H
#define SPILE_DETAIL_KPROBE_5_4_H

#include <spile/probes.h>

#ifdef __cplusplus
extern "C" {
#endif

/// It begins as spile_kprobe does, which is what the library registers.
struct spile_kprobe_5_4 {
  __extension__ union {
    struct spile_kprobe own;
    __extension__ struct {
      void* addr;
      const char* symbol_name;
      unsigned int offset;
      int (*own_pre_handler)(struct spile_kprobe*, struct spile_regs*);
      void (*own_post_handler)(struct spile_kprobe*, struct spile_regs*, unsigned long);
      unsigned int flags;
      unsigned int options;
      unsigned long nmissed;
    };
  };
  int (*pre_handler)(struct spile_kprobe_5_4*, struct spile_regs*);
  void (*post_handler)(struct spile_kprobe_5_4*, struct spile_regs*, unsigned long flags);
  /// The pre or post handler has run into an exception (`trapnr`: 14 page fault, 13 general protection, 6 invalid opcode,
  /// 0 division), at regs->ip. Not zero: handled, it goes on at regs->ip, which may be changed. Zero: what the program does
  /// for the signal. Runs in a signal handler.
  int (*fault_handler)(struct spile_kprobe_5_4*, struct spile_regs*, int trapnr);
};

/// Errors: those of spile_register_kprobe. With a fault handler, handlers for SIGSEGV, SIGBUS, SIGFPE and SIGILL are put
/// before those of the program, and stay.
SPILE_API int spile_register_kprobe_5_4(struct spile_kprobe_5_4* p);

#ifdef __cplusplus
}
#endif
#endif
