/* As in a kernel module; see spile/module.h. */
#ifndef SPILE_KERNEL_KALLSYMS_H
#define SPILE_KERNEL_KALLSYMS_H
#pragma GCC system_header

#include <linux/module.h>

#endif
