// Counting what went wrong, on this CPU's line of the shared counters.
#pragma once

#include "abi/code_region.h"
#include "abi/data_region.h"
#include "user_engine/rt/atomics.h"
#include "user_engine/rt/cpu.h"

namespace spile::rt {

inline abi::CpuStats* stats_here(const abi::RtConsts& consts) {
  return reinterpret_cast<abi::CpuStats*>(consts.stats) + current_cpu_slot(consts);
}
inline void count_map_contended(const abi::RtConsts& consts) {
  count_one(&stats_here(consts)->map_contended);
}
inline void count_ring_contended(const abi::RtConsts& consts) {
  count_one(&stats_here(consts)->ring_contended);
}
inline void count_corrupt(const abi::RtConsts& consts) {
  count_one(&stats_here(consts)->corrupt);
}
inline void count_refused_call(const abi::RtConsts& consts) {
  count_one(&stats_here(consts)->refused_calls);
}

}  // namespace spile::rt
