#include "kernel_engine/multi_link.h"

#include <linux/bpf.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>

namespace spile::kernel_engine {

namespace {

static_assert(kTraceKprobeMulti == BPF_TRACE_KPROBE_MULTI);
constexpr uint32_t kMultiReturn = 1;  // BPF_F_KPROBE_MULTI_RETURN, BPF_F_UPROBE_MULTI_RETURN

}  // namespace

Result<Fd> link_uprobes(int program_fd,
                        int attach_type,
                        const std::string& path,
                        std::span<const UprobeSite> sites,
                        Moment moment,
                        pid_t pid) {
  std::vector<uint64_t> offsets, semaphores, cookies;
  for (const UprobeSite& site : sites) {
    offsets.push_back(site.offset.value);
    semaphores.push_back(site.semaphore.value);
    cookies.push_back(site.cookie);
  }
  // union bpf_attr.link_create of 6.6.
  struct {
    uint32_t prog_fd, target_fd, attach_type, flags;
    uint64_t path, offsets, ref_ctr_offsets, cookies;
    uint32_t cnt, multi_flags, pid, path_fd;
  } attr = {};
  attr.prog_fd = static_cast<uint32_t>(program_fd);
  attr.attach_type = static_cast<uint32_t>(attach_type);
  attr.path = reinterpret_cast<uint64_t>(path.c_str());
  attr.offsets = reinterpret_cast<uint64_t>(offsets.data());
  attr.ref_ctr_offsets = reinterpret_cast<uint64_t>(semaphores.data());
  attr.cookies = reinterpret_cast<uint64_t>(cookies.data());
  attr.cnt = static_cast<uint32_t>(sites.size());
  if (moment == Moment::kReturn) attr.multi_flags |= kMultiReturn;
  attr.pid = static_cast<uint32_t>(pid);
  long fd = syscall(SYS_bpf, BPF_LINK_CREATE, &attr, sizeof attr);
  if (fd >= 0) return Fd(static_cast<int>(fd));
  const int why = errno;
  const char* what = attach_type == kTraceUprobeSession ? "uprobe.session" : "uprobe.multi";
  auto error = fail_errno(why, "{} of {} places in {}", what, sites.size(), path);
  errno = why;
  return error;
}

Result<Fd> link_kprobes(int program_fd,
                        int attach_type,
                        const std::vector<std::string>& functions,
                        const std::vector<uint64_t>& cookies,
                        Moment moment) {
  SPILE_CHECK(cookies.size() == functions.size());
  std::vector<const char*> names;
  for (const std::string& function : functions) names.push_back(function.c_str());
  // union bpf_attr.link_create of 5.18.
  struct {
    uint32_t prog_fd, target_fd, attach_type, flags;
    uint32_t multi_flags, cnt;
    uint64_t syms, addrs, cookies;
  } attr = {};
  attr.prog_fd = static_cast<uint32_t>(program_fd);
  attr.attach_type = static_cast<uint32_t>(attach_type);
  attr.cnt = static_cast<uint32_t>(names.size());
  attr.syms = reinterpret_cast<uint64_t>(names.data());
  attr.cookies = reinterpret_cast<uint64_t>(cookies.data());
  if (moment == Moment::kReturn) attr.multi_flags |= kMultiReturn;
  long fd = syscall(SYS_bpf, BPF_LINK_CREATE, &attr, sizeof attr);
  if (fd >= 0) return Fd(static_cast<int>(fd));
  const char* what = attach_type == kTraceKprobeSession ? "kprobe.session" : "kprobe.multi";
  if (errno == ESRCH || errno == ENOENT)
    return fail(ErrorCode::kNotFound,
                "{} of {} function{} ({} ...): one is not there, or ftrace "
                "cannot trace it",
                what, names.size(), names.size() == 1 ? "" : "s", functions.front());
  if (errno == EOPNOTSUPP || errno == EINVAL)
    return fail(ErrorCode::kUnsupported, "this kernel has no {} links (CONFIG_FPROBE)", what);
  return fail_errno(errno, "{} of {} functions", what, names.size());
}

}  // namespace spile::kernel_engine
