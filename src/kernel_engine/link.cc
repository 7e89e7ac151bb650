#include "kernel_engine/link.h"

#include <bpf/bpf.h>
#include <linux/bpf.h>
#include <linux/perf_event.h>
#include <sys/ioctl.h>

#include <array>
#include <cerrno>
#include <cstring>

namespace spile::kernel_engine {

Result<Link> hang_on(Fd event, int program_fd, AttachPath path, uint64_t cookie) {
  Link made;
  if (path == AttachPath::kIoctl) {
    if (ioctl(event.get(), PERF_EVENT_IOC_SET_BPF, program_fd) < 0)
      return fail_errno(errno, "give a program to a perf event");
  } else {
    LIBBPF_OPTS(bpf_link_create_opts, options);
    options.perf_event.bpf_cookie = cookie;
    int link = bpf_link_create(program_fd, event.get(), BPF_PERF_EVENT, &options);
    if (link < 0) return fail_errno(-link, "link a program to a perf event");
    made.link = Fd(link);
  }
  if (ioctl(event.get(), PERF_EVENT_IOC_ENABLE, 0) < 0)
    return fail_errno(errno, "enable a perf event");
  made.event = std::move(event);
  return made;
}

/// struct bpf_link_info of 6.7 and later, of which Debian 12's header has the first part. A smaller
/// kernel's leaves the rest 0.
uint64_t missed_by(const Link& link) {
  constexpr uint32_t kPerfEvent = 7, kKprobeMulti = 8;
  constexpr uint32_t kKprobe = 3, kKretprobe = 4;  // enum bpf_perf_event_type
  constexpr size_t kPerfType = 16, kPerfMissed = 48, kMultiMissed = 32;
  if (!link.link) return 0;
  std::array<uint8_t, 256> info = {};
  uint32_t size = info.size();
  if (bpf_obj_get_info_by_fd(link.link.get(), info.data(), &size) != 0) return 0;
  uint32_t type = 0, perf_type = 0;
  uint64_t missed = 0;
  std::memcpy(&type, info.data(), sizeof type);
  std::memcpy(&perf_type, info.data() + kPerfType, sizeof perf_type);
  bool is_kprobe = type == kPerfEvent && (perf_type == kKprobe || perf_type == kKretprobe);
  if (type == kKprobeMulti) std::memcpy(&missed, info.data() + kMultiMissed, sizeof missed);
  if (is_kprobe) std::memcpy(&missed, info.data() + kPerfMissed, sizeof missed);
  return missed;
}

}  // namespace spile::kernel_engine
