#include "user_engine/site_plan.h"

#include <sys/stat.h>
#include <sys/sysmacros.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <map>
#include <set>

#include "abi/pending.h"
#include "elf/file.h"
#include "os/process.h"
#include "user_engine/ifunc.h"
#include "user_engine/loader.h"
#include "user_engine/process_code.h"
#include "user_engine/sentries.h"
#include "user_engine/site_report.h"
#include "user_engine/trap_sites.h"
#include "x86/format.h"

namespace spile::user_engine {

using bundle::Bundle;
using bundle::Probe;
using bundle::ProbeKind;
using engine::SiteReport;

Error ifunc_refused(std::string_view file, std::string_view symbol) {
  return {ErrorCode::kUnsupported, fmt::format("{} in {} is an IFUNC: its symbol is the resolver "
                                               "that picks an implementation for this CPU, not the "
                                               "function, and this process has not bound any yet",
                                               symbol, file)};
}

namespace {

/// A copy at another place is another file, whatever it holds: where the process sees the files
/// that we see, and its own is still there by its name.
bool is_another_file(const target::Module& m, const struct stat& wanted) {
  struct stat own = {};
  if (m.host_path.empty() || m.image || stat(m.host_path.c_str(), &own) != 0) return false;
  return own.st_dev != wanted.st_dev || own.st_ino != wanted.st_ino;
}

bool sees_our_files(pid_t reader) {
  const auto theirs = os::read_link(fmt::format("/proc/{}/ns/mnt", reader));
  const auto ours = os::read_link("/proc/self/ns/mnt");
  return theirs && ours && *theirs == *ours;
}

/// The modules of a process that are a given file: more than one after dlmopen. A mapping's own
/// name (map_file_path) means that module, also where the file cannot be opened by it.
std::vector<const target::Module*> find_modules(const std::vector<target::Module>& modules,
                                                pid_t reader,
                                                const std::string& path) {
  std::vector<const target::Module*> found;
  for (const target::Module& m : modules) {
    if (m.segments.empty()) continue;
    const target::Segment& first = m.segments.front();
    if (path == target::map_file_path(reader, first.start, first.end)) found.push_back(&m);
  }
  if (!found.empty()) return found;
  struct stat info = {};
  const bool is_there = stat(path.c_str(), &info) == 0;
  if (is_there) {
    for (const target::Module& m : modules) {
      if (m.inode == info.st_ino && m.device == makedev(major(info.st_dev), minor(info.st_dev)))
        found.push_back(&m);
    }
  }
  if (!found.empty()) return found;
  // Overlay and other stacked file systems show another device in maps: the build-id is the same.
  auto file = elf::File::open(path);
  if (!file || file->build_id().empty()) return found;
  const bool by_content = !is_there || !sees_our_files(reader);
  for (const target::Module& m : modules) {
    if (m.build_id != file->build_id_hex()) continue;
    if (by_content || m.path.starts_with(path) || !is_another_file(m, info)) found.push_back(&m);
  }
  return found;
}

/// A place to probe, and for what.
struct Request {
  TargetAddr address;
  Action action;
};

/// Of an offset from a function's start. The planner sees whether an instruction begins there.
Result<LinkAddr> address_in(const Probe& probe, const symbols::Function& function) {
  if (probe.offset != 0 && probe.offset >= function.size)
    return fail(ErrorCode::kInvalid, "{}: {} is only {} bytes long", probe.path, probe.symbol,
                function.size);
  return function.addr + probe.offset;
}

/// The link addresses that a probe names in a module. Static functions may share a name: all are
/// meant. An IFUNC means the implementations that the process uses.
Result<std::vector<LinkAddr>> addresses_of(const Probe& probe,
                                           const ModuleImage& image,
                                           IfuncFinder& ifuncs) {
  if (probe.address) {
    if (!image.symbols().file().is_executable(LinkAddr(*probe.address)))
      return fail(ErrorCode::kInvalid, "{}: there is no code at {:#x}", probe.path, *probe.address);
    return std::vector{LinkAddr(*probe.address)};
  }
  std::vector<LinkAddr> found;
  std::optional<LinkAddr> resolver;
  for (const symbols::Function* f : image.symbols().find(probe.symbol)) {
    if (f->type == elf::SymbolType::kIfunc) {
      resolver = f->addr;
      continue;
    }
    SPILE_TRY(LinkAddr address, address_in(probe, *f));
    found.push_back(address);
  }
  if (found.empty() && resolver) {
    for (LinkAddr start : ifuncs.implementations(image, probe.symbol, *resolver))
      found.push_back(start + probe.offset);
    if (found.empty()) return std::unexpected(ifunc_refused(probe.path, probe.symbol));
  }
  if (found.empty())
    return fail(ErrorCode::kNotFound, "{} has no function '{}'", probe.path, probe.symbol);
  std::ranges::sort(found);
  auto tail = std::ranges::unique(found);
  found.erase(tail.begin(), tail.end());
  return found;
}

/// A goroutine's stack is small: patch/go_stack.h.
std::optional<patch::Refusal> refuse_stack(const ModuleImage& image, TargetAddr at) {
  const patch::GoStack stack = image.hit_stack(at);
  if (stack.own_bytes != 0 || stack.may_switch) return std::nullopt;
  patch::Refusal refusal;
  refusal.kind = patch::RefusalKind::kReserved;
  refusal.address = at;
  refusal.reason =
      "a goroutine's stack may have no room here for a probe's frame, and vector register 15, "
      "which the way to another stack takes, may be in use";
  return refusal;
}

/// Code of the target as memory has it now, read page by page.
class LiveCode {
 public:
  explicit LiveCode(const target::Target& target) : target_(target) {}

