/* Time in nanoseconds, of CLOCK_MONOTONIC unless the name says otherwise. */
#ifndef SPILE_KERNEL_KTIME_H
#define SPILE_KERNEL_KTIME_H
#pragma GCC system_header

#include <linux/types.h>
#include <time.h>

typedef s64 ktime_t;

__attribute__((unused)) static inline u64 spile_clock_ns_(clockid_t clock) {
  struct timespec now;
  clock_gettime(clock, &now);
  return (u64)now.tv_sec * 1000000000ull + (u64)now.tv_nsec;
}
static inline ktime_t ktime_get(void) { return (ktime_t)spile_clock_ns_(CLOCK_MONOTONIC); }
static inline ktime_t ktime_get_real(void) { return (ktime_t)spile_clock_ns_(CLOCK_REALTIME); }
static inline ktime_t ktime_get_boottime(void) { return (ktime_t)spile_clock_ns_(CLOCK_BOOTTIME); }
static inline u64 ktime_get_ns(void) { return spile_clock_ns_(CLOCK_MONOTONIC); }
static inline u64 ktime_get_real_ns(void) { return spile_clock_ns_(CLOCK_REALTIME); }
static inline u64 ktime_get_boottime_ns(void) { return spile_clock_ns_(CLOCK_BOOTTIME); }
static inline ktime_t ktime_add(ktime_t a, ktime_t b) { return a + b; }
static inline ktime_t ktime_sub(ktime_t a, ktime_t b) { return a - b; }
static inline ktime_t ktime_add_ns(ktime_t a, u64 ns) { return a + (s64)ns; }
static inline ktime_t ktime_sub_ns(ktime_t a, u64 ns) { return a - (s64)ns; }
static inline ktime_t ns_to_ktime(u64 ns) { return (ktime_t)ns; }
static inline s64 ktime_to_ns(ktime_t t) { return t; }
static inline s64 ktime_to_us(ktime_t t) { return t / 1000; }
static inline s64 ktime_to_ms(ktime_t t) { return t / 1000000; }
static inline s64 ktime_us_delta(ktime_t later, ktime_t earlier) { return ktime_to_us(later - earlier); }
static inline s64 ktime_ms_delta(ktime_t later, ktime_t earlier) { return ktime_to_ms(later - earlier); }
static inline int ktime_compare(ktime_t a, ktime_t b) { return a < b ? -1 : a > b; }
static inline bool ktime_after(ktime_t a, ktime_t b) { return a > b; }
static inline bool ktime_before(ktime_t a, ktime_t b) { return a < b; }

#endif
