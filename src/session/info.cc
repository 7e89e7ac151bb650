#include "session/info.h"

#include <fmt/format.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <string>
#include <utility>
#include <vector>

#include "bundle/bundle.h"
#include "kernel_engine/features.h"
#include "kernel_engine/kernel_engine.h"
#include "kernel_engine/kernel_types.h"
#include "kernel_engine/knowledge.h"
#include "kernel_engine/perf_event.h"
#include "kernel_engine/program.h"
#include "output/value.h"

namespace spile::session {

namespace {

using kernel_engine::Features;

struct Fact {
  std::string name;
  bool works = false;
  std::string detail;  ///< how, or why not and how to get it
};
struct Section {
  std::string title;
  std::vector<Fact> facts;
};

std::string first_line(const char* path) {
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  return line;
}

Fact yes_or(std::string name, bool works, std::string how, std::string why_not) {
  return {std::move(name), works, works ? std::move(how) : std::move(why_not)};
}

template <typename T>
Fact of_result(std::string name, const Result<T>& result, std::string how) {
  return {std::move(name), result.has_value(), result ? std::move(how) : result.error().message};
}

/// Of those that tracing asks for, the ones that this process has.
std::string capabilities() {
  // include/uapi/linux/capability.h
  constexpr std::pair<int, const char*> kWanted[] = {
      {19, "CAP_SYS_PTRACE"}, {21, "CAP_SYS_ADMIN"}, {24, "CAP_SYS_RESOURCE"},
      {34, "CAP_SYSLOG"},     {38, "CAP_PERFMON"},   {39, "CAP_BPF"}};
  std::ifstream status("/proc/self/status");
  uint64_t held = 0;
  for (std::string line; std::getline(status, line);) {
    if (line.starts_with("CapEff:")) held = std::strtoull(line.c_str() + 7, nullptr, 16);
  }
  std::string names;
  for (const auto& [bit, name] : kWanted) {
    if ((held >> bit & 1) != 0) names += fmt::format("{}{}", names.empty() ? "" : " ", name);
  }
  return names;
}

/// Whose processes the user engine may take: Yama's word, where there is one.
Fact other_processes(const std::string& held) {
  const std::string scope = first_line("/proc/sys/kernel/yama/ptrace_scope");
  const bool may_all = held.find("CAP_SYS_PTRACE") != std::string::npos;
  if (may_all && scope != "3") return {"processes (user engine)", true, "all"};
  if (scope.empty() || scope == "0") return {"processes (user engine)", true, "your own"};
  return {"processes (user engine)", false,
          fmt::format("commands that it starts (-c) only: kernel.yama.ptrace_scope is {}{}", scope,
                      scope == "3" ? ", until the machine starts anew"
                                   : "; sysctl kernel.yama.ptrace_scope=0, or CAP_SYS_PTRACE")};
}

Section machine() {
  utsname names = {};
  uname(&names);
  const std::string lock = kernel_engine::lockdown();
  const std::string paranoid = first_line("/proc/sys/kernel/perf_event_paranoid");
  const std::string pointers = first_line("/proc/sys/kernel/kptr_restrict");
  const bool is_root = geteuid() == 0;
  const std::string held = capabilities();
  return {
      "machine",
      {{"kernel", true, names.release},
       yes_or("root", is_root, "yes",
              "no: the user engine works on your own processes; the kernel engine needs root, or "
              "CAP_BPF and CAP_PERFMON"),
       yes_or("capabilities", !held.empty(), held,
              "none that tracing asks for: setcap cap_bpf,cap_perfmon+ep, or root"),
       other_processes(held),
       yes_or("lockdown", lock.empty() || lock == "none", lock.empty() ? "none" : lock,
              lock + ": the kernel hides its memory and its list of functions; it ends with "
                     "Secure Boot off or lockdown=none"),
       yes_or("perf_event_paranoid", is_root || std::atoi(paranoid.c_str()) < 3, paranoid,
              paranoid + ": sysctl kernel.perf_event_paranoid=2 allows counters of your own "
                         "processes"),
       yes_or("kernel addresses", is_root || pointers == "0", "visible",
              "hidden: sysctl kernel.kptr_restrict=0, or root")}};
}

Section programs(Features& features) {
  const auto may_load = features.programs();
  Section section{"kernel engine", {of_result("load programs", may_load, "yes")}};
  if (!may_load) return section;
  auto add = [&](const char* name, bool works, const char* how, const char* why) {
    section.facts.push_back(yes_or(name, works, how, why));
  };
  add("ring buffer", features.ring_buffer(), "records in time order",
      "needs Linux 5.8; a perf buffer a CPU is used (--records perf)");
  add("loops", features.loops(), "of up to 65536 rounds, and walks through maps",
      "needs Linux 5.17 (bpf_loop); ranges of up to 32 rounds work");
  add("perf event links", features.perf_link(), "with cookies (--attach link)",
      "needs Linux 5.15; ioctl is used (--attach ioctl)");
  add("kprobe.session", features.kprobe_session(), "entry and return by one program",
      "needs Linux 6.10 and CONFIG_FPROBE; two links are used");
  add("kprobe.multi", features.kprobe_multi(), "many functions by one link",
      "needs Linux 5.18 and CONFIG_FPROBE; one perf event a function is used");
  add("uprobe.session", features.uprobe_session(), "entry and return by one program",
      "needs Linux 6.13; two links are used");
  add("uprobe.multi", features.uprobe_multi(), "many places by one link",
      "needs Linux 6.6; one perf event a place is used");
  add("uprobe.multi of one process", features.uprobe_multi_with_pid(), "yes",
      "needs Linux 6.10; one perf event a place is used");
  return section;
}

Fact counter_fact(bundle::ProbeKind kind, const char* event, const char* how) {
  bundle::Probe probe{.kind = kind, .name = event};
  probe.symbol = event;
  return of_result(kind == bundle::ProbeKind::kHardware ? "hardware, stat" : "software, profile",
                   kernel_engine::counter_is_there(probe), how);
}

Section probes(Features& features) {
  Section section{"probe types", {}};
  const auto tracefs = kernel_engine::tracefs();
  section.facts.push_back(of_result("tracepoint", tracefs, tracefs ? *tracefs : ""));
  section.facts.push_back(
      yes_or("kprobe, kretprobe", features.kprobe_events(), "yes",
             "this kernel has no kprobes (CONFIG_KPROBES, CONFIG_KPROBE_EVENTS)"));
  section.facts.push_back(yes_or(
      "uprobe, uretprobe, usdt", access("/sys/bus/event_source/devices/uprobe/type", R_OK) == 0,
      "system-wide; with -p the user engine is used",
      "system-wide ones need CONFIG_UPROBE_EVENTS; with -p the user engine needs none"));
  kernel_engine::KernelTypes types;
  section.facts.push_back(of_result("rawtracepoint, iter", types.iterators("task"),
                                    "typed by /sys/kernel/btf/vmlinux"));
  section.facts.push_back(
      of_result("fentry, fexit", kernel_engine::takes_function_programs(types), "yes"));
  section.facts.push_back(counter_fact(bundle::ProbeKind::kSoftware, "cpu-clock", "yes"));
  section.facts.push_back(
      counter_fact(bundle::ProbeKind::kHardware, "cpu-cycles", "the CPU has counters"));
  return section;
}

Section knowledge() {
  const auto traceable = kernel_engine::traceable_functions();
  const auto blacklist = kernel_engine::kprobe_blacklist();
  const auto active = kernel_engine::active_kprobes();
  const auto memory = kernel_engine::shows_its_memory();
  kernel_engine::KernelTypes types;
  const auto of_kernel = types.kernel();
  return {"knowledge",
          {of_result("functions that ftrace traces", traceable,
                     fmt::format("{}", traceable ? traceable->size() : 0)),
           of_result("kprobes/blacklist", blacklist,
                     fmt::format("{} ranges", blacklist ? blacklist->size() : 0)),
           of_result("kprobes/list", active,
                     fmt::format("{} in place (spile sites)", active ? active->size() : 0)),
           of_result("kernel memory", memory, "/proc/kcore: spile sites shows patched code"),
           of_result("kernel types", of_kernel, "/sys/kernel/btf/vmlinux: structs, args")}};
}

void print_text(const std::vector<Section>& sections) {
  for (const Section& section : sections) {
    fmt::print("{}\n", section.title);
    for (const Fact& fact : section.facts)
      fmt::print("  {:<3} {:<36} {}\n", fact.works ? "yes" : "no", fact.name, fact.detail);
  }
}

void print_json(const std::vector<Section>& sections) {
  for (const Section& section : sections) {
    for (const Fact& fact : section.facts)
      fmt::print(R"({{"type": "info", "section": {}, "name": {}, "works": {}, "detail": {}}})"
                 "\n",
                 output::json_string(section.title), output::json_string(fact.name), fact.works,
                 output::json_string(fact.detail));
  }
}

}  // namespace

int info(Format format) {
  Features features;
  const std::vector<Section> sections = {machine(), programs(features), probes(features),
                                         knowledge()};
  if (format == Format::kJson)
    print_json(sections);
  else
    print_text(sections);
  return kOk;
}

}  // namespace spile::session
