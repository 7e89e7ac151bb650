/* What a kernel module has around its code, for a program: an init that runs before main, an exit behind it, messages. */
#ifndef SPILE_MODULE_H
#define SPILE_MODULE_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <spile/detail/base.h>

#ifdef __cplusplus
extern "C" {
#endif

/// Writes a line to stderr, with the kernel's %pS and %ps (symbol+offset/size, of the dynamic symbols: link with
/// -rdynamic), %px and %p (address). Returns the number of characters.
SPILE_API int spile_printk(const char* format, ...);

#ifdef __cplusplus
}
#endif

#ifndef pr_fmt
#define pr_fmt(format) format
#endif
#define pr_info(...) SPILE_PRINTK_(__VA_ARGS__, "")
#define pr_err(...) SPILE_PRINTK_(__VA_ARGS__, "")
#define pr_warn(...) SPILE_PRINTK_(__VA_ARGS__, "")
#define pr_debug(...) ((void)0)
#define printk(...) spile_printk(__VA_ARGS__)
/* The empty string at the end is an argument too many, which nobody looks at: so that there always is one. */
#define SPILE_PRINTK_(format, ...) spile_printk(pr_fmt(format), __VA_ARGS__)
#define KERN_INFO ""
#define KERN_ERR ""

#define __init
#define __exit
#define __kprobes
#define NOKPROBE_SYMBOL(function)
#define MODULE_LICENSE(text)
#define MODULE_AUTHOR(text)
#define MODULE_DESCRIPTION(text)
#ifndef ARRAY_SIZE
#define ARRAY_SIZE(array) (sizeof(array) / sizeof((array)[0]))
#endif

#define module_init(function) \
  __attribute__((constructor)) static void spile_module_init_(void) { (void)function(); }
#define module_exit(function) \
  __attribute__((destructor)) static void spile_module_exit_(void) { function(); }
/* From the environment: SPILE_PARAM_name. */
#define module_param_string(name, string, length, permissions)                  \
  __attribute__((constructor(200))) static void spile_param_##name(void) {      \
    const char* value = getenv("SPILE_PARAM_" #name);                           \
    if (value != NULL) (void)snprintf(string, length, "%s", value);             \
  }

#endif
