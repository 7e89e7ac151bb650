#include "user_engine/detach.h"

#include <unistd.h>

#include "os/process.h"
#include "user_engine/undo.h"

namespace spile::user_engine {
namespace {

Job job_of(const std::vector<PatchedSite>& sites,
           const std::vector<Semaphore>& semaphores,
           const std::vector<RegionRange>& ranges) {
  Job job;
  job.semaphores = semaphores;
  for (const PatchedSite& site : sites) {
    for (const patch::Edit& edit : site.edits)
      job.patches.push_back({edit.at, edit.before, edit.after, edit.level,
                             &edit == &site.edits.back(), site.planned->image->module().inode});
    for (const patch::Segment& segment : site.segments) job.displaced.push_back(&segment.displaced);
  }
  job.sort();
  for (const RegionRange& region : ranges) {
    if (region.kind == abi::RegionKind::kCode) job.code.push_back(region.range);
    if (region.kind == abi::RegionKind::kData) job.journal = region.range.start;
    job.unmap.push_back(region.range);
  }
  return job;
}

}  // namespace

Result<DetachReport> detach(Attachment& attachment) {
  std::vector<PatchedSite> sites = attachment.sites;
  sites.insert(sites.end(), attachment.unloaded.begin(), attachment.unloaded.end());
  Job job = job_of(sites, attachment.semaphores, attachment.ranges);
  job.mappings = attachment.mappings;
  job.late = attachment.late_mappings;
  if (auto self = os::read_stat(getpid(), getpid())) job.tracer_start_time = self->start_time;
  return undo_everywhere(*attachment.target, job);
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
