/* What a kernel module has around its code, for a program: an init that runs before main, an exit behind it, parameters,
 * messages, stack traces. The kernel's own file names (<linux/module.h>, ...) are in spile/kernel, for -I. */
#ifndef SPILE_MODULE_H
#define SPILE_MODULE_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <spile/detail/base.h>

/* The kernel whose form handlers have, where they differ between releases (fprobe.h). */
#ifndef SPILE_KERNEL_VERSION
#define SPILE_KERNEL_VERSION 0x060c00 /* 6.12 */
#endif

#ifdef __cplusplus
extern "C" {
#endif

/// Writes a line to stderr, with the kernel's %pS and %pB (symbol+offset/size), %ps (symbol), %px and %p (address).
/// Symbols are the dynamic ones: link with -rdynamic. Returns the number of characters.
SPILE_API int spile_printk(const char* format, ...);

/// Return addresses of the calling thread, the innermost first, without the first `skip`. In a handler they go on in the
/// probed function, at the probed instruction: `skip` leaves out the handler's own only, the library's are not among them.
/// It reads unwind tables (.eh_frame), no frame pointers. Returns how many there are, at most `size`.
SPILE_API unsigned spile_stack_trace(unsigned long* to, unsigned size, unsigned skip);

/// The value of the environment's SPILE_PARAM_name into `to`, which keeps what it has where there is none or where that
/// is no value of the type (told on stderr).
enum spile_parameter_type {
  SPILE_PARAMETER_bool,  /* y, n, 1, 0, on, off */
  SPILE_PARAMETER_byte,
  SPILE_PARAMETER_short,
  SPILE_PARAMETER_ushort,
  SPILE_PARAMETER_int,
  SPILE_PARAMETER_uint,
  SPILE_PARAMETER_long,
  SPILE_PARAMETER_ulong,
  SPILE_PARAMETER_charp,
  SPILE_PARAMETER_string, /* char[size] */
  SPILE_PARAMETER__Bool = SPILE_PARAMETER_bool,
};
SPILE_API void spile_module_parameter(const char* name, enum spile_parameter_type type, void* to, size_t size);

#ifdef __cplusplus
}
#endif

#ifndef pr_fmt
#define pr_fmt(format) format
#endif
/* The empty string at the end is an argument too many, which nobody looks at: so that there always is one. */
#define SPILE_PRINTK_(format, ...) spile_printk(pr_fmt(format), __VA_ARGS__)
#define pr_emerg(...) SPILE_PRINTK_(__VA_ARGS__, "")
#define pr_alert(...) SPILE_PRINTK_(__VA_ARGS__, "")
#define pr_crit(...) SPILE_PRINTK_(__VA_ARGS__, "")
#define pr_err(...) SPILE_PRINTK_(__VA_ARGS__, "")
#define pr_warn(...) SPILE_PRINTK_(__VA_ARGS__, "")
#define pr_notice(...) SPILE_PRINTK_(__VA_ARGS__, "")
#define pr_info(...) SPILE_PRINTK_(__VA_ARGS__, "")
#define pr_debug(...) ((void)0)
#define printk(...) spile_printk(__VA_ARGS__)
#define trace_printk(...) spile_printk(__VA_ARGS__)
#define KERN_EMERG ""
#define KERN_ALERT ""
#define KERN_CRIT ""
#define KERN_ERR ""
#define KERN_WARNING ""
#define KERN_NOTICE ""
#define KERN_INFO ""
#define KERN_DEBUG ""
#define KERN_CONT ""

#define __init
#define __exit
#define __kprobes
#define NOKPROBE_SYMBOL(function)
#define MODULE_LICENSE(text)
#define MODULE_AUTHOR(text)
#define MODULE_DESCRIPTION(text)
#define MODULE_VERSION(text)
#define MODULE_PARM_DESC(name, text)
#define THIS_MODULE NULL
#ifndef ARRAY_SIZE
#define ARRAY_SIZE(array) (sizeof(array) / sizeof((array)[0]))
#endif

/* As for a module, exit runs only where init has not failed. */
__attribute__((unused)) static int spile_module_error_;
#define module_init(function) \
  __attribute__((constructor)) static void spile_module_init_(void) { spile_module_error_ = function(); }
#define module_exit(function)                                       \
  __attribute__((destructor)) static void spile_module_exit_(void) { \
    if (spile_module_error_ == 0) function();                        \
  }

/* From the environment, SPILE_PARAM_name, before init. */
#define SPILE_PARAMETER_BY_(name, type, to, size) \
  __attribute__((constructor(200))) static void spile_param_##name(void) { spile_module_parameter(#name, type, to, size); }
#define module_param(name, type, permissions) SPILE_PARAMETER_BY_(name, SPILE_PARAMETER_##type, &(name), sizeof(name))
#define module_param_named(name, variable, type, permissions) \
  SPILE_PARAMETER_BY_(name, SPILE_PARAMETER_##type, &(variable), sizeof(variable))
#define module_param_string(name, string, length, permissions) \
  SPILE_PARAMETER_BY_(name, SPILE_PARAMETER_string, string, length)

/* `skip` counts from the caller, as in the kernel. */
__attribute__((noinline, unused)) static unsigned stack_trace_save(unsigned long* store, unsigned size, unsigned skip) {
  return spile_stack_trace(store, size, skip + 1);
}
__attribute__((unused)) static void stack_trace_print(const unsigned long* entries, unsigned count, int spaces) {
  for (unsigned i = 0; i < count; ++i) spile_printk("%*s%pS\n", 1 + spaces, "", (void*)entries[i]);
}
__attribute__((noinline, unused)) static void dump_stack(void) {
  unsigned long entries[64];
  const unsigned count = spile_stack_trace(entries, ARRAY_SIZE(entries), 1);
  spile_printk("Call Trace:\n");
  stack_trace_print(entries, count, 0);
}

#endif
