/* As in a kernel module; see spile/tracepoint.h. TRACE_SYSTEM is defined before. */
#ifndef SPILE_KERNEL_TRACEPOINT_H
#define SPILE_KERNEL_TRACEPOINT_H
#pragma GCC system_header

#include <linux/module.h>
#include <spile/tracepoint.h>

#endif
