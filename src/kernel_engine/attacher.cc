#include "kernel_engine/attacher.h"

#include <bpf/bpf.h>
#include <linux/bpf.h>
#include <unistd.h>

#include <array>
#include <cerrno>

namespace spile::kernel_engine {

using bundle::Probe;
using bundle::ProbeKind;
using engine::SiteReport;

namespace {

/// What the program of a probe is loaded as where its way to attach is not chosen yet.
LoadType load_type(ProbeKind kind) {
  switch (kind) {
    case ProbeKind::kBegin:
    case ProbeKind::kEnd:
    case ProbeKind::kSelf:
    case ProbeKind::kTest:
    case ProbeKind::kBench: return LoadType::kTestRun;
    case ProbeKind::kInterval: return LoadType::kPerfEvent;
    case ProbeKind::kTracepoint: return LoadType::kTracepoint;
    default: return bundle::is_sampling(kind) ? LoadType::kPerfEvent : LoadType::kKprobe;
  }
}

std::string counter_name(const Probe& probe, size_t events, bool by_thread) {
  return fmt::format("{} (perf event, {} {}{})",
                     probe.kind == ProbeKind::kWatchpoint ? "debug register" : probe.symbol, events,
                     by_thread ? "thread" : "CPU", events == 1 ? "" : "s");
}

constexpr uint64_t kEndbrBytes = 4;
/// The kernel's own number for "not supported", which is not in errno.h.
constexpr int kENotSupp = 524;

Error explain_typed(int errno_value, const Probe& probe) {
  bool is_function = probe.kind == ProbeKind::kFentry || probe.kind == ProbeKind::kFexit;
  if (is_function && (errno_value == kENotSupp || errno_value == EINVAL || errno_value == ENODEV))
    return {
        ErrorCode::kUnsupported,
        fmt::format("{}: this kernel cannot put a program there (ftrace does not trace this "
                    "function, or CONFIG_DYNAMIC_FTRACE_WITH_DIRECT_CALLS is missing); a kprobe "
                    "may work",
                    probe.name)};
  return errno_error(errno_value, probe.name);
}

}  // namespace

Result<void> Attacher::load() {
  for (size_t i = 0; i < bundle_.probes.size(); i++) {
    const Probe& probe = bundle_.probes[i];
    const bool is_uprobe = probe.kind == ProbeKind::kUprobe ||
                           probe.kind == ProbeKind::kUretprobe || probe.kind == ProbeKind::kUsdt;
    if (is_uprobe || probe.program < 0) continue;  // loaded as the kind of link asks
    const bool alone = bundle::is_typed(probe.kind) || bundle::is_sampling(probe.kind);
    auto loaded = alone ? programs_.of_probe(i, load_type(probe.kind))
                        : programs_.shared(probe.program, load_type(probe.kind));
    if (!loaded && bundle::is_typed(probe.kind)) {
      SPILE_TRY_VOID(leave_out(i, std::move(loaded.error())));
    } else if (!loaded) {
      return forward(loaded, "{}", probe.name);
    }
  }
  return {};
}

/// One of several functions of a pattern that takes no program is left out by name; a single one
/// must take it.
Result<void> Attacher::leave_out(size_t index, Error error) {
  const int program = bundle_.probes[index].program;
  size_t others = 0;
  for (size_t i = 0; i < bundle_.probes.size(); i++)
    others += i != index && bundle_.probes[i].program == program && !left_out_.contains(i) ? 1 : 0;
  if (others == 0 || error.code == ErrorCode::kDenied) return std::unexpected(std::move(error));
  left_out_.insert(index);
  refuse(index, std::move(error.message));
  return {};
}

Result<void> Attacher::attach() {
  delete_stale_events();
  SPILE_TRY_VOID(attach_uprobes());
  SPILE_TRY_VOID(attach_kprobes());
  watch_modules();
  for (size_t i = 0; i < bundle_.probes.size(); i++) {
    auto attached = attach_other(i);
    if (!attached) return forward(attached, "attach {}", bundle_.probes[i].name);
  }
  return {};
}

void Attacher::detach() {
  for (const Link& link : links_) missed_ += missed_by(link);
  links_.clear();
}

uint64_t Attacher::missed() {
  uint64_t missed = missed_;
  for (const Link& link : links_) missed += missed_by(link);
  return missed;
}

Result<bool> Attacher::no_session(Error error) {
  if (!is_out_of_reach(error)) return std::unexpected(std::move(error));
  why_no_session_ = std::move(error.message);
  return false;
}

AttachPath Attacher::single_path() {
  if (forced_ == AttachPath::kLink || forced_ == AttachPath::kIoctl) return forced_;
  return features_.perf_link() ? AttachPath::kLink : AttachPath::kIoctl;
}

Result<void> Attacher::keep(Result<Link> link) {
  if (!link) return forward(link);
  links_.push_back(std::move(*link));
  return {};
}

Result<void> Attacher::attach_other(size_t index) {
  const Probe& probe = bundle_.probes[index];
  switch (probe.kind) {
    case ProbeKind::kInterval: return attach_clock(index, {0});
    case ProbeKind::kProfile: {
      SPILE_TRY(auto cpus, online_cpus());
      return attach_clock(index, cpus);
    }
    case ProbeKind::kTracepoint: {
      const AttachPath path = single_path();
      SPILE_TRY(int fd, path == AttachPath::kLink
                            ? programs_.shared(probe.program, LoadType::kTracepoint)
                            : programs_.of_probe(index, LoadType::kTracepoint));
      SPILE_TRY(Fd event, open_tracepoint(probe.module, probe.symbol));
      report(index, fmt::format("tracepoint (perf event, {})", name_of(path)));
      return keep(hang_on(std::move(event), fd, path, bundle_.cookie_of(index)));
    }
    case ProbeKind::kSoftware:
    case ProbeKind::kHardware:
    case ProbeKind::kWatchpoint: return attach_counters(index);
    case ProbeKind::kRawTracepoint:
    case ProbeKind::kFentry:
    case ProbeKind::kFexit: return attach_typed(index);
    case ProbeKind::kIter: return run_iterator(index);
    default: return {};  // BEGIN, END, self, test, bench: run by us; uprobes, kprobes: in groups
  }
}

Result<void> Attacher::attach_clock(size_t index, const std::vector<int>& cpus) {
  const Probe& probe = bundle_.probes[index];
  const AttachPath path = single_path();
  SPILE_TRY(int fd, programs_.of_probe(index, LoadType::kPerfEvent));
  for (int cpu : cpus) {
    SPILE_TRY(Fd event, open_clock(probe.interval_ns, cpu));
    SPILE_TRY_VOID(keep(hang_on(std::move(event), fd, path, bundle_.cookie_of(index))));
  }
  report(index,
         fmt::format("cpu-clock (perf event, {} CPU{})", cpus.size(), cpus.size() == 1 ? "" : "s"));
  return {};
}

/// System-wide one event a CPU; for processes one a thread, inherited by those it starts.
Result<void> Attacher::attach_counters(size_t index) {
  const Probe& probe = bundle_.probes[index];
  const AttachPath path = single_path();
  SPILE_TRY(int fd, programs_.of_probe(index, LoadType::kPerfEvent));
  SPILE_TRY(auto all, everybody(scope_.pids));
  for (Whose whose : all) {
    SPILE_TRY(Fd event, open_counter(probe, whose));
    SPILE_TRY_VOID(keep(hang_on(std::move(event), fd, path, bundle_.cookie_of(index))));
  }
  report(index, counter_name(probe, all.size(), !scope_.pids.empty()), probe.address.value_or(0));
  return {};
}

Result<void> Attacher::attach_typed(size_t index) {
  const Probe& probe = bundle_.probes[index];
  if (left_out_.contains(index)) return {};
  SPILE_TRY(int fd, programs_.of_probe(index, LoadType::kRawTracepoint));
  int link = bpf_raw_tracepoint_open(nullptr, fd);
  if (link < 0) return leave_out(index, explain_typed(-link, probe));
  report(index, probe.kind == ProbeKind::kRawTracepoint ? "raw tracepoint (BTF link)"
                                                        : "ftrace trampoline (BTF link)");
  return keep(Link{.definition = {}, .event = Fd(), .link = Fd(link)});
}

/// Reading an iterator runs its program for each object. It runs once, here.
Result<void> Attacher::run_iterator(size_t index) {
  SPILE_TRY(int fd, programs_.of_probe(index, LoadType::kIter));
  int made = bpf_link_create(fd, 0, BPF_TRACE_ITER, nullptr);
  if (made < 0) return fail_errno(-made, "make an iterator");
  Fd link(made);
  Fd iterator(bpf_iter_create(link.get()));
  if (!iterator) return fail_errno(errno, "open an iterator");
  std::array<char, 4096> text = {};
  ssize_t got = 0;
  do {
    got = read(iterator.get(), text.data(), text.size());
  } while (got > 0 || (got < 0 && (errno == EAGAIN || errno == EINTR)));
  if (got < 0) return fail_errno(errno, "read an iterator");
  report(index, "iterator");
  return keep(Link{.definition = {}, .event = Fd(), .link = std::move(link)});
}

void Attacher::report(size_t probe, std::string mechanism, uint64_t address) {
  if (bundle_.probes[probe].entry_of >= 0) return;
  SiteReport site;
  site.probe = static_cast<int>(probe);
  site.location = bundle_.probes[probe].name;
  site.address = address;
  site.mechanism = std::move(mechanism);
  sites_.push_back(std::move(site));
}

void Attacher::refuse(size_t probe, std::string reason) {
  if (bundle_.probes[probe].entry_of >= 0) return;
  SiteReport site;
  site.probe = static_cast<int>(probe);
  site.location = bundle_.probes[probe].name;
  site.address = bundle_.probes[probe].address.value_or(0);
  site.refused = true;
  site.reason = std::move(reason);
  sites_.push_back(std::move(site));
}

bool Attacher::calls_cookie(int program) const {
  return program >= 0 && calls(bundle_.programs.at(static_cast<size_t>(program)).code,
                               bpf::Helper::kGetAttachCookie);
}

namespace {

/// Kprobes that are in place, by where they are.
class InPlace {
 public:
  explicit InPlace(const std::vector<ActiveKprobe>& all) {
    for (const ActiveKprobe& one : all) {
      by_place_.try_emplace({one.type, one.place}, &one);
      by_address_.try_emplace({one.type, one.address}, &one);
    }
  }
  /// A function that begins with endbr64 is probed behind it. Null: not found.
  const ActiveKprobe* find(const Probe& probe) const {
    const char type = probe.kind == ProbeKind::kKprobe ? 'k' : 'r';
    for (uint64_t behind : {uint64_t{0}, probe.offset == 0 ? kEndbrBytes : 0}) {
      const ActiveKprobe* found =
          probe.address
              ? look(by_address_, std::pair(type, *probe.address + behind))
              : look(by_place_,
                     std::pair(type, fmt::format("{}+{:#x}", probe.symbol, probe.offset + behind)));
      if (found != nullptr) return found;
    }
    return nullptr;
  }

