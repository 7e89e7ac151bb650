/* The kernel's names for probes on many functions (6.12's struct fprobe). See kprobes.h. */
#ifndef SPILE_FPROBE_H
#define SPILE_FPROBE_H

#include <spile/kprobes.h>

#define fprobe spile_fprobe
#define FPROBE_FL_DISABLED SPILE_FLAG_DISABLED
#define FPROBE_FL_KPROBE_SHARED SPILE_FLAG_KPROBE_SHARED

#define register_fprobe spile_register_fprobe
#define register_fprobe_ips spile_register_fprobe_ips
#define register_fprobe_syms spile_register_fprobe_syms
#define unregister_fprobe spile_unregister_fprobe

static inline void disable_fprobe(struct fprobe* fp) { __atomic_or_fetch(&fp->flags, FPROBE_FL_DISABLED, __ATOMIC_RELAXED); }
static inline void enable_fprobe(struct fprobe* fp) { __atomic_and_fetch(&fp->flags, ~(unsigned)FPROBE_FL_DISABLED, __ATOMIC_RELAXED); }
static inline int fprobe_disabled(struct fprobe* fp) { return (fp->flags & FPROBE_FL_DISABLED) != 0; }

#endif