  /// At `at`, up to `size` bytes (at most a page).
  std::span<const uint8_t> read(TargetAddr at, size_t size) {
    bool inside = at >= start_ && at + size <= start_ + bytes_.size();
    if (!inside) {
      start_ = TargetAddr(at.value & ~uint64_t{4095});
      bytes_.resize(2 * 4096);
      bytes_.resize(target_.memory().read_some(start_, bytes_));
    }
    auto offset = static_cast<size_t>(at - start_);
    if (offset >= bytes_.size()) return {};
    return std::span(bytes_).subspan(offset, std::min(size, bytes_.size() - offset));
  }

 private:
  const target::Target& target_;
  TargetAddr start_;
  std::vector<uint8_t> bytes_;
};

/// Memory must hold what the file holds wherever we read the file to decide: else somebody else has
/// patched it.
Result<void> check_memory(LiveCode& code, const ModuleImage& image, const patch::SitePlan& plan) {
  size_t size = std::max<size_t>(plan.window.size(), plan.written);
  auto now = code.read(plan.site, size);
  if (now.empty()) return fail(ErrorCode::kUnsafe, "the code has been unloaded meanwhile");
  auto original = image.original(plan.site, size);
  if (original.size() == size && std::ranges::equal(now, original)) return {};
  const char* who = !now.empty() && now[0] == 0xcc
                        ? "a breakpoint of another tracer or a kernel uprobe is there"
                        : "another tool has patched it";
  return fail(ErrorCode::kUnsafe, "the code in memory ({}) is not that of the file ({}): {}",
              x86::hex(now), x86::hex(original), who);
}

class Planner {
 public:
  Planner(const target::Target& target,
          const Bundle& bundle,
          ProcessImages images,
          PlanOptions options,
          const PlanScope& scope)
      : target_(target),
        bundle_(bundle),
        traps_(target, options),
        scope_(scope),
        images_(std::move(images)),
        code_(target_, images_),
        ifuncs_(target, images_.modules()),
        tracked_(scope.tracked) {}

  Result<ProcessPlan> plan() {
    SPILE_TRY_VOID(collect_requests());
    watch_loader();
    for (auto& [image, functions] : returning_) plan_returns(*image, functions);
    return place_all();
  }

  Result<ProcessPlan> plan_strays(std::span<const Stray> strays) {
    find_entries();
    for (const Stray& stray : strays) watch(stray);
    auto plan = place_all();
    if (plan) plan->refused.clear();
    return plan;
  }

 private:
  Result<ProcessPlan> place_all() {
    // What decides whether there may be an int3 at all comes first.
    for (auto& [image, requests] : requests_) {
      if (is_c_library(image->module().path)) plan_module(*image, requests);
    }
    for (auto& [image, requests] : requests_) {
      if (!is_c_library(image->module().path)) plan_module(*image, requests);
    }
    for (const auto& [returns, refusal] : failed_) refuse_returns(returns, refusal);
    std::erase_if(plan_.sites, [](const PlannedSite& site) { return !site.has_actions(); });
    for (const target::Module& module : images_.modules())
      plan_.modules.insert(identity_of(module));
    plan_.tracked = tracked_;
    plan_.images = images_.take();
    return std::move(plan_);
  }

