// How soon the calling thread gets a processor when others want one too.
//
// Who stops a process of many runnable threads competes with exactly these for processors, and each
// time it slept it stands behind all of them: some milliseconds, for a stop that is a matter of
// microseconds. Two ways out, each undone when the object goes away:
//
//  * Prompt: a short slice (sched_setattr's sched_runtime, Linux 6.12). The thread gets no more
//    than its share, but sooner. Needs no right. Older kernels pay no heed to it.
//  * Real time: before every ordinary thread, as soon as it wants. Needs CAP_SYS_NICE or
//    RLIMIT_RTPRIO. Only for work of microseconds that sleeps where it waits: whoever it waits for
//    cannot run on its processor meanwhile.
#pragma once

#include <cstdint>

#include "base/error.h"

namespace spile::os {

/// The kernel's struct sched_attr, first version.
struct Scheduling {
  uint32_t size = 0, policy = 0;
  uint64_t flags = 0;
  int32_t nice = 0;
  uint32_t priority = 0;
  uint64_t runtime_ns = 0, deadline_ns = 0, period_ns = 0;
};

/// Of the calling thread. Async-signal-safe, as is the next.
Result<Scheduling> get_scheduling();
bool set_scheduling(const Scheduling& scheduling);

class Urgency {
 public:
  Urgency() = default;
  Urgency(Urgency&& other) noexcept;
  Urgency& operator=(Urgency&& other) noexcept;
  Urgency(const Urgency&) = delete;
  Urgency& operator=(const Urgency&) = delete;
  ~Urgency();

  /// Threads that the caller starts inherit it.
  static Urgency prompt();
  static Urgency real_time();
  bool active() const { return active_; }

 private:
  static Urgency raise(uint32_t policy, uint32_t priority, uint64_t runtime_ns);
  void restore();
  Scheduling before_;
  bool active_ = false;
};

/// Is the calling thread one that others on its processor must wait for?
bool is_real_time();

}  // namespace spile::os
