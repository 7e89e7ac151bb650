/* As in a kernel module; see spile/module.h. */
#ifndef SPILE_KERNEL_MODULE_H
#define SPILE_KERNEL_MODULE_H
#pragma GCC system_header

#include <linux/kernel.h>

#define KSYM_NAME_LEN 512
#define EXPORT_SYMBOL(name)
#define EXPORT_SYMBOL_GPL(name)

#endif
