#include "user_engine/detach.h"

#include <unistd.h>

#include "abi/data_region.h"
#include "os/process.h"
#include "user_engine/undo.h"

namespace spile::user_engine {
namespace {

void add_sites(const std::vector<PatchedSite>& sites, Job& job) {
  job.patches.reserve(job.patches.size() + sites.size());
  job.displaced.reserve(job.displaced.size() + sites.size());
  for (const PatchedSite& site : sites) {
    for (const patch::Edit& edit : site.edits)
      job.patches.push_back({edit.at, edit.before, edit.after, edit.level,
                             &edit == &site.edits.back(), site.planned->image->module().inode});
    if (site.planned->plan.mechanism == patch::Mechanism::kTrap)
      job.traps.insert(site.planned->plan.site);
    for (const patch::Segment& segment : site.segments) job.displaced.push_back(&segment.displaced);
  }
  job.sort();
}

/// `sites` must outlive the job.
Job job_of(const std::vector<PatchedSite>& sites,
           const std::vector<Semaphore>& semaphores,
           const std::vector<RegionRange>& ranges) {
  Job job;
  job.semaphores = semaphores;
  add_sites(sites, job);
  for (const RegionRange& region : ranges) {
    if (region.kind == abi::RegionKind::kCode) job.code.push_back(region.range);
    if (region.kind == abi::RegionKind::kStackPool) job.stacks = region.range;
    if (region.kind == abi::RegionKind::kData) job.journal = region.range.start;
    job.unmap.push_back(region.range);
  }
  if (job.journal) job.scratch = *job.journal + abi::kScratchOffset;
  return job;
}

Result<size_t> take_traps_out_of(const target::Target& target,
                                 const std::vector<PatchedSite>& sites) {
  return target::with_tracer_thread([&]() -> Result<size_t> {
    SPILE_TRY(auto process, target::StoppedProcess::stop(target));
    size_t count = 0;
    for (const PatchedSite& site : sites) {
      if (site.planned->plan.mechanism != patch::Mechanism::kTrap) continue;
      const patch::Edit& edit = site.edits.back();
      std::vector<uint8_t> now(edit.after.size());
      if (!process.memory().read(edit.at, now) || !std::ranges::equal(now, edit.after)) continue;
      SPILE_TRY_VOID(process.memory().write(edit.at, edit.before));
      count++;
    }
    return count;
  });
}

}  // namespace

Result<DetachReport> detach(Attachment& attachment, const std::function<void()>& while_waiting) {
  Job job = job_of(attachment.sites, attachment.semaphores, attachment.ranges);
  if (!attachment.unloaded.empty()) add_sites(attachment.unloaded, job);
  job.mappings = attachment.mappings;
  job.late = attachment.late_mappings;
  if (auto self = os::read_stat(getpid(), getpid())) job.tracer_start_time = self->start_time;
  job.while_waiting = while_waiting;
  return undo_everywhere(*attachment.target, job);
}

Result<size_t> take_traps_out(const Attachment& attachment) {
  SPILE_TRY(size_t count, take_traps_out_of(*attachment.target, attachment.sites));
  uint64_t since = 0;
  if (auto self = os::read_stat(getpid(), getpid())) since = self->start_time;
  for (pid_t pid : forked_children(attachment.mappings, since, {attachment.pid, getpid()})) {
    auto child = target::Target::open(pid);
    if (!child) continue;
    if (auto taken = take_traps_out_of(*child, attachment.sites)) count += *taken;
  }
  return count;
}

std::vector<pid_t> forked_children(const Attachment& attachment) {
  uint64_t since = 0;
  if (auto self = os::read_stat(getpid(), getpid())) since = self->start_time;
  return forked_children(attachment.mappings, since, {attachment.pid, getpid()});
}

Result<void> undo_in_stop(target::StoppedProcess& process,
                          const std::vector<PatchedSite>& sites,
                          const std::vector<Semaphore>& semaphores,
                          const std::vector<RegionRange>& ranges) {
  return undo_in_stop(process, job_of(sites, semaphores, ranges));
}

Result<void> undo_running(const target::Target& target,
                          const std::vector<PatchedSite>& sites,
                          const std::vector<Semaphore>& semaphores,
                          const std::vector<RegionRange>& ranges,
                          const std::vector<os::MapEntry>& mappings) {
  Job job = job_of(sites, semaphores, ranges);
  job.mappings = mappings;
  if (auto self = os::read_stat(getpid(), getpid())) job.tracer_start_time = self->start_time;
  SPILE_TRY([[maybe_unused]] auto report, undo_everywhere(target, job));
  return {};
}

}  // namespace spile::user_engine
