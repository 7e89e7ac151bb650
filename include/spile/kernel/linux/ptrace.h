/* struct pt_regs as a kernel module sees it, not that of ptrace(2). */
#ifndef SPILE_KERNEL_PTRACE_H
#define SPILE_KERNEL_PTRACE_H
#pragma GCC system_header

#include <spile/kprobes.h>

#endif
