/* See ktime.h. */
#ifndef SPILE_KERNEL_TIMEKEEPING_H
#define SPILE_KERNEL_TIMEKEEPING_H
#pragma GCC system_header

#include <linux/ktime.h>

#endif
