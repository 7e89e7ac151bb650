/* Tracepoints in C with the kernel's names.
 *
 *   #define TRACE_SYSTEM server                                          the group; before this header
 *   #include <spile/tracepoint.h>
 *   DECLARE_TRACE(request, TP_PROTO(int fd, const char* path), TP_ARGS(fd, path));      in a header
 *   DEFINE_TRACE(request);                                                               in one source file
 *
 *   trace_request(fd, path);
 *   register_trace_request(probe, data);             void probe(void* data, int fd, const char* path)
 *
 * One nop while nobody looks, and a USDT probe `usdt:./app:server:request`. At most 8 arguments: integers and pointers.
 */
#ifndef SPILE_TRACEPOINT_H
#define SPILE_TRACEPOINT_H

#include <spile/detail/tracepoint_core.h>

#ifdef __cplusplus
#error "C++ has tracepoint.hpp"
#endif

#ifndef TRACE_SYSTEM
#define TRACE_SYSTEM program
#endif

#define TP_PROTO(...) __VA_ARGS__
#define TP_ARGS(...) __VA_ARGS__
#define TP_CONDITION(...) __VA_ARGS__

#define SPILE_C_SIZE_(value)                                                                                        \
  _Generic((value), signed char: -1, short: -2, int: -4, long: -8, long long: -8, char: -1, default: (int)sizeof(value))
#define SPILE_C_OP_(n, value) SPILE_OPERAND_(n, value, SPILE_C_SIZE_(value))
#define SPILE_C_OPS_1_(a) SPILE_C_OP_(0, a)
#define SPILE_C_OPS_2_(a, b) SPILE_C_OPS_1_(a), SPILE_C_OP_(1, b)
#define SPILE_C_OPS_3_(a, b, c) SPILE_C_OPS_2_(a, b), SPILE_C_OP_(2, c)
#define SPILE_C_OPS_4_(a, b, c, d) SPILE_C_OPS_3_(a, b, c), SPILE_C_OP_(3, d)
#define SPILE_C_OPS_5_(a, b, c, d, e) SPILE_C_OPS_4_(a, b, c, d), SPILE_C_OP_(4, e)
#define SPILE_C_OPS_6_(a, b, c, d, e, f) SPILE_C_OPS_5_(a, b, c, d, e), SPILE_C_OP_(5, f)
#define SPILE_C_OPS_7_(a, b, c, d, e, f, g) SPILE_C_OPS_6_(a, b, c, d, e, f), SPILE_C_OP_(6, g)
#define SPILE_C_OPS_8_(a, b, c, d, e, f, g, h) SPILE_C_OPS_7_(a, b, c, d, e, f, g), SPILE_C_OP_(7, h)
#define SPILE_C_COUNT_(...) SPILE_C_COUNT2_(__VA_ARGS__, 8, 7, 6, 5, 4, 3, 2, 1, 0)
#define SPILE_C_COUNT2_(a, b, c, d, e, f, g, h, n, ...) n
#define SPILE_C_CAT_(a, b) SPILE_C_CAT2_(a, b)
#define SPILE_C_CAT2_(a, b) a##b

#define SPILE_C_PROBE_(group, name, n, ...) SPILE_C_PROBE2_(group, name, n, __VA_ARGS__)
#define SPILE_C_PROBE2_(group, name, n, ...)                                      \
  __asm__ volatile(SPILE_PROBE_ASM_(group, name, SPILE_TEXT_##n##_)               \
                   : : SPILE_C_OPS_##n##_(__VA_ARGS__) : "memory")
#define SPILE_C_SWITCH_(group, name) SPILE_C_SWITCH2_(group, name)
#define SPILE_C_SWITCH2_(group, name) __asm__ goto(SPILE_SWITCH_ASM_(group, name) : : : : spile_on)
#define SPILE_C_TEXT_(x) SPILE_C_TEXT2_(x)
#define SPILE_C_TEXT2_(x) #x

#define DECLARE_TRACE_CONDITION(name, proto, args, condition)                                                     \
  SPILE_NOTE_OF_(SPILE_STRING_(TRACE_SYSTEM), #name, SPILE_STRING_(proto))                                        \
  extern struct spile_tracepoint spile_tracepoint_##name;                                                         \
  __attribute__((noinline, cold, unused)) static void spile_run_##name(proto) {                                   \
    uint64_t* entered = spile_enter();                                                                            \
    const struct spile_callback* c = __atomic_load_n(&spile_tracepoint_##name.callbacks, __ATOMIC_ACQUIRE);       \
    for (; c != NULL && c->function != NULL; ++c) ((void (*)(void*, proto))c->function)(c->data, args);           \
    spile_leave(entered);                                                                                         \
  }                                                                                                               \
  __attribute__((always_inline, unused)) static inline void trace_##name(proto) {                                 \
    if (!(condition)) return;                                                                                     \
    SPILE_C_PROBE_(TRACE_SYSTEM, name, SPILE_C_COUNT_(args), args);                                               \
    SPILE_C_SWITCH_(TRACE_SYSTEM, name);                                                                          \
    return;                                                                                                       \
  spile_on:                                                                                                       \
    spile_run_##name(args);                                                                                       \
  }                                                                                                               \
  __attribute__((unused)) static inline int register_trace_prio_##name(void (*probe)(void*, proto), void* data,   \
                                                                       int priority) {                            \
    return spile_tracepoint_attach(&spile_tracepoint_##name, (void (*)(void))probe, data, priority);              \
  }                                                                                                               \
  __attribute__((unused)) static inline int register_trace_##name(void (*probe)(void*, proto), void* data) {      \
    return register_trace_prio_##name(probe, data, SPILE_DEFAULT_PRIORITY);                                       \
  }                                                                                                               \
  __attribute__((unused)) static inline int unregister_trace_##name(void (*probe)(void*, proto), void* data) {    \
    return spile_tracepoint_detach(&spile_tracepoint_##name, (void (*)(void))probe, data);                        \
  }                                                                                                               \
  __attribute__((unused)) static inline int trace_##name##_enabled(void) {                                        \
    return __atomic_load_n(&spile_tracepoint_##name.callbacks, __ATOMIC_RELAXED) != NULL;                         \
  }                                                                                                               \
  struct spile_tracepoint

#define DECLARE_TRACE(name, proto, args) DECLARE_TRACE_CONDITION(name, TP_PROTO(proto), TP_ARGS(args), 1)

#define DEFINE_TRACE(tp) struct spile_tracepoint spile_tracepoint_##tp = {.group = SPILE_C_TEXT_(TRACE_SYSTEM), .name = #tp}

/* Unregistering has waited already. */
static inline void tracepoint_synchronize_unregister(void) {}

#endif
