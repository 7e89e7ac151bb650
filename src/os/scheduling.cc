#include "os/scheduling.h"

#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <utility>

namespace spile::os {
namespace {

constexpr uint64_t kShortSliceNs = 100'000;  // the shortest that the kernel takes
constexpr uint32_t kLowestPriority = 1;      // before ordinary threads, behind all of real time

bool is_ordinary(uint32_t policy) {
  return policy == SCHED_OTHER || policy == SCHED_BATCH || policy == SCHED_IDLE;
}

bool read_scheduling(Scheduling& scheduling) {
  return ::syscall(SYS_sched_getattr, 0, &scheduling, sizeof scheduling, 0) == 0;
}

}  // namespace

Result<Scheduling> get_scheduling() {
  Scheduling scheduling;
  if (!read_scheduling(scheduling)) return fail_errno(errno, "sched_getattr");
  return scheduling;
}

bool set_scheduling(const Scheduling& scheduling) {
  return ::syscall(SYS_sched_setattr, 0, &scheduling, 0) == 0;
}

bool is_real_time() {
  const int policy = ::sched_getscheduler(0) & ~SCHED_RESET_ON_FORK;
  return policy == SCHED_FIFO || policy == SCHED_RR;
}

Urgency::Urgency(Urgency&& other) noexcept
    : before_(other.before_), active_(std::exchange(other.active_, false)) {}

Urgency& Urgency::operator=(Urgency&& other) noexcept {
  if (this != &other) {
    restore();
    before_ = other.before_;
    active_ = std::exchange(other.active_, false);
  }
  return *this;
}

Urgency::~Urgency() {
  restore();
}

/// Who chose another policy than the ordinary ones knows best.
Urgency Urgency::raise(uint32_t policy, uint32_t priority, uint64_t runtime_ns) {
  Urgency urgency;
  if (!read_scheduling(urgency.before_) || !is_ordinary(urgency.before_.policy)) return urgency;
  Scheduling wanted = urgency.before_;
  wanted.policy = policy;
  wanted.priority = priority;
  wanted.runtime_ns = runtime_ns;
  urgency.active_ = set_scheduling(wanted);
  return urgency;
}

Urgency Urgency::prompt() {
  Scheduling now;
  // SCHED_IDLE and SCHED_BATCH were chosen in order not to be prompt.
  if (!read_scheduling(now) || now.policy != SCHED_OTHER) return {};
  return raise(SCHED_OTHER, 0, kShortSliceNs);
}

Urgency Urgency::real_time() {
  return raise(SCHED_FIFO, kLowestPriority, 0);
}

void Urgency::restore() {
  if (std::exchange(active_, false)) (void)set_scheduling(before_);
}

}  // namespace spile::os
