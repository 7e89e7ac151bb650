/* Memory of the heap. Not in handlers of functions that malloc calls. */
#ifndef SPILE_KERNEL_SLAB_H
#define SPILE_KERNEL_SLAB_H
#pragma GCC system_header

#include <linux/types.h>
#include <stdlib.h>
#include <string.h>

typedef unsigned gfp_t;
#define GFP_KERNEL 0u
#define GFP_ATOMIC 0u

static inline void* kmalloc(size_t size, gfp_t flags) { return (void)flags, malloc(size); }
static inline void* kzalloc(size_t size, gfp_t flags) { return (void)flags, calloc(1, size); }
static inline void* kcalloc(size_t count, size_t size, gfp_t flags) { return (void)flags, calloc(count, size); }
static inline void* kmalloc_array(size_t count, size_t size, gfp_t flags) {
  size_t bytes;
  (void)flags;
  return __builtin_mul_overflow(count, size, &bytes) ? NULL : malloc(bytes);
}
static inline char* kstrdup(const char* text, gfp_t flags) {
  (void)flags;
  return text == NULL ? NULL : strdup(text);
}
static inline void kfree(const void* memory) { free((void*)memory); }

#endif
