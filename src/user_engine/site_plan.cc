#include "user_engine/site_plan.h"

#include <sys/stat.h>
#include <sys/sysmacros.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <map>

#include "elf/file.h"
#include "user_engine/ifunc.h"
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

/// The modules of a process that are a given file: more than one after dlmopen.
class ModuleFinder {
 public:
  static Result<ModuleFinder> open(const target::Target& target) {
    ModuleFinder finder;
    SPILE_TRY(finder.modules_, target.modules());
    return finder;
  }

  const std::vector<target::Module>& all() const { return modules_; }

  std::vector<const target::Module*> find(const std::string& path) {
    std::vector<const target::Module*> found;
    struct stat file = {};
    if (stat(path.c_str(), &file) == 0) {
      for (const target::Module& m : modules_) {
        if (m.inode == file.st_ino && m.device == makedev(major(file.st_dev), minor(file.st_dev)))
          found.push_back(&m);
      }
    }
    // Overlay and other stacked file systems show another device in maps: the build-id is the same.
    if (found.empty()) found = find_by_build_id(path);
    return found;
  }

 private:
  std::vector<const target::Module*> find_by_build_id(const std::string& path) {
    std::vector<const target::Module*> found;
    auto file = elf::File::open(path);
    if (!file || file->build_id().empty()) return found;
    for (const target::Module& m : modules_) {
      if (m.build_id == file->build_id_hex()) found.push_back(&m);
    }
    return found;
  }

  std::vector<target::Module> modules_;
};

