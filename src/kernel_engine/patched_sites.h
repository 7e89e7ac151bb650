// Places that a live process has patched: the kernel would run the file's instruction there.
#pragma once

#include <span>
#include <string>

#include "base/error.h"
#include "kernel_engine/multi_link.h"

namespace spile::kernel_engine {

/// Fails with unsafe when a live process has other bytes than the file at one of `sites`: somebody
/// patched it.
Result<void> refuse_patched_sites(const std::string& path, std::span<const UprobeSite> sites);

}  // namespace spile::kernel_engine
