// The fprobe of kernel 6.1, whose handlers have another form. C and C++; programs use fprobe.h.
#ifndef SPILE_DETAIL_FPROBE_6_1_H
#define SPILE_DETAIL_FPROBE_6_1_H

#include <spile/probes.h>

#ifdef __cplusplus
extern "C" {
#endif

/// It begins as spile_fprobe does, which is what the library registers.
struct spile_fprobe_6_1 {
  __extension__ union {
    struct spile_fprobe own;
    __extension__ struct {
      unsigned long nmissed;
      unsigned int flags;
      unsigned int options;
      size_t entry_data_size;
    };
  };
  int nr_maxactive;  ///< no bound here
  void (*entry_handler)(struct spile_fprobe_6_1*, unsigned long entry_ip, struct spile_regs*, void* entry_data);
  void (*exit_handler)(struct spile_fprobe_6_1*, unsigned long entry_ip, struct spile_regs*, void* entry_data);
};

/// What the library calls, and what calls those.
SPILE_API int spile_fprobe_entry_6_1(struct spile_fprobe* own, unsigned long entry_ip, unsigned long ret_ip,
                                     struct spile_regs* regs, void* entry_data);
SPILE_API void spile_fprobe_exit_6_1(struct spile_fprobe* own, unsigned long entry_ip, unsigned long ret_ip,
                                     struct spile_regs* regs, void* entry_data);

#ifdef __cplusplus
}
#endif
#endif