struct Request {
  TargetAddr address;
  int probe = -1;
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

SiteReport refusal_report(const ModuleImage& image,
                          const Request& request,
                          pid_t pid,
                          const patch::Refusal& refusal) {
  SiteReport report;
  report.pid = pid;
  report.probe = request.probe;
  report.location =
      fmt::format("{}:{}", std::filesystem::path(image.module().path).filename().string(),
                  image.name_of(request.address));
  report.address = request.address.value;
  report.refused = true;
  report.mechanism = std::string(to_string(refusal.kind));
  report.reason = refusal.instruction.empty() ? refusal.reason
                                              : fmt::format("{} (at {}: {})", refusal.reason,
                                                            refusal.address, refusal.instruction);
  auto bytes = image.original(request.address, 16);
  report.before.assign(bytes.begin(), bytes.end());
  return report;
}

/// A goroutine's stack is small and only functions that check it are sure to have some hundred
/// bytes left at their entry: the linker keeps that much for chains of functions that do not check.
patch::Refusal no_stack_check(const patch::SitePlan& plan) {
  patch::Refusal refusal;
  refusal.kind = patch::RefusalKind::kReserved;
  refusal.address = plan.site;
  refusal.reason =
      "a function of a Go program that does not check its stack: there may be no room for a "
      "probe's frame";
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
  Planner(const target::Target& target, const Bundle& bundle, ModuleFinder finder)
      : target_(target),
        bundle_(bundle),
        finder_(std::move(finder)),
        ifuncs_(target, finder_.all()) {}

  Result<ProcessPlan> plan() {
    SPILE_TRY_VOID(collect_requests());
    for (auto& [image, requests] : requests_) plan_module(*image, requests);
    return std::move(plan_);
  }

 private:
  Result<void> collect_requests() {
    std::map<std::string, std::vector<const target::Module*>> modules_of_path;
    for (size_t i = 0; i < bundle_.probes.size(); i++) {
      const Probe& probe = bundle_.probes[i];
      if (probe.kind != ProbeKind::kUprobe && probe.kind != ProbeKind::kUsdt) continue;
      auto [entry, is_new] = modules_of_path.try_emplace(probe.path);
      if (is_new) entry->second = finder_.find(probe.path);
      if (entry->second.empty()) {
        return fail(
            ErrorCode::kNotFound,
            "process {} ({}) does not have {} loaded; libraries loaded later are not followed yet",
            target_.pid(), target_.name(), probe.path);
      }
      for (const target::Module* module : entry->second) {
        SPILE_TRY(ModuleImage * image, image_of(*module));
        auto addresses = addresses_of(probe, *image, ifuncs_);
        bool is_refusal = !addresses && (addresses.error().code == ErrorCode::kUnsupported ||
                                         addresses.error().code == ErrorCode::kInvalid);
        if (is_refusal) {
          refuse_symbol(*module, static_cast<int>(i), addresses.error());
          continue;
        }
        if (!addresses) return std::unexpected(std::move(addresses.error()));
        for (LinkAddr a : *addresses)
          requests_[image].push_back({module->bias.to_target(a), static_cast<int>(i)});
      }
    }
    return {};
  }

  void refuse_symbol(const target::Module& module, int probe, const Error& error) {
    SiteReport report;
    report.pid = target_.pid();
    report.probe = probe;
    report.location = fmt::format("{}:{}", std::filesystem::path(module.path).filename().string(),
                                  bundle_.probes[static_cast<size_t>(probe)].symbol);
    report.refused = true;
    report.reason = error.message;
    plan_.refused.push_back(std::move(report));
  }

  Result<ModuleImage*> image_of(const target::Module& module) {
    for (const auto& image : plan_.images) {
      if (image->module().start == module.start) return image.get();
    }
    SPILE_TRY(auto image, ModuleImage::load(target_, module));
    plan_.images.push_back(std::make_unique<ModuleImage>(std::move(image)));
    return plan_.images.back().get();
  }

  void plan_module(const ModuleImage& image, const std::vector<Request>& requests) {
    std::vector<TargetAddr> addresses;
    for (const Request& r : requests) addresses.push_back(r.address);
    auto plans = patch::plan_windows(image.code(), addresses);
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
          PlannedSite{std::move(plans.sites[i]), &image, std::vector<std::vector<int>>(heads)});
    }
    for (size_t i = 0; i < requests.size(); i++) {
      const auto& outcome = plans.outcomes[i];
      const patch::Refusal* refusal = outcome ? refused[outcome->site] : &outcome.error();
      if (refusal != nullptr) {
        plan_.refused.push_back(refusal_report(image, requests[i], target_.pid(), *refusal));
        continue;
      }
      PlannedSite& site = *sites[outcome->site];
      auto head = std::ranges::find(site.plan.probed, outcome->offset, &patch::ProbedHead::offset);
      SPILE_CHECK(head != site.plan.probed.end());
      site.probes[static_cast<size_t>(head - site.plan.probed.begin())].push_back(
          requests[i].probe);
    }
  }

  /// What the planner of the module's code cannot know.
  static std::optional<patch::Refusal> refuse_site(LiveCode& live,
                                                   const ModuleImage& image,
                                                   const patch::SitePlan& plan) {
    if (image.is_go() && !plan.go_stack_check) return no_stack_check(plan);
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
  ModuleFinder finder_;
  IfuncFinder ifuncs_;
  ProcessPlan plan_;
  std::map<ModuleImage*, std::vector<Request>> requests_;
};

}  // namespace

Result<ProcessPlan> plan_process(const target::Target& target, const Bundle& bundle) {
  SPILE_TRY(auto finder, ModuleFinder::open(target));
  return Planner(target, bundle, std::move(finder)).plan();
}

std::vector<SiteReport> describe(const PlannedSite& site, pid_t pid, const Bundle& bundle) {
  std::vector<SiteReport> reports;
  for (size_t i = 0; i < site.plan.probed.size(); i++) {
    SiteReport report;
    TargetAddr at = site.plan.site + site.plan.probed[i].offset;
    report.pid = pid;
    report.probe = site.probes[i].front();
    std::string function = site.image->name_of(at);
    report.location = fmt::format(
        "{}:{}", std::filesystem::path(site.image->module().path).filename().string(),
        function.empty() ? bundle.probes.at(static_cast<size_t>(report.probe)).symbol : function);
    report.address = at.value;
    report.mechanism = std::string(to_string(site.plan.mechanism));
    report.reason = at == site.plan.site
                        ? site.plan.reason
                        : fmt::format("in the window at {}: {}", site.plan.site, site.plan.reason);
    report.before = site.plan.window;
    reports.push_back(std::move(report));
  }
  return reports;
}

}  // namespace spile::user_engine
