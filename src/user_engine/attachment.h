// One process with our probes in it: what was mapped where, which bytes were changed, the tracer's
// view of its memory.
#pragma once

#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "bundle/bundle.h"
#include "engine/engine.h"
#include "user_engine/address_plan.h"
#include "user_engine/code_image.h"
#include "user_engine/semaphores.h"
#include "user_engine/shm/clock.h"
#include "user_engine/shm/region.h"
#include "user_engine/site_plan.h"
#include "user_engine/switches.h"
#include "user_engine/target/inject.h"
#include "user_engine/target/process.h"
#include "user_engine/traps.h"

namespace spile::user_engine {

/// A site that holds (or held) our jump.
struct PatchedSite {
  const PlannedSite* planned = nullptr;  ///< in Attachment::plan or Addition::plan
  TargetAddr detour;
  std::vector<patch::Segment> segments;
  std::vector<patch::Edit> edits;
  uint32_t stack_bytes = 0;
};

/// The mappings that we made in the process.
struct RegionRange {
  abi::RegionKind kind = abi::RegionKind::kNone;
  target::AddressRange range;
};

/// What came after the attach, sites in a library that was loaded later or behind a jump that was
/// not foreseen. What its sites point to.
struct Addition {
  std::shared_ptr<ProcessPlan> plan;
  AddressPlan addresses;
};

/// Entries of the site table, by the tracer's own account: the table is the target's to write.
class SiteSlots {
 public:
  SiteSlots() = default;
  explicit SiteSlots(uint32_t capacity) : capacity_(capacity) {}

  /// An entry for an edit of `owner`. Errors: none; nullopt where the table is full.
  std::optional<uint32_t> take(const PlannedSite* owner);
  void give_back(uint32_t slot);
  /// The entries of these sites.
  std::vector<uint32_t> of(const std::set<const PlannedSite*>& owners) const;
  size_t room() const { return free_.size() + (capacity_ - used_); }
  uint32_t used() const { return used_; }  ///< entries [0, used) have been in use

 private:
  uint32_t capacity_ = 0, used_ = 0;
  std::vector<uint32_t> free_;
  std::vector<const PlannedSite*> owners_;  ///< by entry; null: free
};

/// Owned by the trace. Nothing in it is read from memory that the target can write, but through
/// `region`.
struct Attachment {
  pid_t pid = 0;
  std::unique_ptr<target::Target> target;
  std::shared_ptr<ProcessPlan> plan;
  AddressPlan addresses;
  /// A deque: sites point into them, and a vector that grows would copy what they hold.
  std::deque<Addition> additions;
  TrapWatch trap_watch;  ///< used where `addresses` has a trap page
  std::vector<PatchedSite> sites;
  /// Sites in libraries that the process has unloaded. A child that it forked before may still have
  /// them, so they are undone like the others, and their entries stay in the site table until they
  /// are needed and no child lives (late.h).
  std::vector<PatchedSite> unloaded;
  SiteSlots slots;
  std::vector<Semaphore> semaphores;  ///< counters of static tracepoints that we raised
  std::vector<RegionRange> ranges;
  /// The same as the kernel lists them, memory files only: children have them too. `late_mappings`
  /// are those made after the attach: only children that were forked later have them.
  std::vector<os::MapEntry> mappings, late_mappings;
  Mapping data;        ///< our view of the data region
  shm::Region region;  ///< over `data`
  Switches switches;
  std::vector<engine::SiteReport> refused;
  std::vector<std::string> warnings;
  std::set<ModuleIdentity> modules;  ///< whose sites are set, or refused: newer ones are looked at
  uint32_t tracked = 0;              ///< the highest number of a tracked function
  bool awaits = false;  ///< a thread that loads a library waits for us (abi/loader_gate.h)
  uint64_t stopped_ns = 0;
};

/// Every site, for people; those that were refused last.
std::vector<engine::SiteReport> site_reports(const Attachment& attachment,
                                             const bundle::Bundle& bundle);

/// What attaching needs beside the process.
struct AttachContext {
  const bundle::Bundle* bundle = nullptr;
  PlanOptions plan = {};
  std::vector<bpf::Analysis> analyses;  ///< one a program: every program has passed the checker
  shm::Clock* clock = nullptr;
  bool count_hits = false;
  bool paused = false;  ///< all probes are switched off when the first jump is written
  /// Asked between tries: true gives up. May be empty.
  std::function<bool()> interrupted;
  /// Runs on the new maps before the process is stopped, once an attempt: BEGIN.
  std::function<Result<void>(shm::Region&)> begin;
  /// Told of each process before its probes are in place: it can be looked at, and may be gone a
  /// moment later. May be empty.
  std::function<void(pid_t)> on_process;
  /// Runs in the stop, when all is mapped and no code byte has changed: for tests to fail there.
  std::function<Result<void>()> before_patch;
};

struct ExtendOptions {
  /// The loader has not bound these modules yet: what is refused for now is not told of.
  bool is_early = false;
  /// Only these probes. Null: all.
  const std::set<int>* probes = nullptr;
};
struct Extended {
  bool any = false;       ///< something was set
  std::set<int> refused;  ///< early: probes that have no place yet, and may find one later
};

/// Sets the probes in modules that the process has loaded meanwhile, in the same shared memory.
/// Errors: those of attach(); busy: try again later. Whatever fails, the process and the attachment
/// are as before.
Result<Extended> extend(Attachment& attachment,
                        const std::set<ModuleIdentity>& modules,
                        const AttachContext& context,
                        const ExtendOptions& options = {});

/// Watches the returns behind targets that calls have strayed to, of different functions. Of each
/// what is watched now; null: it cannot be. Errors: as extend().
Result<std::vector<const PlannedReturns*>> watch_strays(Attachment& attachment,
                                                        const std::vector<Stray>& strays,
                                                        const AttachContext& context);

/// How a site's jump is made where it is no plain one: null.
const patch::Placement* placement_of(const Attachment& attachment, const PlannedSite& site);

/// Attaches to a running process.
/// Errors: those of Target::open and plan_process; unsafe when every site was refused; busy when
/// another spile holds the process; whatever fails, the process is as it was before.
Result<std::unique_ptr<Attachment>> attach(pid_t pid, const AttachContext& context);

/// Starts a program and attaches to it before its constructors run.
Result<std::unique_ptr<Attachment>> attach_command(const std::vector<std::string>& command,
                                                   const AttachContext& context);

}  // namespace spile::user_engine