  Result<void> collect_requests() {
    std::map<std::string, std::vector<const target::Module*>> modules_of_path;
    SPILE_TRY(const pid_t reader, target_.live_thread());
    find_entries();
    for (size_t i = 0; i < bundle_.probes.size(); i++) {
      const Probe& probe = bundle_.probes[i];
      if (probe.entry_of >= 0) continue;
      if (scope_.probes != nullptr && !scope_.probes->contains(static_cast<int>(i))) continue;
      if (probe.kind != ProbeKind::kUprobe && probe.kind != ProbeKind::kUretprobe &&
          probe.kind != ProbeKind::kUsdt)
        continue;
      if (user_engine::is_sentry(probe)) {
        SPILE_TRY_VOID(collect_sentry(static_cast<int>(i)));
        continue;
      }
      auto [entry, is_new] = modules_of_path.try_emplace(probe.path);
      if (is_new) entry->second = find_modules(images_.modules(), reader, probe.path);
      if (entry->second.empty()) {
        if (scope_.modules == nullptr && !target_.loads_libraries())
          return fail(
              ErrorCode::kNotFound,
              "process {} ({}) does not have {} loaded, and will not: it is a static program",
              target_.pid(), target_.name(), probe.path);
        plan_.absent.push_back(static_cast<int>(i));
      }
      for (const target::Module* module : entry->second) {
        if (scope_.modules != nullptr && !scope_.modules->contains(identity_of(*module))) continue;
        SPILE_TRY_VOID(collect_in(*module, static_cast<int>(i)));
      }
    }
    return {};
  }

  void find_entries() {
    entries_.assign(bundle_.probes.size(), -1);
    for (size_t i = 0; i < bundle_.probes.size(); i++) {
      const int returns = bundle_.probes[i].entry_of;
      if (returns >= 0) entries_[static_cast<size_t>(returns)] = static_cast<int>(i);
    }
  }

  /// Where a file with a probe may come yet, or go and come back.
  void watch_loader() {
    if (scope_.modules != nullptr || !target_.loads_libraries() || !awaits_libraries()) return;
    plan_.unawaited = "its dynamic loader has no _dl_debug_state";
    const target::Module* loader = find_loader(target_, images_.modules());
    auto symbols = loader != nullptr ? loader_symbols(*loader) : std::nullopt;
    auto image = symbols ? images_.image_of(*loader) : Result<ModuleImage*>(nullptr);
    if (!image || *image == nullptr) return;
    const TargetAddr at = loader->bias.to_target(symbols->debug_state);
    requests_[*image].push_back({at, {Action::Kind::kAwait}});
    plan_.unawaited.reset();
  }

  bool awaits_libraries() const {
    if (!plan_.absent.empty()) return true;
    std::optional<std::set<TargetAddr>> stay;
    auto may_go = [&](const auto& entry) {
      const target::Module& module = entry.first->module();
      if (module.main_program || module.vdso) return false;
      if (!stay) stay = modules_that_stay(images_.modules());
      return !stay->contains(module.start);
    };
    return std::ranges::any_of(requests_, may_go) || std::ranges::any_of(returning_, may_go);
  }

  /// In every library that has the function: the older C libraries have some of them twice.
  Result<void> collect_sentry(int probe) {
    const std::string& symbol = bundle_.probes[static_cast<size_t>(probe)].symbol;
    bool found = false;
    for (const target::Module& module : images_.modules()) {
      if (!is_c_library(module.path)) continue;
      SPILE_TRY(ModuleImage * image, images_.image_of(module));
      for (const symbols::Function* f : image->symbols().find(symbol)) {
        requests_[image].push_back({module.bias.to_target(f->addr), {Action::Kind::kProbe, probe}});
        found = true;
      }
    }
    if (!found) plan_.unwatched = fmt::format("the C library's {} was not found", symbol);
    return {};
  }

