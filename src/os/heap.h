// The memory that malloc hands out, made ready for much work.
#pragma once

#include <cstdint>

namespace spile::os {

/// Before work that allocates some `bytes` in small pieces: one stretch of heap, of huge pages
/// where the kernel has them, and kept until the process ends. Without it a tenth of the time goes
/// into page faults and into giving memory back that is asked for again. Nothing is allocated yet.
void expect_heap_use(uint64_t bytes);

}  // namespace spile::os
