/* The kernel's names of integers, besides what the C library's file of this name has. */
#ifndef SPILE_KERNEL_TYPES_H
#define SPILE_KERNEL_TYPES_H
#pragma GCC system_header

#include_next <linux/types.h>
#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef signed char s8;
typedef short s16;
typedef int s32;
typedef long long s64;

#endif