  Result<void> collect_in(const target::Module& module, int probe) {
    SPILE_TRY(ModuleImage * image, images_.image_of(module));
    const Probe& wanted = bundle_.probes[static_cast<size_t>(probe)];
    auto addresses = addresses_of(wanted, *image, ifuncs_);
    bool is_refusal = !addresses && (addresses.error().code == ErrorCode::kUnsupported ||
                                     addresses.error().code == ErrorCode::kInvalid);
    if (is_refusal) {
      refuse_symbol(module, probe, addresses.error());
      return {};
    }
    if (!addresses) return std::unexpected(std::move(addresses.error()));
    for (LinkAddr a : *addresses) {
      TargetAddr address = module.bias.to_target(a);
      if (wanted.kind == ProbeKind::kUretprobe)
        returning_[image][address].push_back(probe);
      else
        requests_[image].push_back({address, {Action::Kind::kProbe, probe}});
    }
    return {};
  }

  void refuse_symbol(const target::Module& module, int probe, const Error& error) {
    SiteReport report;
    report.pid = target_.pid();
    report.probe = probe;
    const Probe& named = bundle_.probes[static_cast<size_t>(probe)];
    report.location =
        fmt::format("{}:{}", std::filesystem::path(module.path).filename().string(),
                    named.address ? fmt::format("{:#x}", *named.address) : named.symbol);
    report.refused = true;
    report.reason = error.message;
    plan_.refused.push_back(std::move(report));
  }

  using ReturningFunctions = std::map<TargetAddr, std::vector<int>>;

  /// A return probe becomes places: the returns, and for a tracked function its entry.
  void plan_returns(const ModuleImage& image, const ReturningFunctions& functions) {
    std::vector<TargetAddr> starts;
    for (const auto& [function, probes] : functions) starts.push_back(function);
    patch::ReturnFinder finder(code_, *code_.code_at(starts.front()), starts);
    for (const auto& [function, probes] : functions) {
      auto index = static_cast<int>(plan_.returns.size());
      plan_.returns.push_back({probes, &image, function});
      auto returns = finder.find(function);
      if (returns) returns = check_go(image, std::move(*returns));
      if (returns && has_entries(probes)) returns = check_entries(image, std::move(*returns));
      if (!returns) {
        refuse_returns(index, returns.error());
        continue;
      }
      request_returns(*returns, index);
    }
  }

  /// Goroutine stacks move while calls are under way, so a slot says nothing.
  static std::expected<patch::Returns, patch::Refusal> check_go(const ModuleImage& image,
                                                                patch::Returns returns) {
    if (!image.is_go()) return returns;
    patch::Refusal refusal;
    refusal.kind = patch::RefusalKind::kReserved;
    refusal.address = returns.function;
    refusal.reason =
        "a function of a Go program that ends in a jump to another: goroutine stacks move, so its "
        "returns cannot be told from those of the other";
    if (!returns.plain) return std::unexpected(std::move(refusal));
    return returns;
  }

  bool has_entries(const std::vector<int>& probes) const {
    return std::ranges::any_of(probes,
                               [&](int p) { return entries_[static_cast<size_t>(p)] >= 0; });
  }

  /// The entry is found again by the stack slot.
  std::expected<patch::Returns, patch::Refusal> check_entries(const ModuleImage& image,
                                                              patch::Returns returns) {
    patch::Refusal refusal;
    refusal.kind = patch::RefusalKind::kReserved;
    refusal.address = returns.function;
    refusal.reason =
        "argN and duration at the return of a function of a Go program: goroutine stacks move "
        "while it runs, so the entry cannot be found again";
    if (image.is_go()) return std::unexpected(std::move(refusal));
    for (const TargetAddr ret : returns.rets) {
      const ModuleImage* home = images_.image_at(ret);
      if (home == nullptr || popped_by(*home, ret) == sizeof(uint64_t)) continue;
      refusal.address = ret;
      refusal.reason =
          "argN and duration at a return that takes arguments off the stack: not built yet";
      return std::unexpected(std::move(refusal));
    }
    return returns;
  }

  void request_returns(const patch::Returns& found, int index) {
    PlannedReturns& planned = plan_.returns[static_cast<size_t>(index)];
    planned.plain = found.plain;
    planned.how = found.describe();
    planned.known = found.known;
    planned.places = found.rets.size() + found.arrivals.size() + found.jumps.size() +
                     found.leaves.size() + (found.plain ? 0 : 1);
    uint32_t number = found.plain ? 0 : ++tracked_;
    if (number > abi::kMaxPendingNumber) {
      patch::Refusal refusal;
      refusal.address = found.function;
      refusal.reason =
          fmt::format("{} functions with tail jumps are traced already", abi::kMaxPendingNumber);
      return refuse_returns(index, refusal);
    }
    planned.number = number;
    planned.reenters = found.reenters;
    for (int probe : planned.probes) {
      const int entry = entries_[static_cast<size_t>(probe)];
      if (entry >= 0)
        requests_[planned.image].push_back({found.function, {Action::Kind::kEnter, entry, index}});
    }
    if (number != 0) {
      const auto note = found.reenters ? Action::Kind::kNoteAgain : Action::Kind::kNote;
      request_event(found.function, note, index, number);
    }
    request_places(found, index, number);
  }

