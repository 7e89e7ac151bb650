// What every header of the library needs. C and C++.
#ifndef SPILE_DETAIL_BASE_H
#define SPILE_DETAIL_BASE_H

#include <stddef.h>
#include <stdint.h>

#if !defined(__x86_64__) || !defined(__linux__)
#error "the spile library works on Linux on x86-64 only"
#endif

#define SPILE_API __attribute__((visibility("default")))
/* Called through the table of addresses, without the jump through a stub. */
#define SPILE_NO_STUB __attribute__((noplt))

#define SPILE_VERSION_MAJOR 0
#define SPILE_VERSION_MINOR 1

#ifdef __cplusplus
extern "C" {
#endif

/// Why the last call of this thread failed: a sentence for people. "" before the first failure; valid until the next
/// call into the library by this thread.
SPILE_API const char* spile_error_text(void);

/// The section of handler lists. Not to be called by programs; the headers do.
///
/// spile_enter() begins a stretch in which nothing that is taken out is freed; spile_leave() ends it and takes what
/// spile_enter() gave. Two plain stores, no atomic operation, no wait. May be nested, and used in signal handlers.
SPILE_API SPILE_NO_STUB uint64_t* spile_enter(void);
SPILE_API SPILE_NO_STUB void spile_leave(uint64_t* entered);

#ifdef __cplusplus
}
#endif
#endif
