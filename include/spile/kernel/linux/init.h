/* As in a kernel module; see spile/module.h. */
#ifndef SPILE_KERNEL_INIT_H
#define SPILE_KERNEL_INIT_H
#pragma GCC system_header

#include <linux/module.h>

#endif
