// Who hit the probe: process, thread, user, command name.
//
// Nothing is cached by thread: fs bases are reused by later threads and shared by vfork children (a
// tid cached by fs base was wrong for nearly every one of 2,000 short-lived threads). The process
// id is cached in memory that a fork wipes. A vfork child reads its parent's memory, so until it
// execs it is reported as its parent.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "abi/code_region.h"
#include "user_engine/rt/atomics.h"
#include "user_engine/rt/cpu.h"
#include "user_engine/rt/stats.h"
#include "user_engine/rt/sys.h"

namespace spile::rt {

inline constexpr int64_t kErrnoPermitted = -1, kErrnoFault = -14, kErrnoInvalid = -22;

inline bool may_call(const abi::RtConsts& consts, abi::RtCalls call) {
  if (consts.allowed_calls & call) return true;
  count_refused_call(consts);
  return false;
}

/// The process id as the target itself sees it; 0 where it cannot be had.
inline uint32_t tgid_inside(const abi::RtConsts& consts) {
  auto* cache = reinterpret_cast<uint64_t*>(consts.wipe_on_fork);
  if (cache != nullptr) {
    const uint64_t cached = load_relaxed(cache);
    if (cached != 0) return static_cast<uint32_t>(cached);
  }
  if (!may_call(consts, abi::kCallGetpid)) return 0;
  auto pid = static_cast<uint32_t>(sys_call(Sys::kGetpid));
  if (cache == nullptr) return pid;
  // A signal handler may fork between the call and the store: the child would store its parent's id
  // into the page that the fork just wiped. Asking again after the store finds that out.
  constexpr int kTries = 4;
  for (int i = 0; i < kTries; ++i) {
    store_relaxed(cache, uint64_t{pid});
    const auto again = static_cast<uint32_t>(sys_call(Sys::kGetpid));
    if (again == pid) return pid;
    pid = again;
  }
  store_relaxed(cache, uint64_t{0});
  return pid;
}

inline uint32_t tid_inside(const abi::RtConsts& consts) {
  if (consts.tid_source == abi::TidSource::kFsField) return read_fs_u32(consts.tid_fs_offset);
  if (!may_call(consts, abi::kCallGettid)) return 0;
  return static_cast<uint32_t>(sys_call(Sys::kGettid));
}

/// tgid << 32 | tid, as the tracer's pid namespace counts as far as that is known: the attached
/// process and its main thread are translated, its other threads and its children keep the numbers
/// that they see themselves.
inline uint64_t pid_tgid(const abi::RtConsts& consts) {
  uint64_t tgid = tgid_inside(consts);
  uint64_t tid = tid_inside(consts);
  if (consts.tgid_inside != consts.tgid_outside) {
    if (tid == consts.tgid_inside) tid = consts.tgid_outside;
    if (tgid == consts.tgid_inside) tgid = consts.tgid_outside;
  }
  return tgid << 32 | tid;
}

/// gid << 32 | uid.
inline uint64_t uid_gid(const abi::RtConsts& consts) {
  if (!may_call(consts, abi::kCallGetuid)) return 0;
  const auto uid = static_cast<uint32_t>(sys_call(Sys::kGetuid));
  const auto gid = static_cast<uint32_t>(sys_call(Sys::kGetgid));
  return uint64_t{gid} << 32 | uid;
}

inline constexpr uint32_t kCommBytes = 16;  ///< TASK_COMM_LEN

/// The thread's name, cut to size - 1 bytes, padded with zeroes. 0 or -errno (then all zeroes).
inline int64_t current_comm(const abi::RtConsts& consts, uint8_t* to, uint32_t size_bytes) {
  if (size_bytes == 0) return kErrnoInvalid;
  alignas(8) uint8_t name[kCommBytes];
  int64_t result = kErrnoPermitted;
  if (may_call(consts, abi::kCallPrctl)) {
    constexpr uint64_t kPrGetName = 16;
    result = sys_call(Sys::kPrctl, kPrGetName, reinterpret_cast<uint64_t>(name));
  }
  uint32_t used = 0;
  if (result == 0) {
    while (used < kCommBytes && used + 1 < size_bytes && name[used] != 0) {
      to[used] = name[used];
      ++used;
    }
  }
  for (uint32_t i = used; i < size_bytes; ++i) to[i] = 0;
  return result;
}

}  // namespace spile::rt
