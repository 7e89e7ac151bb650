// Probes of user code: by uprobe.multi where the kernel has it, one link a program and file.
#include <map>
#include <optional>

#include "kernel_engine/attacher.h"
#include "kernel_engine/patched_sites.h"

namespace spile::kernel_engine {

using bundle::Probe;
using bundle::ProbeKind;

namespace {

bool is_user_code(ProbeKind kind) {
  return kind == ProbeKind::kUprobe || kind == ProbeKind::kUretprobe || kind == ProbeKind::kUsdt;
}

Moment moment_of(ProbeKind kind) {
  return kind == ProbeKind::kUretprobe ? Moment::kReturn : Moment::kEntry;
}

const char* name_of(ProbeKind kind) {
  return kind == ProbeKind::kUretprobe ? "uretprobe" : "uprobe";
}

}  // namespace

/// The places of these probes. One of many that cannot be probed is left out by name.
Result<std::vector<UprobeSite>> Attacher::find_uprobe_sites(const std::vector<size_t>& probes) {
  std::vector<UprobeSite> sites;
  std::optional<Error> refused;
  for (size_t index : probes) {
    auto found = resolver_.resolve(bundle_.probes[index]);
    if (found) {
      for (const FileSite& site : *found)
        sites.push_back({site.offset, site.semaphore, bundle_.cookie_of(index), index});
      continue;
    }
    ErrorCode code = found.error().code;
    bool is_refusal = code == ErrorCode::kUnsupported || code == ErrorCode::kUnsafe ||
                      code == ErrorCode::kInvalid;
    if (!is_refusal || probes.size() == 1) return std::unexpected(std::move(found.error()));
    refuse(index, found.error().message);
    if (!refused) refused = std::move(found.error());
  }
  if (sites.empty() && refused) return std::unexpected(std::move(*refused));
  return sites;
}

Result<bool> Attacher::may_use_uprobe_multi() {
  const bool has_it =
      scope_.pids.empty() ? features_.uprobe_multi() : features_.uprobe_multi_with_pid();
  if (is_forced(AttachPath::kAuto)) return has_it;
  if (!is_forced(AttachPath::kMulti)) return false;
  if (has_it) return true;
  return fail(ErrorCode::kUnsupported, "--attach multi: this kernel has no uprobe.multi links{}",
              scope_.pids.empty() ? "" : " for one process");
}

Result<void> Attacher::attach_single_uprobe(const UprobeSite& site, AttachPath path) {
  const Probe& probe = bundle_.probes[site.probe];
  const Moment moment = moment_of(probe.kind);
  const bool has_cookie = path == AttachPath::kLink;
  std::vector<pid_t> pids = scope_.pids.empty() ? std::vector<pid_t>{-1} : scope_.pids;
  for (pid_t pid : pids) {
    SPILE_TRY(int fd, has_cookie ? programs_.shared(probe.program, LoadType::kKprobe)
                                 : programs_.of_probe(site.probe, LoadType::kKprobe));
    std::optional<TracefsEvent> definition;
    Fd event;
    if (path == AttachPath::kTracefs) {
      SPILE_TRY(auto defined,
                TracefsEvent::define_uprobe(probe.path, site.offset, site.semaphore, moment));
      definition.emplace(std::move(defined));
      SPILE_TRY(event, open_tracepoint(definition->group(), definition->name(), pid));
    } else {
      SPILE_TRY(event, open_uprobe(probe.path, site.offset, site.semaphore, moment, pid));
    }
    SPILE_TRY(Link link,
              hang_on(std::move(event), fd,
                      path == AttachPath::kTracefs ? AttachPath::kIoctl : path, site.cookie));
    if (definition) link.definition.emplace(std::move(*definition));
    links_.push_back(std::move(link));
  }
  report(site.probe,
         fmt::format("{} ({})", name_of(probe.kind),
                     path == AttachPath::kTracefs
                         ? "tracefs event"
                         : fmt::format("perf event, {}", kernel_engine::name_of(path))),
         site.offset.value);
  return {};
}

Result<void> Attacher::attach_uprobe_group(const std::string& path,
                                           const std::vector<size_t>& probes) {
  SPILE_TRY(const auto sites, find_uprobe_sites(probes));
  SPILE_TRY_VOID(refuse_patched_sites(path, sites));
  SPILE_TRY(const bool use_multi, may_use_uprobe_multi());
  if (!use_multi) {
    const AttachPath single = is_forced(AttachPath::kTracefs) ? forced_ : single_path();
    for (const UprobeSite& site : sites) SPILE_TRY_VOID(attach_single_uprobe(site, single));
    return {};
  }
  const Probe& first = bundle_.probes[probes.front()];  // a program has probes of one kind
  SPILE_TRY(int fd, programs_.shared(first.program, LoadType::kUprobeMulti));
  std::vector<pid_t> pids = scope_.pids.empty() ? std::vector<pid_t>{0} : scope_.pids;
  for (pid_t pid : pids) {
    SPILE_TRY(Fd link, link_uprobes(fd, path, sites, moment_of(first.kind), pid));
    links_.push_back({.definition = {}, .event = Fd(), .link = std::move(link)});
  }
  for (const UprobeSite& site : sites)
    report(site.probe, fmt::format("{} (uprobe.multi)", name_of(first.kind)), site.offset.value);
  return {};
}

/// All uprobes of one program and file share a link. Groups keep the order of their first probe.
Result<void> Attacher::attach_uprobes() {
  if (is_forced(AttachPath::kSession) &&
      std::ranges::any_of(bundle_.probes, [](const Probe& p) { return is_user_code(p.kind); }))
    return fail(ErrorCode::kUnsupported, "--attach session: sessions of uprobes are not built yet");
  std::map<std::pair<std::string, int>, std::vector<size_t>> groups;
  std::vector<std::pair<std::string, int>> order;
  for (size_t i = 0; i < bundle_.probes.size(); i++) {
    const Probe& probe = bundle_.probes[i];
    if (!is_user_code(probe.kind)) continue;
    auto key = std::pair(probe.path, probe.program);
    if (groups[key].empty()) order.push_back(key);
    groups[key].push_back(i);
  }
  for (const auto& key : order) SPILE_TRY_VOID(attach_uprobe_group(key.first, groups[key]));
  return {};
}

}  // namespace spile::kernel_engine
