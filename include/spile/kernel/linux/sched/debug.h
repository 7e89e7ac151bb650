/* See spile/module.h: dump_stack. */
#ifndef SPILE_KERNEL_SCHED_DEBUG_H
#define SPILE_KERNEL_SCHED_DEBUG_H
#pragma GCC system_header

#include <linux/module.h>
#include <linux/sched.h>

#endif
