// Helpers for programs that the tracer itself runs (BEGIN, END, interval) on a region's maps and
// rings.
#pragma once

#include <vector>

#include "bpf/interpreter.h"
#include "user_engine/shm/region.h"

namespace spile::shm {

/// Every helper that the blob has, bound to the tracer's view; `region` must outlive the table.
/// pid, tid, uid and comm are the tracer's, memory reads read the tracer's memory. Programs get the
/// address of an abi::HitFrame as context: its cookie is their probe.
bpf::HelperTable make_helpers(const Region& region);

/// What bpf::RunEnv::maps takes: addresses of the region's private descriptors.
std::vector<uint64_t> map_addresses(const Region& region);

}  // namespace spile::shm
