/* As in a kernel module; see spile/fprobe.h. */
#ifndef SPILE_KERNEL_FPROBE_H
#define SPILE_KERNEL_FPROBE_H
#pragma GCC system_header

#include <linux/kprobes.h>
#include <spile/fprobe.h>

#endif
