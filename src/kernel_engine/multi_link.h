// Links over many places at once, by bpf(2) itself: newer than the headers and the libbpf of Debian
// 12.
#pragma once

#include <sys/types.h>

#include <span>
#include <string>
#include <vector>

#include "base/address.h"
#include "base/fd.h"
#include "kernel_engine/perf_event.h"

namespace spile::kernel_engine {

// enum bpf_attach_type, Linux 6.18.
inline constexpr int kTraceKprobeMulti = 42, kTraceUprobeMulti = 48, kTraceKprobeSession = 56,
                     kTraceUprobeSession = 57;

struct UprobeSite {
  FileOffset offset;
  FileOffset semaphore;  ///< the kernel adds 1 there while the probe is in place; 0: none
  uint64_t cookie;
  size_t probe;  ///< index into Bundle::probes
};

/// `attach_type` is kTraceUprobeMulti or kTraceUprobeSession, which takes kEntry and is at both
/// ends. pid 0: every process. Where it fails, errno is the kernel's.
Result<Fd> link_uprobes(int program_fd,
                        int attach_type,
                        const std::string& path,
                        std::span<const UprobeSite> sites,
                        Moment moment,
                        pid_t pid);

/// All functions or none. `attach_type` is kTraceKprobeMulti or kTraceKprobeSession; the cookies
/// are those of `functions`, in their order.
///
/// Errors: not found    a function is not there, or is not one that ftrace can trace
///         unsupported  this kernel has no such links
Result<Fd> link_kprobes(int program_fd,
                        int attach_type,
                        const std::vector<std::string>& functions,
                        const std::vector<uint64_t>& cookies,
                        Moment moment);

}  // namespace spile::kernel_engine
