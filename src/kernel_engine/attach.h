// Probes -> links: one probe at a time, or all uprobes of a program and file at once.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "base/address.h"
#include "base/fd.h"
#include "engine/engine.h"

namespace spile::kernel_engine {

/// A link and, where it hangs on one, its perf event. Closing both takes the probe out.
struct Link {
  Fd event;
  Fd link;
};

/// Where a uprobe fires: at the instruction, or when the function that begins there returns.
enum class UprobeMoment : uint8_t { kEntry, kReturn };

struct UprobeSite {
  FileOffset offset;
  FileOffset semaphore;  ///< the kernel adds 1 there while the probe is in place; 0: none
  uint64_t cookie;
  size_t probe;  ///< index into Bundle::probes
};
/// pid -1: every process.
Result<Link> attach_uprobe(int program_fd,
                           const std::string& path,
                           const UprobeSite& site,
                           UprobeMoment moment,
                           pid_t pid);
/// `function` and `offset`, or an address where `function` is empty.
Result<Link> attach_kprobe(
    int program_fd, const std::string& function, uint64_t offset, bool is_return, uint64_t cookie);
Result<Link> attach_tracepoint(int program_fd,
                               const std::string& category,
                               const std::string& event,
                               uint64_t cookie);
/// Fires every `period_ns` on one CPU.
Result<Link> attach_interval(int program_fd, uint64_t period_ns, uint64_t cookie);

/// One uprobe.multi link. pid 0: every process.
Result<Link> attach_uprobe_multi(int program_fd,
                                 const std::string& path,
                                 std::span<const UprobeSite> sites,
                                 UprobeMoment moment,
                                 pid_t pid);
/// Whether this kernel has uprobe.multi, and with a correct pid filter when `with_pid`.
bool has_uprobe_multi(bool with_pid);

/// Fails with unsafe when a live process has other bytes than the file at one of `sites`: somebody
/// patched it.
Result<void> refuse_patched_sites(const std::string& path, std::span<const UprobeSite> sites);

}  // namespace spile::kernel_engine
