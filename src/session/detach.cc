#include "session/detach.h"

#include <fmt/format.h>

#include <cstdio>

#include "session/request.h"
#include "user_engine/detach.h"

namespace spile::session {

int detach(const std::vector<pid_t>& pids) {
  int status = kOk;
  for (pid_t pid : pids) {
    auto target = target::Target::open(pid);
    if (target) {
      auto owner = user_engine::live_owner(*target);
      if (owner && *owner) {
        fmt::print(stderr,
                   "spile: process {} is being traced by spile process {}, which is alive: stop "
                   "that one (kill {})\n",
                   pid, **owner, **owner);
        status = kFailed;
        continue;
      }
    }
    auto report = user_engine::detach_leftovers(pid);
    if (!report) {
      fmt::print(stderr, "spile: detach from process {}: {}\n", pid, report.error().message);
      status = kFailed;
      continue;
    }
    for (const std::string& note : report->notes) fmt::print(stderr, "spile: {}\n", note);
    fmt::print("process {}: {} sites restored in {} process{}\n", pid, report->restored,
               report->processes, report->processes == 1 ? "" : "es");
  }
  return status;
}

}  // namespace spile::session
