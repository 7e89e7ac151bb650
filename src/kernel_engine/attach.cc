#include "kernel_engine/attach.h"

#include <bpf/bpf.h>
#include <fcntl.h>
#include <linux/bpf.h>
#include <linux/perf_event.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>

namespace spile::kernel_engine {

namespace {

constexpr int kTraceUprobeMulti = 48;       // enum bpf_attach_type, Linux 6.6
constexpr uint32_t kUprobeMultiReturn = 1;  // BPF_F_UPROBE_MULTI_RETURN

Result<std::string> read_line(const std::string& path) {
  std::ifstream file(path);
  std::string line;
  if (!std::getline(file, line)) return fail(ErrorCode::kNotFound, "{}: cannot be read", path);
  return line;
}

/// The number of a dynamic PMU ("kprobe", "uprobe").
Result<uint32_t> pmu_type(const std::string& pmu) {
  auto line = read_line("/sys/bus/event_source/devices/" + pmu + "/type");
  if (!line)
    return fail(ErrorCode::kUnsupported, "this kernel has no {} events (CONFIG_{}_EVENTS)", pmu,
                pmu == "kprobe" ? "KPROBE" : "UPROBE");
  return static_cast<uint32_t>(std::strtoul(line->c_str(), nullptr, 10));
}

/// The config bit that makes it a return probe: "config:0" -> 0.
Result<int> return_bit(const std::string& pmu) {
  SPILE_TRY(auto line, read_line("/sys/bus/event_source/devices/" + pmu + "/format/retprobe"));
  size_t colon = line.find(':');
  if (colon == std::string::npos)
    return fail(ErrorCode::kCorrupt, "{}/format/retprobe: '{}'", pmu, line);
  return std::atoi(line.c_str() + colon + 1);
}

/// The counter's file offset has the upper half of config (Linux 4.20): "config:32-63".
Result<void> set_semaphore(const UprobeSite& site, perf_event_attr& attr) {
  auto line = read_line("/sys/bus/event_source/devices/uprobe/format/ref_ctr_offset");
  if (!line || *line != "config:32-63")
    return fail(ErrorCode::kUnsupported, "this kernel cannot raise the semaphore of a usdt probe");
  if (site.semaphore.value > UINT32_MAX)
    return fail(ErrorCode::kUnsupported, "the semaphore at {} is too far into the file",
                site.semaphore);
  attr.config |= site.semaphore.value << 32;
  return {};
}

Result<Fd> perf_event_open(perf_event_attr& attr, pid_t pid, int cpu) {
  attr.size = sizeof attr;
  long fd = syscall(SYS_perf_event_open, &attr, pid, cpu, -1, PERF_FLAG_FD_CLOEXEC);
  if (fd < 0) {
    Error error = errno_error(errno, "perf_event_open");
    if (error.code == ErrorCode::kDenied)
      error.message += "; needs root, or CAP_PERFMON and a perf_event_paranoid that allows it";
    return std::unexpected(std::move(error));
  }
  return Fd(static_cast<int>(fd));
}

Result<Link> link_event(Fd event, int program_fd, uint64_t cookie) {
  LIBBPF_OPTS(bpf_link_create_opts, options);
  options.perf_event.bpf_cookie = cookie;
  int link = bpf_link_create(program_fd, event.get(), BPF_PERF_EVENT, &options);
  if (link == -EINVAL)
    return fail(ErrorCode::kUnsupported,
                "link a program to a perf event: this kernel is older than 5.15");
  if (link < 0) return fail_errno(-link, "link a program to a perf event");
  if (ioctl(event.get(), PERF_EVENT_IOC_ENABLE, 0) < 0)
    return fail_errno(errno, "enable a perf event");
  return Link{std::move(event), Fd(link)};
}

Result<std::string> tracefs() {
  for (const char* path : {"/sys/kernel/tracing", "/sys/kernel/debug/tracing"}) {
    if (access((std::string(path) + "/events").c_str(), F_OK) == 0) return path;
  }
  return fail(ErrorCode::kUnsupported, "no tracefs: mount -t tracefs nodev /sys/kernel/tracing");
}

}  // namespace

Result<Link> attach_uprobe(int program_fd,
                           const std::string& path,
                           const UprobeSite& site,
                           UprobeMoment moment,
                           pid_t pid) {
  SPILE_TRY(uint32_t type, pmu_type("uprobe"));
  perf_event_attr attr = {};
  attr.type = type;
  if (moment == UprobeMoment::kReturn) {
    SPILE_TRY(int bit, return_bit("uprobe"));
    attr.config |= uint64_t{1} << bit;
  }
  attr.uprobe_path = reinterpret_cast<uint64_t>(path.c_str());
  attr.probe_offset = site.offset.value;
  if (site.semaphore.value != 0) SPILE_TRY_VOID(set_semaphore(site, attr));
  auto event = perf_event_open(attr, pid, pid < 0 ? 0 : -1);
  if (!event)
    return forward(event, "{} {}+{}", moment == UprobeMoment::kReturn ? "uretprobe" : "uprobe",
                   path, site.offset);
  return link_event(std::move(*event), program_fd, site.cookie);
}

Result<Link> attach_kprobe(
    int program_fd, const std::string& function, uint64_t offset, bool is_return, uint64_t cookie) {
  SPILE_TRY(uint32_t type, pmu_type("kprobe"));
  perf_event_attr attr = {};
  attr.type = type;
  if (is_return) {
    SPILE_TRY(int bit, return_bit("kprobe"));
    attr.config |= uint64_t{1} << bit;
  }
  if (!function.empty()) attr.kprobe_func = reinterpret_cast<uint64_t>(function.c_str());
  attr.probe_offset = offset;
  auto event = perf_event_open(attr, -1, 0);
  if (!event) {
    Error error =
        std::move(event.error())
            .context(fmt::format("{} {}+{}", is_return ? "kretprobe" : "kprobe", function, offset));
    if (error.code == ErrorCode::kInvalid)
      error.message += " (the kernel does not allow a probe there: kprobes/blacklist)";
    return std::unexpected(std::move(error));
  }
  return link_event(std::move(*event), program_fd, cookie);
}

Result<Link> attach_tracepoint(int program_fd,
                               const std::string& category,
                               const std::string& name,
                               uint64_t cookie) {
  SPILE_TRY(std::string root, tracefs());
  auto id = read_line(fmt::format("{}/events/{}/{}/id", root, category, name));
  if (!id) return forward(id, "tracepoint {}:{}", category, name);
  perf_event_attr attr = {};
  attr.type = PERF_TYPE_TRACEPOINT;
  attr.config = std::strtoull(id->c_str(), nullptr, 10);
  attr.sample_period = 1;
  auto event = perf_event_open(attr, -1, 0);
  if (!event) return forward(event, "tracepoint {}:{}", category, name);
  return link_event(std::move(*event), program_fd, cookie);
}

Result<Link> attach_interval(int program_fd, uint64_t period_ns, uint64_t cookie) {
  perf_event_attr attr = {};
  attr.type = PERF_TYPE_SOFTWARE;
  attr.config = PERF_COUNT_SW_CPU_CLOCK;
  attr.sample_period = period_ns;
  auto event = perf_event_open(attr, -1, 0);
  if (!event) return forward(event, "interval of {} ns", period_ns);
  return link_event(std::move(*event), program_fd, cookie);
}

bool has_uprobe_multi(bool with_pid) {
  utsname name = {};
  int major = 0, minor = 0;
  if (uname(&name) < 0 || sscanf(name.release, "%d.%d", &major, &minor) != 2) return false;
  // 6.6 brought the link; until 6.10 its pid meant one thread, not the process.
  return major > 6 || (major == 6 && minor >= (with_pid ? 10 : 6));
}

Result<Link> attach_uprobe_multi(int program_fd,
                                 const std::string& path,
                                 std::span<const UprobeSite> sites,
                                 UprobeMoment moment,
                                 pid_t pid) {
  std::vector<uint64_t> offsets, semaphores, cookies;
  for (const UprobeSite& site : sites) {
    offsets.push_back(site.offset.value);
    semaphores.push_back(site.semaphore.value);
    cookies.push_back(site.cookie);
  }
  // union bpf_attr.link_create of 6.6; the system's header does not have uprobe_multi.
  struct {
    uint32_t prog_fd, target_fd, attach_type, flags;
    uint64_t path, offsets, ref_ctr_offsets, cookies;
    uint32_t cnt, multi_flags, pid, path_fd;
  } attr = {};
  attr.prog_fd = static_cast<uint32_t>(program_fd);
  attr.attach_type = kTraceUprobeMulti;
  attr.path = reinterpret_cast<uint64_t>(path.c_str());
  attr.offsets = reinterpret_cast<uint64_t>(offsets.data());
  attr.ref_ctr_offsets = reinterpret_cast<uint64_t>(semaphores.data());
  attr.cookies = reinterpret_cast<uint64_t>(cookies.data());
  attr.cnt = static_cast<uint32_t>(sites.size());
  if (moment == UprobeMoment::kReturn) attr.multi_flags |= kUprobeMultiReturn;
  attr.pid = static_cast<uint32_t>(pid);
  long fd = syscall(SYS_bpf, BPF_LINK_CREATE, &attr, sizeof attr);
  if (fd < 0) return fail_errno(errno, "uprobe.multi of {} places in {}", sites.size(), path);
  return Link{Fd(), Fd(static_cast<int>(fd))};
}

namespace {

struct FileMapping {
  uint64_t start, end, file_offset;
};

/// The executable mappings of one file in a process, if that process also holds a code mapping of
/// the user engine.
std::vector<FileMapping> patched_mappings(const std::string& maps_path, const struct stat& file) {
  std::ifstream maps(maps_path);
  std::vector<FileMapping> found;
  bool has_engine = false;
  for (std::string line; std::getline(maps, line);) {
    FileMapping m = {};
    char perms[5] = {};
    unsigned major = 0, minor = 0;
    unsigned long inode = 0;
    if (sscanf(line.c_str(), "%lx-%lx %4s %lx %x:%x %lu", &m.start, &m.end, perms, &m.file_offset,
               &major, &minor, &inode) != 7)
      continue;
    if (line.find("/memfd:spile-") != std::string::npos) has_engine = true;
    // The device is not compared: overlay file systems show another one than stat(2) does.
    if (perms[2] == 'x' && inode == file.st_ino) found.push_back(m);
  }
  if (!has_engine) found.clear();
  return found;
}

}  // namespace

Result<void> refuse_patched_sites(const std::string& path, std::span<const UprobeSite> sites) {
  struct stat file = {};
  Fd file_fd(open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!file_fd || fstat(file_fd.get(), &file) < 0) return fail_errno(errno, "open {}", path);
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator("/proc", error)) {
    std::string pid = entry.path().filename();
    if (pid.find_first_not_of("0123456789") != std::string::npos) continue;
    auto mappings = patched_mappings(entry.path() / "maps", file);
    if (mappings.empty()) continue;
    Fd memory(open((entry.path() / "mem").c_str(), O_RDONLY | O_CLOEXEC));
    for (const UprobeSite& site : sites) {
      for (const FileMapping& m : mappings) {
        if (site.offset.value < m.file_offset ||
            site.offset.value - m.file_offset >= m.end - m.start)
          continue;
        // A jump that begins up to four bytes earlier reaches into the probed instruction: the
        // bytes of a punned one are the instruction's own, so what changed is only seen there.
        uint64_t first =
            std::max(m.file_offset, site.offset.value - std::min<uint64_t>(site.offset.value, 4));
        size_t size =
            std::min(site.offset.value + 5 - first, m.file_offset + (m.end - m.start) - first);
        uint8_t original[9] = {}, now[9] = {};
        auto address = static_cast<off_t>(m.start + first - m.file_offset);
        if (pread(file_fd.get(), original, size, static_cast<off_t>(first)) !=
            static_cast<ssize_t>(size))
          continue;
        if (pread(memory.get(), now, size, address) == static_cast<ssize_t>(size) &&
            std::memcmp(original, now, size) == 0)
          continue;
        return fail(ErrorCode::kUnsafe,
                    "{}+{}: process {} is traced there by the user engine; a kernel probe on the "
                    "same instruction would kill it. "
                    "Detach first: spile detach -p {}",
                    path, site.offset, pid, pid);
      }
    }
  }
  return {};
}

}  // namespace spile::kernel_engine
