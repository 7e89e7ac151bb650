// Probes of kernel functions: sessions, links over many, else one by one.
//
// A pattern was expanded to what ftrace can trace; of several functions one that the kernel refuses
// all the same is left out with its reason. A single function must take its probe.
#include <fmt/ranges.h>
#include <unistd.h>

#include <algorithm>
#include <optional>

#include "kernel_engine/attacher.h"
#include "symbols/kallsyms.h"

namespace spile::kernel_engine {

using bundle::Probe;
using bundle::ProbeKind;

namespace {

std::vector<std::string> names_of(const bundle::Bundle& bundle, const std::vector<size_t>& probes) {
  std::vector<std::string> names;
  for (size_t index : probes) names.push_back(bundle.probes[index].symbol);
  return names;
}

bool has_kprobe_events() {
  auto root = tracefs();
  return root && access((*root + "/kprobe_events").c_str(), F_OK) == 0;
}

/// " (did you mean vfs_read?)"
std::string near_names(const std::string& symbol) {
  auto kernel = symbols::Kallsyms::load();
  if (!kernel) return "";
  const auto names = kernel->nearest(symbol);
  return names.empty() ? "" : fmt::format("; did you mean {}?", fmt::join(names, " or "));
}

}  // namespace

/// Where all of a group can go by one link, as far as can be told before.
bool Attacher::fprobe_serves(const KprobeGroup& group) {
  const auto& program = bundle_.programs.at(static_cast<size_t>(group.program));
  // The stack pointer pairs a call with its return: kprobes and kretprobes show it alike, the ways
  // of fprobe change with the kernel.
  for (const Probe& probe : bundle_.probes) {
    const bool is_pair = probe.entry_of >= 0 && probe.kind == ProbeKind::kKprobe;
    if (is_pair && (probe.program == group.program ||
                    bundle_.probes[static_cast<size_t>(probe.entry_of)].program == group.program))
      return false;
  }
  return std::ranges::all_of(group.probes,
                             [&](size_t i) { return is_plain_function(bundle_.probes[i]); }) &&
         !calls(program.code, bpf::Helper::kOverrideReturn) &&
         reads_only_arguments(bundle_, program);
}

/// One program at both ends of the same functions. False: the kernel or the programs do not allow
/// it.
Result<bool> Attacher::attach_session(const KprobeGroup& entry, const KprobeGroup& at_return) {
  const bool is_single = entry.probes.size() == 1;
  const bool knows_probe = calls_cookie(entry.program) || calls_cookie(at_return.program);
  if (!fprobe_serves(entry) || !fprobe_serves(at_return)) return false;
  if (knows_probe && !is_single) return false;  // a session has one cookie for both ends
  Programs::Pair pair{entry.program, at_return.program, {}, {}};
  if (knows_probe) pair.entry_probe = entry.probes.front(), pair.return_probe = at_return.probes[0];
  auto program = programs_.session(pair, LoadType::kKprobeSession);
  if (!program) return no_session(std::move(program.error()));
  const auto names = names_of(bundle_, entry.probes);
  auto link = link_kprobes(*program, kTraceKprobeSession, names,
                           std::vector<uint64_t>(names.size()), Moment::kEntry);
  if (!link) return no_session(std::move(link.error()));
  links_.push_back({.definition = {}, .event = Fd(), .link = std::move(*link)});
  for (size_t index : entry.probes) report(index, "kprobe (kprobe.session)");
  for (size_t index : at_return.probes) report(index, "kretprobe (kprobe.session)");
  return true;
}

Result<bool> Attacher::attach_kprobe_multi(const KprobeGroup& group) {
  if (!fprobe_serves(group)) return false;
  std::vector<uint64_t> cookies;
  for (size_t index : group.probes) cookies.push_back(bundle_.cookie_of(index));
  SPILE_TRY(int fd, programs_.shared(group.program, LoadType::kKprobeMulti));
  auto link =
      link_kprobes(fd, kTraceKprobeMulti, names_of(bundle_, group.probes), cookies, group.moment);
  if (!link && is_out_of_reach(link.error())) return false;
  if (!link) return forward(link);
  links_.push_back({.definition = {}, .event = Fd(), .link = std::move(*link)});
  for (size_t index : group.probes)
    report(index, fmt::format("{} (kprobe.multi)",
                              group.moment == Moment::kReturn ? "kretprobe" : "kprobe"));
  return true;
}

/// One link for the kernel's own functions; those of modules, which it cannot name, one by one.
Result<bool> Attacher::attach_plain_by_multi(const KprobeGroup& group) {
  const auto [plain, others] = split_plain(bundle_, group);
  if (plain.probes.empty() || (is_forced(AttachPath::kMulti) && !others.probes.empty()))
    return false;
  SPILE_TRY(bool attached, attach_kprobe_multi(plain));
  if (attached && !others.probes.empty()) SPILE_TRY_VOID(attach_each_kprobe(others, true));
  return attached;
}

Result<void> Attacher::attach_single_kprobe(size_t index, Moment moment, AttachPath path) {
  const Probe& probe = bundle_.probes[index];
  const std::string name = kernel_name(probe);
  SPILE_TRY(int fd, path == AttachPath::kLink ? programs_.shared(probe.program, LoadType::kKprobe)
                                              : programs_.of_probe(index, LoadType::kKprobe));
  const char* type = moment == Moment::kReturn ? "kretprobe" : "kprobe";
  if (path == AttachPath::kTracefs) {
    std::string place = probe.address ? fmt::format("{:#x}", *probe.address)
                                      : fmt::format("{}+{}", name, probe.offset);
    SPILE_TRY(auto definition, TracefsEvent::define_kprobe(place, moment));
    SPILE_TRY(Fd event, open_tracepoint(definition.group(), definition.name()));
    SPILE_TRY(Link link, hang_on(std::move(event), fd, AttachPath::kIoctl, 0));
    link.definition.emplace(std::move(definition));
    links_.push_back(std::move(link));
    report(index, fmt::format("{} (tracefs event)", type));
    return {};
  }
  SPILE_TRY(Fd event, open_kprobe(name, probe.address.value_or(probe.offset), moment));
  SPILE_TRY_VOID(keep(hang_on(std::move(event), fd, path, bundle_.cookie_of(index))));
  report(index, fmt::format("{} (perf event, {})", type, name_of(path)), probe.address.value_or(0));
  return {};
}

/// Why the kernel does not take a kprobe: it answers a handful of reasons with one number.
Error Attacher::explain_kprobe(Error error, const Probe& probe) const {
  error = std::move(error).context("attach " + probe.name);
  if (error.code == ErrorCode::kNotFound) error.message += near_names(probe.symbol);
  if (error.code != ErrorCode::kInvalid && error.code != ErrorCode::kUnsupported) return error;
  auto blacklist = kprobe_blacklist();
  const BlacklistEntry* entry =
      blacklist ? find_blacklisted(*blacklist, probe.address ? "" : probe.symbol,
                                   probe.address.value_or(0))
                : nullptr;
  if (entry != nullptr) {
    return {ErrorCode::kUnsafe,
            fmt::format("{}: {} is in the kernel's blacklist (kprobes/blacklist, {:#x}-{:#x}): the "
                        "kernel runs this code itself to serve a probe",
                        probe.name, entry->function, entry->begin, entry->end)};
  }
  if (error.message.find("perf_event_open") != std::string::npos)
    error.message +=
        " (the kernel allows no probe there: not in its code, or in a section that cannot be "
        "probed)";
  return error;
}

/// One of several that the kernel refuses is left out by name; `is_rest`: of a pattern whose other
/// functions are attached.
Result<void> Attacher::attach_each_kprobe(const KprobeGroup& group, bool is_rest) {
  AttachPath path = single_path();
  if (is_forced(AttachPath::kTracefs) || !features_.kprobe_events()) path = AttachPath::kTracefs;
  if (path == AttachPath::kTracefs && !has_kprobe_events())
    return fail(ErrorCode::kUnsupported,
                "{}: this kernel has no kprobes (CONFIG_KPROBES, CONFIG_KPROBE_EVENTS)",
                bundle_.probes[group.probes.front()].name);
  std::optional<Error> refused;
  size_t attached = 0;
  for (size_t index : group.probes) {
    auto one = attach_single_kprobe(index, group.moment, path);
    if (one) {
      attached++;
      single_kprobes_.push_back(index);
      continue;
    }
    Error error = explain_kprobe(std::move(one.error()), bundle_.probes[index]);
    if (error.code == ErrorCode::kDenied || error.code == ErrorCode::kInternal)
      return std::unexpected(std::move(error));
    if (is_rest || group.probes.size() > 1) refuse(index, error.message);
    if (!refused) refused = std::move(error);
  }
  if (attached == 0 && refused && !is_rest) return std::unexpected(std::move(*refused));
  return {};
}

Result<void> Attacher::attach_kprobes() {
  const auto groups = group_kprobes(bundle_);
  std::vector<bool> done(groups.size());
  const bool try_session = is_forced(AttachPath::kAuto) || is_forced(AttachPath::kSession);
  const bool try_multi = is_forced(AttachPath::kAuto) || is_forced(AttachPath::kMulti);
  // Sessions first: the return of a pair may come before its entry, and must not be attached twice.
  for (size_t i = 0; try_session && i < groups.size(); i++) {
    if (!groups[i].partner || groups[i].moment != Moment::kEntry) continue;
    SPILE_TRY(bool attached, attach_session(groups[i], groups[*groups[i].partner]));
    if (attached) done[i] = done[*groups[i].partner] = true;
  }
  for (size_t i = 0; i < groups.size(); i++) {
    const KprobeGroup& group = groups[i];
    if (done[i]) continue;
    if (is_forced(AttachPath::kSession))
      return fail(ErrorCode::kUnsupported, "--attach session: {}",
                  why_no_session_.empty()
                      ? "this kernel has no kprobe.session, or the script is not a kprobe and a "
                        "kretprobe of the same functions"
                      : why_no_session_);
    if (try_multi) {
      SPILE_TRY(bool attached, attach_plain_by_multi(group));
      done[i] = attached;
    }
    if (done[i]) continue;
    if (is_forced(AttachPath::kMulti))
      return fail(ErrorCode::kUnsupported,
                  "--attach multi: this kernel has no kprobe.multi links, or they cannot serve {}",
                  bundle_.probes[group.probes.front()].name);
    SPILE_TRY_VOID(attach_each_kprobe(group, false));
  }
  return {};
}

}  // namespace spile::kernel_engine