 private:
  template <typename Key>
  static const ActiveKprobe* look(const std::map<Key, const ActiveKprobe*>& known, const Key& key) {
    const auto found = known.find(key);
    return found == known.end() ? nullptr : found->second;
  }
  std::map<std::pair<char, std::string>, const ActiveKprobe*> by_place_;
  std::map<std::pair<char, uint64_t>, const ActiveKprobe*> by_address_;
};

}  // namespace

/// For kprobes also where they are and how the kernel reaches them, as kprobes/list tells.
std::vector<SiteReport> Attacher::sites() const {
  auto sites = sites_;
  const auto active = active_kprobes();
  if (!active) return sites;
  const InPlace in_place(*active);
  for (SiteReport& site : sites) {
    const Probe& probe = bundle_.probes[static_cast<size_t>(site.probe)];
    bool is_kprobe = probe.kind == ProbeKind::kKprobe || probe.kind == ProbeKind::kKretprobe;
    const ActiveKprobe* found = is_kprobe && !site.refused ? in_place.find(probe) : nullptr;
    if (found == nullptr) continue;
    site.address = found->address;
    if (!found->state.empty()) site.reason = found->state;
  }
  return sites;
}

/// The other ways hold the module, so that it cannot be unloaded. A name may be a module's without
/// saying so.
void Attacher::watch_modules() {
  if (single_kprobes_.empty()) return;
  const auto active = active_kprobes();
  const InPlace in_place(active ? *active : std::vector<ActiveKprobe>());
  for (size_t index : single_kprobes_) {
    const Probe& probe = bundle_.probes[index];
    std::string module = probe.module == "vmlinux" ? "" : probe.module;
    const ActiveKprobe* found = module.empty() ? in_place.find(probe) : nullptr;
    if (found != nullptr) module = found->module;
    if (!module.empty() && probe.entry_of < 0) watched_[module].push_back(probe.name);
  }
}

std::vector<std::string> Attacher::take_warnings() {
  std::vector<std::string> warnings;
  std::erase_if(watched_, [&](const auto& entry) {
    const auto& [module, probes] = entry;
    if (access(("/sys/module/" + module).c_str(), F_OK) == 0) return false;
    warnings.push_back(fmt::format(
        "the module {} has been unloaded: {} nothing any more, also when it is loaded again",
        module,
        probes.size() == 1
            ? probes.front() + " sees"
            : fmt::format("{} and {} more of its probes see", probes.front(), probes.size() - 1)));
    return true;
  });
  return warnings;
}

}  // namespace spile::kernel_engine
