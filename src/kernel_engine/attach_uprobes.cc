// Probes of user code: by uprobe.session and uprobe.multi where the kernel has them, one link a
// program (or pair of programs) and file.
#include <algorithm>
#include <map>
#include <numeric>
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

std::vector<uint64_t> sorted_offsets(const std::vector<UprobeSite>& sites) {
  std::vector<uint64_t> offsets;
  for (const UprobeSite& site : sites) offsets.push_back(site.offset.value);
  std::ranges::sort(offsets);
  return offsets;
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

Result<void> Attacher::attach_uprobe_group(UprobeGroup& group) {
  SPILE_TRY(const bool use_multi, may_use_uprobe_multi());
  if (!use_multi) {
    const AttachPath single = is_forced(AttachPath::kTracefs) ? forced_ : single_path();
    for (const UprobeSite& site : group.sites) SPILE_TRY_VOID(attach_single_uprobe(site, single));
    return {};
  }
  const Probe& first = bundle_.probes[group.probes.front()];  // a program has probes of one kind
  SPILE_TRY(int fd, programs_.shared(group.program, LoadType::kUprobeMulti));
  std::vector<pid_t> pids = scope_.pids.empty() ? std::vector<pid_t>{0} : scope_.pids;
  for (pid_t pid : pids) {
    SPILE_TRY(Fd link, link_uprobes(fd, kTraceUprobeMulti, group.path, group.sites,
                                    moment_of(first.kind), pid));
    links_.push_back({.definition = {}, .event = Fd(), .link = std::move(link)});
  }
  for (const UprobeSite& site : group.sites)
    report(site.probe, fmt::format("{} (uprobe.multi)", name_of(first.kind)), site.offset.value);
  return {};
}

/// The same places, no semaphores, and nobody asks which of several functions it is: a session has
/// one cookie for both ends.
bool Attacher::may_be_uprobe_session(const UprobeGroup& entry, const UprobeGroup& at_return) {
  const auto kind_of = [&](const UprobeGroup& group) {
    return bundle_.probes[group.probes.front()].kind;
  };
  const bool knows_probe = calls_cookie(entry.program) || calls_cookie(at_return.program);
  return !entry.is_attached && !at_return.is_attached && entry.path == at_return.path &&
         kind_of(entry) == ProbeKind::kUprobe && kind_of(at_return) == ProbeKind::kUretprobe &&
         (entry.sites.size() == 1 || !knows_probe) &&
         sorted_offsets(entry.sites) == sorted_offsets(at_return.sites);
}

/// One program at both ends of the same functions, or nothing: then both groups go their own ways.
Result<bool> Attacher::attach_uprobe_session(UprobeGroup& entry, UprobeGroup& at_return) {
  Programs::Pair pair{entry.program, at_return.program, {}, {}};
  if (calls_cookie(entry.program) || calls_cookie(at_return.program))
    pair.entry_probe = entry.probes.front(), pair.return_probe = at_return.probes.front();
  auto program = programs_.session(pair, LoadType::kUprobeSession);
  if (!program) return no_session(std::move(program.error()));
  std::vector<pid_t> pids = scope_.pids.empty() ? std::vector<pid_t>{0} : scope_.pids;
  std::vector<Fd> made;
  for (pid_t pid : pids) {
    auto link =
        link_uprobes(*program, kTraceUprobeSession, entry.path, entry.sites, Moment::kEntry, pid);
    if (!link) return no_session(std::move(link.error()));
    made.push_back(std::move(*link));
  }
  for (Fd& link : made)
    links_.push_back({.definition = {}, .event = Fd(), .link = std::move(link)});
  for (const UprobeGroup* group : {&entry, &at_return}) {
    for (const UprobeSite& site : group->sites)
      report(site.probe,
             fmt::format("{} (uprobe.session)", name_of(bundle_.probes[site.probe].kind)),
             site.offset.value);
  }
  return true;
}

/// For each group the other half of its session; its own number: none. A return may come before its
/// entry in the script.
std::vector<size_t> Attacher::pair_uprobes(const std::vector<UprobeGroup>& groups) {
  std::vector<size_t> partners(groups.size());
  std::iota(partners.begin(), partners.end(), size_t{0});
  for (size_t entry = 0; entry < groups.size(); entry++) {
    for (size_t other = 0; other < groups.size() && partners[entry] == entry; other++) {
      if (partners[other] != other || !may_be_uprobe_session(groups[entry], groups[other]) ||
          !features_.uprobe_session() ||
          (!scope_.pids.empty() && !features_.uprobe_multi_with_pid()))
        continue;
      partners[entry] = other;
      partners[other] = entry;
    }
  }
  return partners;
}

/// Groups keep the order of their first probe. Their places are known and free.
Result<std::vector<Attacher::UprobeGroup>> Attacher::group_uprobes() {
  std::vector<UprobeGroup> groups;
  std::map<std::pair<std::string, int>, size_t> known;
  for (size_t i = 0; i < bundle_.probes.size(); i++) {
    const Probe& probe = bundle_.probes[i];
    if (!is_user_code(probe.kind)) continue;
    const auto [at, is_new] = known.try_emplace({probe.path, probe.program}, groups.size());
    if (is_new) groups.push_back({.path = probe.path, .program = probe.program});
    groups[at->second].probes.push_back(i);
  }
  for (UprobeGroup& group : groups) {
    SPILE_TRY(group.sites, find_uprobe_sites(group.probes));
    SPILE_TRY_VOID(refuse_patched_sites(group.path, group.sites));
  }
  return groups;
}

/// All uprobes of one program and file share a link, and those of a pair of programs, too. At one
/// place the kernel calls the newest first: what the script names first is attached last.
Result<void> Attacher::attach_uprobes() {
  SPILE_TRY(auto groups, group_uprobes());
  const bool may_pair = is_forced(AttachPath::kAuto) || is_forced(AttachPath::kSession);
  auto partners = may_pair ? pair_uprobes(groups) : std::vector<size_t>();
  for (size_t i = groups.size(); i-- > 0;) {
    UprobeGroup& group = groups[i];
    if (group.is_attached) continue;
    if (may_pair && partners[i] != i) {
      UprobeGroup& other = groups[partners[i]];
      const bool is_entry = bundle_.probes[group.probes.front()].kind == ProbeKind::kUprobe;
      SPILE_TRY(group.is_attached, is_entry ? attach_uprobe_session(group, other)
                                            : attach_uprobe_session(other, group));
      other.is_attached = group.is_attached;
      if (group.is_attached) continue;
      partners[partners[i]] = partners[i];
    }
    if (!is_forced(AttachPath::kSession)) SPILE_TRY_VOID(attach_uprobe_group(group));
  }
  // Told last: by then it is known what kept a pair from being one.
  if (is_forced(AttachPath::kSession) && !std::ranges::all_of(groups, &UprobeGroup::is_attached))
    return fail(ErrorCode::kUnsupported, "--attach session: {}",
                why_no_session_.empty()
                    ? "this kernel has no uprobe.session, or the script is not a uprobe and a "
                      "uretprobe of the same functions"
                    : why_no_session_);
  return {};
}

}  // namespace spile::kernel_engine
