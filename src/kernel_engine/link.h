// A program hung on an event, and what the kernel says about it afterwards.
#pragma once

#include <optional>

#include "base/fd.h"
#include "kernel_engine/attach_path.h"
#include "kernel_engine/tracefs_event.h"

namespace spile::kernel_engine {

/// Closing all takes the probe out; the link first, the definition last.
struct Link {
  std::optional<TracefsEvent> definition;
  Fd event;
  Fd link;
};

/// Hangs the program on a perf event and lets it run: by kLink with a cookie, by kIoctl without.
Result<Link> hang_on(Fd event, int program_fd, AttachPath path, uint64_t cookie);

/// What the kernel counted as missed at this link itself (6.7; 0 before).
uint64_t missed_by(const Link& link);

}  // namespace spile::kernel_engine
