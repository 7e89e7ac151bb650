#include "os/affinity.h"

#include <utility>

namespace spile::os {

CpuPin::CpuPin(CpuPin&& other) noexcept
    : before_(other.before_), active_(std::exchange(other.active_, false)) {}

CpuPin& CpuPin::operator=(CpuPin&& other) noexcept {
  if (this != &other) {
    restore();
    before_ = other.before_;
    active_ = std::exchange(other.active_, false);
  }
  return *this;
}

CpuPin::~CpuPin() {
  restore();
}

CpuPin CpuPin::to(int cpu) {
  CpuPin pin;
  if (cpu < 0 || cpu >= CPU_SETSIZE ||
      ::sched_getaffinity(0, sizeof pin.before_, &pin.before_) != 0)
    return pin;
  cpu_set_t one;
  CPU_ZERO(&one);
  CPU_SET(cpu, &one);
  pin.active_ = ::sched_setaffinity(0, sizeof one, &one) == 0;
  return pin;
}

void CpuPin::restore() {
  if (active_) ::sched_setaffinity(0, sizeof before_, &before_);
  active_ = false;
}

}  // namespace spile::os
