#include "kernel_engine/perf_event.h"

#include <linux/hw_breakpoint.h>
#include <linux/perf_event.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <fstream>

#include "kernel_engine/knowledge.h"
#include "os/process.h"

namespace spile::kernel_engine {

using bundle::Probe;
using bundle::ProbeKind;

namespace {

Result<std::string> read_line(const std::string& path) {
  std::ifstream file(path);
  std::string line;
  if (!std::getline(file, line)) return fail(ErrorCode::kNotFound, "{}: cannot be read", path);
  return line;
}

std::string pmu_file(const std::string& pmu, std::string_view file) {
  return fmt::format("/sys/bus/event_source/devices/{}/{}", pmu, file);
}

/// The number of a dynamic PMU ("kprobe", "uprobe").
Result<uint32_t> pmu_type(const std::string& pmu) {
  auto line = read_line(pmu_file(pmu, "type"));
  if (!line)
    return fail(ErrorCode::kUnsupported, "this kernel has no {} events (CONFIG_{}_EVENTS)", pmu,
                pmu == "kprobe" ? "KPROBE" : "UPROBE");
  return static_cast<uint32_t>(std::strtoul(line->c_str(), nullptr, 10));
}

/// The config bit that makes it a return probe: "config:0" -> 0.
Result<int> return_bit(const std::string& pmu) {
  SPILE_TRY(auto line, read_line(pmu_file(pmu, "format/retprobe")));
  size_t colon = line.find(':');
  if (colon == std::string::npos)
    return fail(ErrorCode::kCorrupt, "{}/format/retprobe: '{}'", pmu, line);
  return std::atoi(line.c_str() + colon + 1);
}

Result<void> choose_function_pmu(const std::string& pmu, Moment moment, perf_event_attr& attr) {
  SPILE_TRY(attr.type, pmu_type(pmu));
  if (moment == Moment::kEntry) return {};
  SPILE_TRY(int bit, return_bit(pmu));
  attr.config |= uint64_t{1} << bit;
  return {};
}

/// The counter's file offset has the upper half of config (Linux 4.20): "config:32-63".
Result<void> set_semaphore(FileOffset semaphore, perf_event_attr& attr) {
  auto line = read_line(pmu_file("uprobe", "format/ref_ctr_offset"));
  if (!line || *line != "config:32-63")
    return fail(ErrorCode::kUnsupported, "this kernel cannot raise the semaphore of a usdt probe");
  if (semaphore.value > UINT32_MAX)
    return fail(ErrorCode::kUnsupported, "the semaphore at {} is too far into the file", semaphore);
  attr.config |= semaphore.value << 32;
  return {};
}

/// `why`: errno where it failed.
Result<Fd> perf_event_open(perf_event_attr& attr, Whose whose, int* why = nullptr) {
  attr.size = sizeof attr;
  long fd = syscall(SYS_perf_event_open, &attr, whose.tid, whose.cpu, -1, PERF_FLAG_FD_CLOEXEC);
  if (fd < 0) {
    if (why != nullptr) *why = errno;
    Error error = errno_error(errno, "perf_event_open");
    if (error.code == ErrorCode::kDenied && lockdown() == "confidentiality")
      error.message +=
          "; this kernel is locked down (/sys/kernel/security/lockdown: confidentiality)";
    else if (error.code == ErrorCode::kDenied)
      error.message += "; needs root, or CAP_PERFMON and a perf_event_paranoid that allows it";
    return std::unexpected(std::move(error));
  }
  return Fd(static_cast<int>(fd));
}

struct CounterConfig {
  std::string_view name;
  uint64_t config;
};
constexpr CounterConfig kSoftware[] = {
    {"alignment-faults", PERF_COUNT_SW_ALIGNMENT_FAULTS},
    {"bpf-output", PERF_COUNT_SW_BPF_OUTPUT},
    {"context-switches", PERF_COUNT_SW_CONTEXT_SWITCHES},
    {"cpu-clock", PERF_COUNT_SW_CPU_CLOCK},
    {"cpu-migrations", PERF_COUNT_SW_CPU_MIGRATIONS},
    {"dummy", PERF_COUNT_SW_DUMMY},
    {"emulation-faults", PERF_COUNT_SW_EMULATION_FAULTS},
    {"major-faults", PERF_COUNT_SW_PAGE_FAULTS_MAJ},
    {"minor-faults", PERF_COUNT_SW_PAGE_FAULTS_MIN},
    {"page-faults", PERF_COUNT_SW_PAGE_FAULTS},
    {"task-clock", PERF_COUNT_SW_TASK_CLOCK},
};
constexpr CounterConfig kHardware[] = {
    {"backend-stalls", PERF_COUNT_HW_STALLED_CYCLES_BACKEND},
    {"branch-instructions", PERF_COUNT_HW_BRANCH_INSTRUCTIONS},
    {"branch-misses", PERF_COUNT_HW_BRANCH_MISSES},
    {"bus-cycles", PERF_COUNT_HW_BUS_CYCLES},
    {"cache-misses", PERF_COUNT_HW_CACHE_MISSES},
    {"cache-references", PERF_COUNT_HW_CACHE_REFERENCES},
    {"cpu-cycles", PERF_COUNT_HW_CPU_CYCLES},
    {"frontend-stalls", PERF_COUNT_HW_STALLED_CYCLES_FRONTEND},
    {"instructions", PERF_COUNT_HW_INSTRUCTIONS},
    {"ref-cycles", PERF_COUNT_HW_REF_CPU_CYCLES},
};

Result<void> choose_event(const Probe& probe, perf_event_attr& attr) {
  bool is_software = probe.kind == ProbeKind::kSoftware;
  attr.type = is_software ? PERF_TYPE_SOFTWARE : PERF_TYPE_HARDWARE;
  auto find = [&](auto& events) -> Result<void> {
    for (const CounterConfig& event : events) {
      if (event.name != probe.symbol) continue;
      attr.config = event.config;
      return {};
    }
    return fail(ErrorCode::kNotFound, "there is no event '{}'", probe.symbol);
  };
  return is_software ? find(kSoftware) : find(kHardware);
}

void choose_watchpoint(const Probe& probe, perf_event_attr& attr) {
  attr.type = PERF_TYPE_BREAKPOINT;
  attr.bp_addr = probe.address.value_or(0);
  // The kernel wants the size of a long where code is watched.
  attr.bp_len = probe.watch_mode == "x" ? sizeof(long) : probe.watch_length;
  for (char mode : probe.watch_mode) {
    if (mode == 'r') attr.bp_type |= HW_BREAKPOINT_R;
    if (mode == 'w') attr.bp_type |= HW_BREAKPOINT_W;
    if (mode == 'x') attr.bp_type |= HW_BREAKPOINT_X;
  }
}

/// What the error of a counter means here.
Error explain(Error error, int errno_value, const Probe& probe) {
  bool is_absent = errno_value == ENOENT || errno_value == EOPNOTSUPP || errno_value == ENODEV;
  if (probe.kind == ProbeKind::kHardware && is_absent) {
    error.code = ErrorCode::kUnsupported;
    error.message =
        "this machine has no performance counter for it (a virtual machine without a PMU, or a CPU "
        "without this event); software:cpu-clock counts time instead";
  }
  if (probe.kind == ProbeKind::kWatchpoint && errno_value == ENOSPC) {
    error.code = ErrorCode::kBusy;
    error.message = "all four debug registers of the CPU are taken by other watchpoints";
  }
  return error;
}

}  // namespace

Result<std::string> tracefs() {
  bool is_denied = false;
  for (const char* path : {"/sys/kernel/tracing", "/sys/kernel/debug/tracing"}) {
    if (access((std::string(path) + "/events").c_str(), F_OK) == 0) return path;
    is_denied |= errno == EACCES || errno == EPERM;
  }
  if (is_denied) return fail(ErrorCode::kDenied, "tracefs can only be read by root");
  return fail(ErrorCode::kUnsupported, "no tracefs: mount -t tracefs nodev /sys/kernel/tracing");
}

Result<Fd> open_uprobe(
    const std::string& path, FileOffset offset, FileOffset semaphore, Moment moment, pid_t pid) {
  perf_event_attr attr = {};
  SPILE_TRY_VOID(choose_function_pmu("uprobe", moment, attr));
  attr.uprobe_path = reinterpret_cast<uint64_t>(path.c_str());
  attr.probe_offset = offset.value;
  if (semaphore.value != 0) SPILE_TRY_VOID(set_semaphore(semaphore, attr));
  auto event = perf_event_open(attr, {pid, pid < 0 ? 0 : -1});
  if (!event)
    return forward(event, "{} {}+{}", moment == Moment::kReturn ? "uretprobe" : "uprobe", path,
                   offset);
  return event;
}

Result<Fd> open_kprobe(const std::string& function, uint64_t offset, Moment moment) {
  perf_event_attr attr = {};
  SPILE_TRY_VOID(choose_function_pmu("kprobe", moment, attr));
  if (!function.empty()) attr.kprobe_func = reinterpret_cast<uint64_t>(function.c_str());
  attr.probe_offset = offset;
  int why = 0;
  auto event = perf_event_open(attr, {-1, 0}, &why);
  if (event) return event;
  switch (why) {
    case ENOENT: return fail(ErrorCode::kNotFound, "the kernel has no function '{}'", function);
    case EILSEQ:
      return fail(ErrorCode::kInvalid, "no instruction begins {} bytes into {}", offset, function);
    case EADDRNOTAVAIL:
      return fail(ErrorCode::kInvalid,
                  "several functions of the kernel are called {}: give the address of one",
                  function);
    default:
      return forward(event, "{} {}+{:#x}", moment == Moment::kReturn ? "kretprobe" : "kprobe",
                     function, offset);
  }
}

Result<Fd> open_tracepoint(const std::string& category, const std::string& name, pid_t pid) {
  SPILE_TRY(std::string root, tracefs());
  auto id = read_line(fmt::format("{}/events/{}/{}/id", root, category, name));
  if (!id) return forward(id, "tracepoint {}:{}", category, name);
  perf_event_attr attr = {};
  attr.type = PERF_TYPE_TRACEPOINT;
  attr.config = std::strtoull(id->c_str(), nullptr, 10);
  attr.sample_period = 1;
  auto event = perf_event_open(attr, {pid, pid < 0 ? 0 : -1});
  if (!event) return forward(event, "tracepoint {}:{}", category, name);
  return event;
}

Result<Fd> open_clock(uint64_t period_ns, int cpu) {
  perf_event_attr attr = {};
  attr.type = PERF_TYPE_SOFTWARE;
  attr.config = PERF_COUNT_SW_CPU_CLOCK;
  attr.sample_period = period_ns;
  auto event = perf_event_open(attr, {-1, cpu});
  if (!event) return forward(event, "a clock of {} ns", period_ns);
  return event;
}

Result<Fd> open_counter(const Probe& probe, Whose whose) {
  perf_event_attr attr = {};
  attr.sample_period = probe.event_count;
  if (probe.kind == ProbeKind::kWatchpoint) {
    choose_watchpoint(probe, attr);
  } else {
    SPILE_TRY_VOID(choose_event(probe, attr));
  }
  if (whose.tid >= 0) attr.inherit = attr.inherit_thread = 1;
  int why = 0;
  auto event = perf_event_open(attr, whose, &why);
  if (!event) return std::unexpected(explain(std::move(event.error()), why, probe));
  return event;
}

Result<Fd> open_reading_counter(const Probe& probe, Whose whose, bool on_exec) {
  perf_event_attr attr = {};
  SPILE_TRY_VOID(choose_event(probe, attr));
  attr.read_format = PERF_FORMAT_TOTAL_TIME_ENABLED | PERF_FORMAT_TOTAL_TIME_RUNNING;
  attr.inherit = whose.tid >= 0;
  attr.disabled = attr.enable_on_exec = on_exec;
  int why = 0;
  auto event = perf_event_open(attr, whose, &why);
  if (!event) return std::unexpected(explain(std::move(event.error()), why, probe));
  return event;
}

Result<void> counter_is_there(const Probe& probe) {
  auto event = open_reading_counter(probe, {0, -1}, true);
  if (!event) return forward(event);
  return {};
}

std::vector<int> parse_cpu_list(const std::string& text) {
  std::vector<int> cpus;
  const char* at = text.c_str();
  while (*at >= '0' && *at <= '9') {
    char* end = nullptr;
    long first = std::strtol(at, &end, 10), last = first;
    if (*end == '-') last = std::strtol(end + 1, &end, 10);
    for (long cpu = first; cpu <= last && cpu < 65536; cpu++) cpus.push_back(static_cast<int>(cpu));
    at = *end == ',' ? end + 1 : end;
  }
  return cpus;
}

Result<std::vector<int>> online_cpus() {
  SPILE_TRY(std::string line, read_line("/sys/devices/system/cpu/online"));
  auto cpus = parse_cpu_list(line);
  if (cpus.empty()) return fail(ErrorCode::kCorrupt, "the list of CPUs is '{}'", line);
  return cpus;
}

Result<std::vector<Whose>> everybody(const std::vector<pid_t>& pids) {
  std::vector<Whose> all;
  if (pids.empty()) {
    SPILE_TRY(auto cpus, online_cpus());
    for (int cpu : cpus) all.push_back({-1, cpu});
  }
  for (pid_t pid : pids) {
    SPILE_TRY(auto threads, os::list_threads(pid));
    for (pid_t tid : threads) all.push_back({tid, -1});
  }
  return all;
}

}  // namespace spile::kernel_engine
