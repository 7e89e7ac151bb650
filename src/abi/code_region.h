// The code region: what the target executes and may not write.
//
//   offset 0x00000   the blob: helper functions, at most 64 KiB            user_engine/rt
//          0x10000   RtConsts, one page                                    this file
//          0x11000   RtMap[map_count]                                      map.h
//          bodies_offset(map_count) ...  program bodies, then detours      user_engine/jit
//          RtConsts::saved_offset        SavedBytes[saved_count]           this file
//
// It is a memfd, mapped R-X in the target and sealed against writing once the tracer has its own
// view, so what it holds can be trusted by the code in it. Through that view the tracer switches
// probes off and on (jit::Gate), one aligned word at a time. The blob finds RtConsts relative to
// its own instructions. There is one code region per +-2 GiB neighbourhood; all hold the same bytes
// up to the program bodies.
//
// Every field is written by the tracer, before the first jump into the region is written, and never
// changes afterwards.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "abi/map.h"

namespace spile::abi {

inline constexpr uint64_t kMaxBlobBytes = 0x10000;
inline constexpr uint64_t kConstsOffset = 0x10000;
inline constexpr uint64_t kMapsOffset = 0x11000;

/// Where map `index`'s descriptor is, from the start of the code region.
constexpr uint64_t map_descriptor_offset(uint64_t index) {
  return kMapsOffset + index * sizeof(RtMap);
}
/// Where program bodies may start.
constexpr uint64_t bodies_offset(uint64_t map_count) {
  return (map_descriptor_offset(map_count) + 4095) / 4096 * 4096;
}

inline constexpr uint64_t kConstsMagic = 0x736e6f632d6c7073;  // "spl-cons"

/// RtConsts::flags.
enum RtFlags : uint32_t {
  kHasRdpid = 1u << 0,     ///< CPUID.7.0:ECX[22]; else the CPU number comes from lsl
  kHasRtm = 1u << 1,       ///< CPUID.7.0:EBX[11] and not RTM_ALWAYS_ABORT
  kHasFsgsbase = 1u << 2,  ///< AT_HWCAP2 bit 1
  kTscIsClock = 1u << 3,   ///< the clocksource is tsc: the time page may be used
};

/// Where the thread id comes from.
enum class TidSource : uint32_t {
  kGettid,   ///< system call
  kFsField,  ///< libc's own field: 32 bits at fs:tid_fs_offset, the same offset in every thread
};

/// RtConsts::allowed_calls: system calls that the target's seccomp filters let pass. Others are not
/// made.
enum RtCalls : uint32_t {
  kCallGettid = 1u << 0,
  kCallGetpid = 1u << 1,
  kCallGetuid = 1u << 2,  ///< getuid and getgid
  kCallPrctl = 1u << 3,   ///< PR_GET_NAME
  kCallProcessVmReadv = 1u << 4,
  kCallClockGettime = 1u << 5,
  kCallFutex = 1u << 6,  ///< waiting for the tracer (loader_gate.h); not needed by any program
  kCallAll = (1u << 7) - 1,
};

/// Addresses [begin, end) of the target that stay mapped and readable as long as it lives.
struct SafeRange {
  uint64_t begin, end;
};

inline constexpr uint32_t kMaxSafeRanges = 128;

/// What a changed place of a module held whose file is out of reach: no file can bear the journal
/// out, this can, since the target cannot write here.
struct SavedBytes {
  uint64_t address;  ///< in the target
  uint8_t length;
  uint8_t original[16];
  uint8_t reserved[7];
};
static_assert(sizeof(SavedBytes) == 32);

struct RtConsts {
  uint64_t magic;
  uint32_t version;    ///< kAbiVersion
  uint32_t flags;      ///< RtFlags
  uint64_t data_base;  ///< address of the data region in the target
  uint64_t data_size;  ///< bytes
  uint64_t time_page;  ///< address of the TimePage in the target
  uint64_t stats;      ///< address of the CpuStats in the target
  uint32_t cpu_mask;   ///< CPU slots - 1; slots are a power of two
  uint32_t map_count;
  TidSource tid_source;
  int32_t tid_fs_offset;
  uint32_t allowed_calls;  ///< RtCalls
  /// The target's process id as it sees it and as the tracer sees it: different when the target
  /// lives in a pid namespace of its own. Both 0: no translation.
  uint32_t tgid_inside, tgid_outside;
  /// Where libc keeps, in each thread's control block, begin and size of the stack that it made for
  /// the thread: two words at fs:stack_fs_offset. 0: not known.
  int32_t stack_fs_offset;
  /// Address of 8 zero bytes in private memory that a fork wipes (MADV_WIPEONFORK): caches the
  /// process id. 0: there is none, getpid is called each time.
  uint64_t wipe_on_fork;
  uint64_t main_stack_begin, main_stack_end;  ///< the [stack] mapping at attach; equal: unknown
  uint64_t code_base;                         ///< address of this code region in the target
  uint64_t pending_table;  ///< address of PendingBucket[kPendingBuckets]; 0: nothing is noted
  uint32_t saved_offset;   ///< of SavedBytes, from the start of this region
  uint32_t saved_count;
  /// The pool of private stacks (private_stack.h): its first byte, the control block of its first
  /// stack, where that of one more would be. All 0: there is none.
  uint64_t private_pool, private_first, private_end;
  uint32_t safe_range_count;
  uint32_t reserved2;
  SafeRange safe_ranges[kMaxSafeRanges];  ///< ascending, not overlapping
};
static_assert(sizeof(RtConsts) <= kMapsOffset - kConstsOffset);
static_assert(offsetof(RtConsts, safe_ranges) % 8 == 0);

}  // namespace spile::abi
