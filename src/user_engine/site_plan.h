// Probes -> places in one process: which module, which address, which mechanism, or why not.
//
// Reads the process, neither stops nor changes it.
#pragma once

#include <deque>
#include <memory>
#include <optional>
#include <set>
#include <vector>

#include "bundle/bundle.h"
#include "engine/engine.h"
#include "user_engine/module_code.h"
#include "user_engine/patch/code_map.h"
#include "user_engine/patch/plan.h"
#include "user_engine/target/process.h"
#include "user_engine/trap_use.h"

namespace spile::user_engine {

/// What is done at a probed head.
struct Action {
  enum class Kind : uint8_t {
    kProbe,      ///< a probe at this instruction runs
    kEnter,      ///< a probe that goes with a return probe runs, at the function's entry
    kNote,       ///< a tracked function begins: the call is noted
    kNoteAgain,  ///< the same, and a jump may lead a call back there
    kArm,        ///< a jump that a noted call may leave a function by
    kArrive,     ///< the entry of a function that noted calls may come to, and others too
    kLeave,      ///< an indirect jump that a noted call may leave by, for anywhere
    kReturn,     ///< a return probe runs, at a `ret`
    kAwait,      ///< the dynamic loader tells of a change: its thread waits for us (loader_watch.h)
  };
  Kind kind = Kind::kProbe;
  int probe = -1;             ///< kProbe, kEnter, kReturn: index into Bundle::probes
  int returns = -1;           ///< all but kProbe: index into ProcessPlan::returns
  uint32_t number = 0;        ///< of the tracked function; 0: every ret here is a return of it
  bool repeats = false;       ///< kReturn: the program runs for each time the call was noted
  uint32_t popped_bytes = 0;  ///< kReturn: what the ret takes off the stack
  /// kLeave: of ProcessPlan::returns, which keeps it.
  const std::vector<patch::Region>* known = nullptr;
};

/// One window that will be patched, and what is done in it.
struct PlannedSite {
  patch::SitePlan plan;
  const ModuleImage* image = nullptr;
  /// For each of plan.probed, in the script's order.
  std::vector<std::vector<Action>> actions;

  bool has_actions() const;
  /// Does anything with the notes of a tracked function: the pending table must be there.
  bool notes_calls() const;
  /// Has a hidden probe (sentries.h); `only`: and no other.
  bool has_sentry(const bundle::Bundle& bundle, bool only) const;
  /// Only its thread's wait for us is done here.
  bool only_awaits() const;
};

/// The return probes of one function: all of its places are patched, or none.
struct PlannedReturns {
  std::vector<int> probes;  ///< indices into Bundle::probes
  const ModuleImage* image = nullptr;
  TargetAddr function;
  std::string how;                   ///< "3 returns, 1 tail jump to g"
  bool plain = true;                 ///< as patch::Returns
  std::vector<patch::Region> known;  ///< as patch::Returns; empty: it leaves through no pointer
  size_t places = 0;                 ///< instructions that are probed for it
  uint32_t number = 0;               ///< of its notes; 0: a plain function
  bool reenters = false;             ///< as patch::Returns
  bool refused = false;
};

/// Which loaded copy of which file: a library that was unloaded and loaded again is the same one
/// only if it came back to its place.
struct ModuleIdentity {
  uint64_t device = 0, inode = 0;
  TargetAddr start;
  auto operator<=>(const ModuleIdentity&) const = default;
};
ModuleIdentity identity_of(const target::Module& module);

/// What of a process is planned.
struct PlanScope {
  /// Only sites in these: the rest is planned already. Null: all of the process.
  const std::set<ModuleIdentity>* modules = nullptr;
  uint32_t tracked = 0;  ///< numbers of tracked functions up to this one are taken
  /// Only these of the bundle's. Null: all.
  const std::set<int>* probes = nullptr;
};

/// A jump through a pointer has taken calls of a tracked function to code that is not watched.
struct Stray {
  uint32_t number = 0;  ///< of the function
  TargetAddr target;
  const PlannedReturns* of = nullptr;  ///< the function's
  std::vector<patch::Region> watched;  ///< code whose returns are watched for it; by address
};

struct ProcessPlan {
  std::vector<std::unique_ptr<ModuleImage>> images;  ///< only modules that have sites
  std::deque<PlannedSite> sites;                     ///< in no order; they stay where they are
  std::deque<PlannedReturns> returns;
  std::vector<engine::SiteReport> refused;
  std::vector<int> absent;           ///< probes whose file is not loaded
  std::set<ModuleIdentity> modules;  ///< all that were there
  uint32_t tracked = 0;              ///< the highest number of a tracked function
  /// Why nobody would wait who takes SIGTRAP away (sentries.h): then there may be no int3.
  std::optional<std::string> unwatched;
  /// Why no thread waits that loads a library; also set where none needs to.
  std::optional<std::string> unawaited;

  /// Takes the return probes of a function out of every site. Sites may be left without actions.
  /// The reports for people, one a probe: none the second time.
  std::vector<engine::SiteReport> refuse_returns(int returns,
                                                 pid_t pid,
                                                 const patch::Refusal& refusal);
};

/// How plan_process() is to plan.
struct PlanOptions {
  TrapUse traps = TrapUse::kNever;

  bool allow_trap() const { return traps != TrapUse::kNever; }
  bool only_traps() const { return traps == TrapUse::kEverywhere; }
};

/// The bytes that a site has for itself.
target::AddressRange bytes_taken(const patch::SitePlan& plan);

/// Errors:  not found   a probe's file has no such function; its file is not mapped, and the
/// process
///                      loads no libraries (a static program)
///          those of reading the process and its files
/// A place that cannot be patched safely is no error: it is in `refused`.
Result<ProcessPlan> plan_process(const target::Target& target,
                                 const bundle::Bundle& bundle,
                                 PlanOptions options = {},
                                 const PlanScope& scope = {});

/// What watching the returns behind each target takes: ProcessPlan::returns has one for each, in
/// their order; `refused` there says that it cannot be. No reports.
Result<ProcessPlan> plan_strays(const target::Target& target,
                                const bundle::Bundle& bundle,
                                std::span<const Stray> strays);

/// The return probes that have a place in a site: indices into ProcessPlan::returns.
std::vector<int> returns_at(const PlannedSite& site);

/// How the probed heads of a site are described to people: `spile sites`, -v. One report a head
/// that a probe is set on; those of return probes are described together.
std::vector<engine::SiteReport> describe(const PlannedSite& site,
                                         pid_t pid,
                                         const bundle::Bundle& bundle);

engine::SiteReport describe(const PlannedReturns& returns, pid_t pid);

/// The address of an IFUNC symbol is that of its resolver, which runs once, before main: not what
/// anybody wants to trace.
Error ifunc_refused(std::string_view file, std::string_view symbol);

}  // namespace spile::user_engine
