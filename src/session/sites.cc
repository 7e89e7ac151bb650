#include "session/sites.h"

#include <fmt/format.h>

#include <cstdio>

#include "kernel_engine/kernel_engine.h"
#include "session/compile.h"
#include "session/world_for.h"
#include "user_engine/detach.h"
#include "user_engine/user_engine.h"
#include "x86/format.h"

namespace spile::session {

namespace {

std::string indented(const std::string& text, std::string_view by) {
  std::string out;
  for (size_t at = 0; at < text.size();) {
    size_t end = text.find('\n', at);
    if (end == std::string::npos) end = text.size();
    out += by;
    out.append(text, at, end - at);
    out += '\n';
    at = end + 1;
  }
  return out;
}

}  // namespace

std::string format_site(const engine::SiteReport& site) {
  std::string text;
  std::string who = site.pid != 0 ? fmt::format("{} ", site.pid) : "";
  if (site.refused) {
    return fmt::format("{}{}: REFUSED: {}\n", who, engine::place_of(site), site.reason);
  }
  text = fmt::format("{}{}: [{}]{}{}\n", who, engine::place_of(site), site.mechanism,
                     site.reason.empty() ? "" : " ", site.reason);
  if (!site.after.empty() && !site.before.empty()) {
    text += indented(x86::format_diff(site.before, site.after, TargetAddr(site.address)), "    ");
  } else if (!site.before.empty()) {
    text += indented(x86::format_code(site.before, TargetAddr(site.address)), "    ");
  }
  return text;
}

user_engine::TrapUse trap_use(const TargetRequest& target) {
  if (!target.allow_trap) return user_engine::TrapUse::kNever;
  return target.only_traps ? user_engine::TrapUse::kEverywhere
                           : user_engine::TrapUse::kWhereNoJumpFits;
}

int plan_sites(const TraceRequest& request) {
  if (request.target.pids.empty()) {
    fmt::print(stderr, "spile: sites: give the process with -p PID\n");
    return kUsage;
  }
  MachineWorld world = world_for(request.target);
  auto compiled = compile(request.script, world, options_from_environment());
  if (!compiled) {
    fmt::print(stderr, "{}", compiled.error());
    return kFailed;
  }
  int status = kOk;
  for (pid_t pid : request.target.pids) {
    auto sites = user_engine::plan_sites(pid, compiled->bundle, trap_use(request.target));
    if (!sites) {
      fmt::print(stderr, "spile: {}\n", sites.error().message);
      status = kFailed;
      continue;
    }
    for (const auto& site : *sites) fmt::print("{}", format_site(site));
  }
  return status;
}

namespace {

int show_kernel_sites() {
  auto sites = kernel_engine::kernel_sites();
  if (!sites) {
    fmt::print(stderr,
               "spile: sites: of the kernel: {}\n"
               "spile: sites: of a process: -p PID, and a script to see where it would go\n",
               sites.error().message);
    return kFailed;
  }
  if (sites->empty()) fmt::print("no kprobes in the kernel\n");
  for (const auto& site : *sites) fmt::print("{}", format_site(site));
  return kOk;
}

}  // namespace

int show_sites(const std::vector<pid_t>& pids) {
  if (pids.empty()) return show_kernel_sites();
  int status = kOk;
  for (pid_t pid : pids) {
    auto sites = user_engine::journal_sites(pid);
    if (!sites) {
      fmt::print(stderr, "spile: {}\n", sites.error().message);
      status = kFailed;
      continue;
    }
    if (sites->empty()) fmt::print("process {}: no probes of the user engine\n", pid);
    for (const auto& site : *sites) fmt::print("{}", format_site(site));
  }
  return status;
}

}  // namespace spile::session
