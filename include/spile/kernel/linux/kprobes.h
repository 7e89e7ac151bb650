/* As in a kernel module; see spile/kprobes.h. */
#ifndef SPILE_KERNEL_KPROBES_H
#define SPILE_KERNEL_KPROBES_H
#pragma GCC system_header

#include <linux/module.h>
#include <linux/ptrace.h>
#include <spile/kprobes.h>

#endif