  /// All but the entry.
  void request_places(const patch::Returns& found, int index, uint32_t number) {
    const PlannedReturns& planned = plan_.returns[static_cast<size_t>(index)];
    if (number != 0) {
      for (TargetAddr entry : found.arrivals)
        request_event(entry, Action::Kind::kArrive, index, number);
      for (TargetAddr jump : found.jumps) request_event(jump, Action::Kind::kArm, index, number);
      for (TargetAddr jump : found.leaves) request_event(jump, Action::Kind::kLeave, index, number);
    }
    for (TargetAddr ret : found.rets) {
      const ModuleImage* image = images_.image_at(ret);
      SPILE_CHECK(image != nullptr);
      for (int probe : planned.probes) {
        requests_[image].push_back({ret,
                                    {Action::Kind::kReturn, probe, index, number, found.reenters,
                                     popped_by(*image, ret)}});
      }
    }
  }

  /// The places behind a target, as if it were a part of the function that jumps there.
  void watch(const Stray& stray) {
    const auto index = static_cast<int>(plan_.returns.size());
    const patch::CodeMap* map = code_.code_at(stray.target);
    const ModuleImage* image = images_.image_at(stray.target);
    plan_.returns.push_back({stray.of->probes, image, stray.target});
    PlannedReturns& planned = plan_.returns.back();
    planned.number = stray.number;
    planned.plain = false;
    planned.refused = true;
    if (map == nullptr || image == nullptr || image->is_go()) return;
    patch::ReturnFinder finder(code_, *map, {});
    auto found = finder.find(stray.target);
    if (found && has_entries(planned.probes)) found = check_entries(*image, std::move(*found));
    if (!found || found->reenters) return;
    planned.refused = false;
    planned.how = found->describe();
    planned.known = stray.watched;
    for (const auto* places : {&found->rets, &found->jumps, &found->arrivals, &found->leaves}) {
      for (const TargetAddr at : *places) planned.known.push_back(code_.code_at(at)->region_at(at));
    }
    planned.known.push_back(map->region_at(stray.target));
    std::ranges::sort(planned.known, {}, &patch::Region::start);
    const auto tail = std::ranges::unique(planned.known);
    planned.known.erase(tail.begin(), tail.end());
    request_places(without_watched(std::move(*found), stray.watched), index, stray.number);
  }

  /// What is patched for the function already.
  static patch::Returns without_watched(patch::Returns found,
                                        const std::vector<patch::Region>& watched) {
    for (auto* places : {&found.rets, &found.arrivals, &found.jumps, &found.leaves}) {
      std::erase_if(*places, [&](TargetAddr at) {
        return std::ranges::any_of(watched, [&](const patch::Region& r) { return r.contains(at); });
      });
    }
    return found;
  }

  void request_event(TargetAddr at, Action::Kind kind, int index, uint32_t number) {
    const ModuleImage* image = images_.image_at(at);
    SPILE_CHECK(image != nullptr);
    const auto* known = &plan_.returns[static_cast<size_t>(index)].known;
    requests_[image].push_back(
        {at, {kind, -1, index, number, false, 0, kind == Action::Kind::kLeave ? known : nullptr}});
  }

  /// ret, ret imm16
  static uint32_t popped_by(const ModuleImage& image, TargetAddr ret) {
    auto bytes = image.original(ret, x86::kMaxInsnBytes);
    auto shape = x86::decode_shape(bytes);
    uint32_t operand = shape ? static_cast<uint32_t>(shape->imm) & 0xffff : 0;
    return 8 + operand;
  }

  void refuse_returns(int index, const patch::Refusal& refusal) {
    auto reports = plan_.refuse_returns(index, target_.pid(), refusal);
    plan_.refused.insert(plan_.refused.end(), reports.begin(), reports.end());
  }

