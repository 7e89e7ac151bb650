// What the CPU says without the kernel: CPU number, time-stamp counter, the thread's fs area.
#pragma once

#include <stdint.h>

#include "abi/code_region.h"

namespace spile::rt {

/// Selector of the descriptor whose limit holds the CPU number (Linux: GDT_ENTRY_CPUNODE).
inline constexpr uint32_t kCpuNodeSelector = 0x7b;
/// Low bits of TSC_AUX and of that limit: the CPU; the NUMA node lies above.
inline constexpr uint32_t kCpuNodeMask = 0xfff;

/// The CPU that runs us; may be another one by the time the caller uses it.
inline uint32_t current_cpu(const abi::RtConsts& consts) {
  uint64_t cpu_and_node;
  if (consts.flags & abi::kHasRdpid) {
    asm volatile("rdpid %0" : "=r"(cpu_and_node));
  } else {
    asm volatile("lsl %1, %0" : "=r"(cpu_and_node) : "r"(uint64_t{kCpuNodeSelector}) : "cc");
  }
  return static_cast<uint32_t>(cpu_and_node) & kCpuNodeMask;
}

inline uint32_t current_cpu_slot(const abi::RtConsts& consts) {
  return current_cpu(consts) & consts.cpu_mask;
}

inline uint64_t read_tsc() {
  uint32_t low, high;
  asm volatile("rdtsc" : "=a"(low), "=d"(high));
  return uint64_t{high} << 32 | low;
}

inline uint32_t read_fs_u32(int32_t offset) {
  uint32_t value;
  asm volatile("movl %%fs:(%1), %0" : "=r"(value) : "r"(int64_t{offset}) : "memory");
  return value;
}

inline uint64_t read_fs_u64(int32_t offset) {
  uint64_t value;
  asm volatile("movq %%fs:(%1), %0" : "=r"(value) : "r"(int64_t{offset}) : "memory");
  return value;
}

inline uint64_t stack_pointer() {
  uint64_t sp;
  asm volatile("mov %%rsp, %0" : "=r"(sp));
  return sp;
}

}  // namespace spile::rt
