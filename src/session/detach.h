// `spile detach`: cleans up after a spile that was killed.
#pragma once

#include <sys/types.h>

#include <vector>

namespace spile::session {

int detach(const std::vector<pid_t>& pids);

}  // namespace spile::session
