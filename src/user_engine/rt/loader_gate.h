// The wait of a thread that has loaded a library (abi/loader_gate.h).
//
// It runs in the middle of the dynamic loader, with the loader's lock held: the tracer sets probes
// from outside and takes no lock of the target. A signal that arrives is handled at once, on top of
// the wait, and the wait goes on. What ends the wait is a count of looks that timed out, so a
// machine that stands still for a while takes no look away; the clock is the bound for a storm of
// signals, in which no look times out.
#pragma once

#include <stdint.h>

#include "abi/code_region.h"
#include "abi/data_region.h"
#include "abi/loader_gate.h"
#include "user_engine/rt/atomics.h"
#include "user_engine/rt/sys.h"
#include "user_engine/rt/time_ops.h"

namespace spile::rt {

/// Source: linux/futex.h. Not FUTEX_PRIVATE: the tracer waits on the same page of the same file.
inline constexpr uint64_t kFutexWait = 0, kFutexWake = 1, kWakeAll = 0x7fffffff;
inline constexpr int64_t kInterrupted = -4, kChanged = -11, kTimedOut = -110;  // negative errno

/// True: the request was answered, or nobody answers any more.
inline bool wait_for_answer(const abi::RtConsts& consts, abi::LoaderGate* gate, uint32_t request) {
  const struct {
    int64_t seconds, nanoseconds;
  } look = {0, static_cast<int64_t>(abi::kLookNs)};
  const uint64_t begin = clock_ns(consts, Clock::kMonotonic);
  uint32_t beat = load_acquire(&gate->beat), still = 0;
  while (still < abi::kMaxStillLooks) {
    const uint32_t answered = load_acquire(&gate->answered);
    if (abi::is_answered(request, answered) || load_acquire(&gate->open) == 0) return true;
    const int64_t end = sys_call(Sys::kFutex, reinterpret_cast<uint64_t>(&gate->answered),
                                 kFutexWait, answered, reinterpret_cast<uint64_t>(&look));
    if (clock_ns(consts, Clock::kMonotonic) - begin > abi::kMaxWaitNs) return false;
    const uint32_t now = load_acquire(&gate->beat);
    if (now != beat)
      still = 0;
    else if (end == kTimedOut)
      still++;
    else if (end != 0 && end != kInterrupted && end != kChanged)
      return false;
    beat = now;
  }
  return abi::is_answered(request, load_acquire(&gate->answered));
}

inline void await_tracer(const abi::RtConsts& consts) {
  auto* gate = reinterpret_cast<abi::LoaderGate*>(consts.data_base + abi::kLoaderGateOffset);
  if ((consts.allowed_calls & abi::kCallFutex) == 0) return;
  if (load_acquire(&gate->open) == 0) {
    __atomic_fetch_add(&gate->in_vain, 1, __ATOMIC_RELAXED);
    return;
  }
  const uint32_t request = __atomic_add_fetch(&gate->asked, 1, __ATOMIC_ACQ_REL);
  sys_call(Sys::kFutex, reinterpret_cast<uint64_t>(&gate->asked), kFutexWake, kWakeAll);
  if (wait_for_answer(consts, gate, request)) return;
  __atomic_fetch_add(&gate->in_vain, 1, __ATOMIC_RELAXED);
  store_release(&gate->open, uint32_t{0});
}

}  // namespace spile::rt