  void plan_module(const ModuleImage& image, const std::vector<Request>& requests) {
    auto plans = plan_jumps(image, requests);
    std::vector<const patch::Refusal*> refused(plans.sites.size());
    std::deque<patch::Refusal> reasons;
    std::vector<PlannedSite*> sites(plans.sites.size());
    LiveCode live(target_);
    for (size_t i = 0; i < plans.sites.size(); i++) {
      auto refusal = refuse_site(live, image, plans.sites[i]);
      if (refusal) {
        refused[i] = &reasons.emplace_back(std::move(*refusal));
        continue;
      }
      size_t heads = plans.sites[i].probed.size();
      sites[i] = &plan_.sites.emplace_back(
          PlannedSite{std::move(plans.sites[i]), &image, std::vector<std::vector<Action>>(heads)});
    }
    std::vector<Unplaced> unplaced;
    for (size_t i = 0; i < requests.size(); i++) {
      const auto& outcome = plans.outcomes[i];
      if (!outcome) {
        unplaced.push_back({&requests[i], outcome.error()});
        continue;
      }
      if (refused[outcome->site] != nullptr) {
        refuse(image, requests[i], *refused[outcome->site]);
        continue;
      }
      PlannedSite& site = *sites[outcome->site];
      if (auto no_room = refuse_stack(image, site.plan.site + outcome->offset)) {
        refuse(image, requests[i], *no_room);
        continue;
      }
      auto head = std::ranges::find(site.plan.probed, outcome->offset, &patch::ProbedHead::offset);
      SPILE_CHECK(head != site.plan.probed.end());
      site.actions[static_cast<size_t>(head - site.plan.probed.begin())].push_back(
          requests[i].action);
    }
    plan_traps(live, image, unplaced, sites);
  }

  patch::Plans plan_jumps(const ModuleImage& image, const std::vector<Request>& requests) const {
    std::vector<TargetAddr> addresses;
    for (const Request& r : requests) {
      if (!traps_.only_traps() || is_sentry(r)) addresses.push_back(r.address);
    }
    auto plans = patch::plan_windows(image.code(), addresses);
    if (!traps_.only_traps()) return plans;
    patch::Refusal untried;
    untried.reason = "no jump was tried";
    for (size_t i = 0; i < requests.size(); i++) {
      untried.address = requests[i].address;
      if (!is_sentry(requests[i]))
        plans.outcomes.insert(plans.outcomes.begin() + static_cast<ptrdiff_t>(i),
                              std::unexpected(untried));
    }
    return plans;
  }

  struct Unplaced {
    const Request* request;
    patch::Refusal refusal;
  };

  /// What no jump fits: refused, unless an int3 is allowed there.
  void plan_traps(LiveCode& live,
                  const ModuleImage& image,
                  const std::vector<Unplaced>& unplaced,
                  const std::vector<PlannedSite*>& sites) {
    std::vector<TrapPlanner::Refused> places;
    for (const Unplaced& u : unplaced) places.push_back({u.request->address, u.refusal});
    std::vector<target::AddressRange> taken;
    for (const PlannedSite* site : sites) {
      if (site != nullptr) taken.push_back(bytes_taken(site->plan));
    }
    auto traps = traps_.instead(image, places, taken, plan_.unwatched);
    std::map<TargetAddr, PlannedSite*> by_address;
    for (size_t i = 0; i < traps.size(); i++) {
      auto refusal = traps[i] ? refuse_site(live, image, *traps[i])
                              : std::optional(std::move(traps[i].error()));
      if (refusal) {
        refuse(image, *unplaced[i].request, *refusal);
        continue;
      }
      PlannedSite*& site = by_address[traps[i]->site];
      if (site == nullptr)
        site = &plan_.sites.emplace_back(PlannedSite{std::move(*traps[i]), &image, {{}}});
      site->actions.front().push_back(unplaced[i].request->action);
    }
  }

  void refuse(const ModuleImage& image, const Request& request, const patch::Refusal& refusal) {
    if (request.action.kind == Action::Kind::kAwait) {
      plan_.unawaited = refusal.reason;
      return;
    }
    if (is_sentry(request)) {
      plan_.unwatched = fmt::format("{} of the C library cannot be watched ({})",
                                    image.name_of(request.address), refusal.reason);
      return;
    }
    if (request.action.returns < 0) {
      plan_.refused.push_back(
          refusal_report(image, request.address, request.action.probe, target_.pid(), refusal));
      return;
    }
    // Later: other modules may still ask for places of the same function.
    patch::Refusal of_place = refusal;
    const char* what = name_of(request.action.kind);
    of_place.reason = fmt::format("its {} at {} cannot be patched: {}", what,
                                  image.name_of(request.address), refusal.reason);
    failed_.emplace(request.action.returns, std::move(of_place));
  }

