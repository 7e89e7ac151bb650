/* As in a kernel module; see spile/module.h. */
#ifndef SPILE_KERNEL_STRING_H
#define SPILE_KERNEL_STRING_H
#pragma GCC system_header

#include <string.h>

#endif
