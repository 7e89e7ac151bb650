/* As in a kernel module; see spile/module.h. */
#ifndef SPILE_KERNEL_KERNEL_H
#define SPILE_KERNEL_KERNEL_H
#pragma GCC system_header

#include_next <linux/kernel.h>
#include <errno.h>
#include <linux/types.h>
#include <spile/module.h>

#endif
