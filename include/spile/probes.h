// Probes on functions and instructions of the program itself, as the kernel has them on its own. C and C++; kprobe.hpp
// has objects that undo themselves, kprobes.h and fprobe.h the kernel's names.
//
// What a handler may do, and what it costs, is in docs/library.md. In short: it runs on the thread that came by, in the
// middle of whatever that was doing; it must return (no exception, no longjmp), and what it calls is not probed
// meanwhile (that counts as missed).
//
// Every call answers 0 or a negative errno; spile_error_text() has the words.
#ifndef SPILE_PROBES_H
#define SPILE_PROBES_H

#include <spile/detail/base.h>

#ifdef __cplusplus
extern "C" {
#endif

/// The registers at the probe; what a handler changes, the program gets, but for cs, ss and sp.
/// `ip` is the probed address plus one in a pre handler, as behind a breakpoint; the return address in a return handler.
struct spile_regs {
  unsigned long r15, r14, r13, r12, bp, bx, r11, r10, r9, r8, ax, cx, dx, si, di, orig_ax, ip, cs, flags, sp, ss;
};

/// Argument `n` from 0 of the function that is entered, by the ABI for integers and pointers; six of them are in
/// registers, the others on the stack.
static inline unsigned long spile_argument(const struct spile_regs* regs, unsigned n) {
  switch (n) {
    case 0: return regs->di;
    case 1: return regs->si;
    case 2: return regs->dx;
    case 3: return regs->cx;
    case 4: return regs->r8;
    case 5: return regs->r9;
    default: return ((const unsigned long*)regs->sp)[n - 5];
  }
}
static inline unsigned long spile_return_value(const struct spile_regs* regs) { return regs->ax; }
/// In a pre handler at a function's entry that then returns 1: the caller gets `value`, the function does not run.
SPILE_API void spile_return_from_function(struct spile_regs* regs, unsigned long value);

/// How a probe may be made, and what its handlers leave alone.
enum {
  /// Where no jump fits, a breakpoint (int3) may be used. It needs a SIGTRAP handler, which is installed at the first of
  /// them, and it kills the program if a thread that has SIGTRAP blocked comes by (the C library itself blocks all
  /// signals in places), or if the program puts another handler there. Without this such a place is refused.
  SPILE_ALLOW_TRAP = 1,
  /// The handlers, with all they call, are built for general registers only (-mgeneral-regs-only): the vector registers
  /// need not be saved, which is most of the cost.
  SPILE_GENERAL_REGISTERS = 2,
};

/// Bits of `flags` that programs see, as in the kernel.
enum {
  SPILE_FLAG_GONE = 1,
  SPILE_FLAG_DISABLED = 2,   ///< may be given at registration
  SPILE_FLAG_OPTIMIZED = 4,  ///< a jump, no breakpoint
  SPILE_FLAG_FTRACE = 8,     ///< nops that the compiler left at the entry
  SPILE_FLAG_ON_FUNC_ENTRY = 16,
  /// Of an fprobe, taken and without effect: while a kprobe's handler runs, no other handler does.
  SPILE_FLAG_KPROBE_SHARED = 32,
};

/// ---- kprobe: before and behind one instruction ----
///
/// Zero it, set `symbol_name` ("f" or "libc.so.6:f", with `offset`) or `addr`, and handlers.
struct spile_kprobe {
  void* addr;  ///< set by registering: behind an endbr64
  const char* symbol_name;
  unsigned int offset;
  /// Not zero: the instruction is not run, and the program goes on at regs->ip; other handlers are not asked.
  int (*pre_handler)(struct spile_kprobe*, struct spile_regs*);
  /// Behind the instruction. Not where that is a branch, a call or a return: refused.
  void (*post_handler)(struct spile_kprobe*, struct spile_regs*, unsigned long flags);
  unsigned int flags;    ///< SPILE_FLAG_*
  unsigned int options;  ///< SPILE_ALLOW_TRAP, SPILE_GENERAL_REGISTERS
  unsigned long nmissed;  ///< hits inside a handler, which ran none
  void* data;             ///< the user's
  void* internal;         ///< the library's
};

/// Errors:
///   -EINVAL      neither or both of symbol_name and addr; registered already; not in code; what must not be probed: the
///                library itself, rseq sections, the return from signal handlers
///   -ENOENT      no such symbol
///   -EADDRNOTAVAIL  several functions have the name
///   -EILSEQ      no instruction begins there
///   -EOPNOTSUPP  no safe way to put a probe there (the words say why)
///   -EBUSY       a thread stays in the bytes to be changed; a debugger holds the process
///   -EPERM       the kernel does not let us change the program (seccomp, Yama, dumpable)
SPILE_API int spile_register_kprobe(struct spile_kprobe* p);
/// No handler runs any more when this is back. -EBUSY inside a handler, -EINVAL if not registered.
SPILE_API int spile_unregister_kprobe(struct spile_kprobe* p);
/// All or none.
SPILE_API int spile_register_kprobes(struct spile_kprobe** list, int count);
SPILE_API int spile_unregister_kprobes(struct spile_kprobe** list, int count);
SPILE_API int spile_disable_kprobe(struct spile_kprobe* p);
SPILE_API int spile_enable_kprobe(struct spile_kprobe* p);

/// ---- kretprobe: a function's entry and return ----
///
/// The returns themselves are probed: no return address is touched, so that exceptions, longjmp and backtraces work as
/// before. A call that ends otherwise has no return, and its instance is used again later.
struct spile_kretprobe;
struct spile_kretprobe_instance {
  struct spile_kretprobe* rp;
  void* ret_addr;
  void* data;  ///< data_size bytes, the same at entry and return of one call
};
struct spile_kretprobe {
  struct spile_kprobe kp;  ///< its symbol_name or addr, which must be a function's entry, and options
  int (*handler)(struct spile_kretprobe_instance*, struct spile_regs*);
  /// Not zero: `handler` is not wanted for this call.
  int (*entry_handler)(struct spile_kretprobe_instance*, struct spile_regs*);
  int maxactive;     ///< calls that may be under way at once; 0: max(10, 2 * processors)
  size_t data_size;  ///< at most 4096
  int nmissed;       ///< calls beyond maxactive, for which neither handler ran
  void* internal;
};
/// Errors: those of spile_register_kprobe; -E2BIG, data_size; -EINVAL, not a function's entry.
SPILE_API int spile_register_kretprobe(struct spile_kretprobe* rp);
SPILE_API int spile_unregister_kretprobe(struct spile_kretprobe* rp);

/// ---- fprobe: entries (and returns) of many functions ----
struct spile_fprobe {
  unsigned long nmissed;
  unsigned int flags;    ///< SPILE_FLAG_DISABLED: handlers are not called, the code stays patched
  unsigned int options;  ///< as of a kprobe
  size_t entry_data_size;  ///< at most 120; only with an exit handler
  /// Not zero: no exit handler for this call. `ret_ip` is where it will return to.
  int (*entry_handler)(struct spile_fprobe*, unsigned long entry_ip, unsigned long ret_ip, struct spile_regs*,
                       void* entry_data);
  void (*exit_handler)(struct spile_fprobe*, unsigned long entry_ip, unsigned long ret_ip, struct spile_regs*,
                       void* entry_data);
  void* data;      ///< the user's
  void* internal;  ///< the library's
  /// Functions of a filter that no probe can be put on safely: left out.
  size_t refused;
};
/// All functions of the program (or of "libc.so.6:glob*") whose names match `filter` and not `notfilter` (may be null).
/// -ENOENT: none does, or none of them can be probed.
SPILE_API int spile_register_fprobe(struct spile_fprobe* fp, const char* filter, const char* notfilter);
/// All or none.
SPILE_API int spile_register_fprobe_ips(struct spile_fprobe* fp, unsigned long* addresses, int count);
SPILE_API int spile_register_fprobe_syms(struct spile_fprobe* fp, const char** symbols, int count);
SPILE_API int spile_unregister_fprobe(struct spile_fprobe* fp);

/// What is registered, one line each as in the kernel's kprobes/list. Gives the bytes that the whole text takes without
/// the zero at its end; at most `size` bytes are written.
SPILE_API size_t spile_list_probes(char* to, size_t size);

#ifdef __cplusplus
}
#endif
#endif
