#include "kernel_engine/counters.h"

#include <unistd.h>

#include <array>
#include <cerrno>

namespace spile::kernel_engine {

namespace {

Result<std::vector<Whose>> parts_of(const CounterScope& scope) {
  SPILE_TRY(auto all, everybody(scope.pids));
  if (scope.pids.empty() || !scope.per_cpu) return all;
  SPILE_TRY(auto cpus, online_cpus());
  std::vector<Whose> each;
  for (const Whose& one : all) {
    for (int cpu : cpus) each.push_back({one.tid, cpu});
  }
  return each;
}

}  // namespace

Result<Counter> Counter::open(const bundle::Probe& probe, const CounterScope& scope) {
  SPILE_TRY(auto parts, parts_of(scope));
  Counter counter;
  for (const Whose& whose : parts) {
    SPILE_TRY(Fd event, open_reading_counter(probe, whose, scope.on_exec));
    counter.parts_.push_back({std::move(event), whose.cpu});
  }
  return counter;
}

Result<std::vector<CounterValue>> Counter::read() const {
  std::vector<CounterValue> values;
  for (const Part& part : parts_) {
    std::array<uint64_t, 3> got = {};  // value, time enabled, time running
    if (::read(part.event.get(), got.data(), sizeof got) != static_cast<ssize_t>(sizeof got))
      return fail_errno(errno, "read a counter");
    double scale = got[2] == 0 || got[2] >= got[1]
                       ? 1
                       : static_cast<double>(got[1]) / static_cast<double>(got[2]);
    values.push_back({part.cpu, static_cast<uint64_t>(static_cast<double>(got[0]) * scale)});
  }
  return values;
}

}  // namespace spile::kernel_engine
