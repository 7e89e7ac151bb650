/* The kernel's names for probes on many functions. See kprobes.h.
 *
 * Handlers have the form of kernel 6.12:
 *
 *   int entry(struct fprobe*, unsigned long entry_ip, unsigned long ret_ip, struct pt_regs*, void* entry_data);
 *   void exit(struct fprobe*, unsigned long entry_ip, unsigned long ret_ip, struct pt_regs*, void* entry_data);
 *
 * With -DSPILE_KERNEL_VERSION=0x060100 that of 6.1: no ret_ip, and entry answers nothing.
 */
#ifndef SPILE_FPROBE_H
#define SPILE_FPROBE_H

#include <spile/kprobes.h>

#if SPILE_KERNEL_VERSION < 0x060400

#include <spile/detail/fprobe_6_1.h>

_Static_assert(offsetof(struct spile_fprobe_6_1, flags) == offsetof(struct spile_fprobe, flags) &&
                   offsetof(struct spile_fprobe_6_1, entry_data_size) == offsetof(struct spile_fprobe, entry_data_size),
               "the fields that both have are the same");

static inline struct spile_fprobe* spile_own_6_1_(struct spile_fprobe_6_1* fp) {
  if (fp == NULL) return NULL;
  fp->own.entry_handler = fp->entry_handler == NULL ? NULL : spile_fprobe_entry_6_1;
  fp->own.exit_handler = fp->exit_handler == NULL ? NULL : spile_fprobe_exit_6_1;
  return &fp->own;
}
static inline int register_fprobe(struct spile_fprobe_6_1* fp, const char* filter, const char* notfilter) {
  return spile_register_fprobe(spile_own_6_1_(fp), filter, notfilter);
}
static inline int register_fprobe_ips(struct spile_fprobe_6_1* fp, unsigned long* addresses, int count) {
  return spile_register_fprobe_ips(spile_own_6_1_(fp), addresses, count);
}
static inline int register_fprobe_syms(struct spile_fprobe_6_1* fp, const char** symbols, int count) {
  return spile_register_fprobe_syms(spile_own_6_1_(fp), symbols, count);
}
static inline int unregister_fprobe(struct spile_fprobe_6_1* fp) {
  return spile_unregister_fprobe(fp == NULL ? NULL : &fp->own);
}
#define fprobe spile_fprobe_6_1

#else

#define fprobe spile_fprobe
#define register_fprobe spile_register_fprobe
#define register_fprobe_ips spile_register_fprobe_ips
#define register_fprobe_syms spile_register_fprobe_syms
#define unregister_fprobe spile_unregister_fprobe

#endif

#define FPROBE_FL_DISABLED SPILE_FLAG_DISABLED

static inline void disable_fprobe(struct fprobe* fp) { __atomic_or_fetch(&fp->flags, FPROBE_FL_DISABLED, __ATOMIC_RELAXED); }
static inline void enable_fprobe(struct fprobe* fp) { __atomic_and_fetch(&fp->flags, ~(unsigned)FPROBE_FL_DISABLED, __ATOMIC_RELAXED); }
static inline int fprobe_disabled(struct fprobe* fp) { return (fp->flags & FPROBE_FL_DISABLED) != 0; }

#endif