  bool is_sentry(const Request& request) const {
    return request.action.probe >= 0 &&
           user_engine::is_sentry(bundle_.probes[static_cast<size_t>(request.action.probe)]);
  }

  static const char* name_of(Action::Kind kind) {
    switch (kind) {
      case Action::Kind::kEnter:
      case Action::Kind::kNoteAgain:
      case Action::Kind::kNote: return "entry";
      case Action::Kind::kArm: return "tail jump";
      case Action::Kind::kArrive: return "tail jump's target";
      case Action::Kind::kLeave: return "jump through a pointer";
      default: return "return";
    }
  }

  /// What the planner of the module's code cannot know.
  static std::optional<patch::Refusal> refuse_site(LiveCode& live,
                                                   const ModuleImage& image,
                                                   const patch::SitePlan& plan) {
    auto checked = check_memory(live, image, plan);
    if (checked) return std::nullopt;
    patch::Refusal refusal;
    refusal.kind = patch::RefusalKind::kBreakpoint;
    refusal.address = plan.site;
    refusal.reason = checked.error().message;
    return refusal;
  }

  const target::Target& target_;
  const Bundle& bundle_;
  TrapPlanner traps_;
  const PlanScope& scope_;
  ProcessImages images_;
  ProcessCode code_;
  IfuncFinder ifuncs_;
  ProcessPlan plan_;
  uint32_t tracked_;
  std::vector<int> entries_;  ///< by probe: the one that goes with it; -1: none
  std::map<const ModuleImage*, std::vector<Request>> requests_;
  std::map<const ModuleImage*, ReturningFunctions> returning_;
  std::map<int, patch::Refusal> failed_;  ///< by index into plan_.returns
};

}  // namespace

Result<ProcessPlan> plan_process(const target::Target& target,
                                 const Bundle& bundle,
                                 PlanOptions options,
                                 const PlanScope& scope) {
  SPILE_TRY(auto images, ProcessImages::open(target));
  return Planner(target, bundle, std::move(images), options, scope).plan();
}

Result<ProcessPlan> plan_strays(const target::Target& target,
                                const Bundle& bundle,
                                std::span<const Stray> strays) {
  SPILE_TRY(auto images, ProcessImages::open(target));
  const PlanScope scope;
  return Planner(target, bundle, std::move(images), {}, scope).plan_strays(strays);
}

ModuleIdentity identity_of(const target::Module& module) {
  return {module.device, module.inode, module.start};
}

target::AddressRange bytes_taken(const patch::SitePlan& plan) {
  return {plan.site, std::max(plan.window_end(), plan.site + plan.written)};
}

bool PlannedSite::has_actions() const {
  return std::ranges::any_of(actions, [](const auto& list) { return !list.empty(); });
}

std::vector<int> returns_at(const PlannedSite& site) {
  std::set<int> all;
  for (const auto& list : site.actions) {
    for (const Action& action : list) {
      if (action.returns >= 0) all.insert(action.returns);
    }
  }
  return {all.begin(), all.end()};
}

bool PlannedSite::has_sentry(const Bundle& bundle, bool only) const {
  bool found = false;
  // They come behind the script's own.
  if (bundle.probes.empty() || !is_sentry(bundle.probes.back())) return false;
  for (const auto& list : actions) {
    for (const Action& action : list) {
      const bool is_one =
          action.probe >= 0 && is_sentry(bundle.probes[static_cast<size_t>(action.probe)]);
      if (only && !is_one) return false;
      found |= is_one;
    }
  }
  return found;
}

bool PlannedSite::only_awaits() const {
  return has_actions() && std::ranges::all_of(actions, [](const auto& list) {
           return std::ranges::all_of(
               list, [](const Action& action) { return action.kind == Action::Kind::kAwait; });
         });
}

bool PlannedSite::notes_calls() const {
  return std::ranges::any_of(actions, [](const auto& list) {
    return std::ranges::any_of(list, [](const Action& action) { return action.number != 0; });
  });
}

}  // namespace spile::user_engine
