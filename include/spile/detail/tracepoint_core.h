// A tracepoint as the library keeps it. C and C++; programs use tracepoint.hpp or tracepoint.h.
#ifndef SPILE_DETAIL_TRACEPOINT_CORE_H
#define SPILE_DETAIL_TRACEPOINT_CORE_H

#include <spile/detail/site.h>

#ifdef __cplusplus
extern "C" {
#endif

struct spile_field {
  const char* type;
  const char* name;
  uint32_t size_bytes;
  uint32_t is_signed;
};

struct spile_callback {
  void (*function)(void);  // 0: the end of the list
  void* data;
  int priority;
};

/// Zero but for the names; the rest is the library's.
struct spile_tracepoint {
  const char* group;
  const char* name;
  const struct spile_field* fields;
  size_t field_count;
  /// Ends with a callback without function; 0: none. Read between spile_enter() and spile_leave().
  const struct spile_callback* callbacks;
};

/// What registering without a priority means: the highest runs first, equals in the order that they came.
#define SPILE_DEFAULT_PRIORITY 10

/// Adds a callback. The first one throws the switches of the tracepoint.
///   0           it runs from now on
///   -EEXIST     the same function with the same data is there already
///   -EINVAL     no function
///   -ENOMEM
///   -EPERM      the kernel does not let the program change its own code
///   -EBUSY      somebody else has changed the code at a switch
SPILE_API int spile_tracepoint_attach(struct spile_tracepoint* tracepoint, void (*function)(void), void* data,
                                      int priority);

/// Takes a callback out and waits until nobody runs it any more. The last one throws the switches back.
///   0           gone, and not running
///   -ENOENT     no such callback
///   -EBUSY      called from inside a handler, which would wait for itself; nothing has changed
SPILE_API int spile_tracepoint_detach(struct spile_tracepoint* tracepoint, void (*function)(void), void* data);

/// Switches of all loaded modules with this name.
SPILE_API size_t spile_tracepoint_sites(const struct spile_tracepoint* tracepoint);

#ifdef __cplusplus
}
#endif
#endif
