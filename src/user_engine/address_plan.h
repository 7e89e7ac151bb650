// Where in a process's address space our memory goes: code regions within reach of the modules that
// they serve, stones for short sites, the data region. Reads the process's mappings, changes
// nothing.
#pragma once

#include <deque>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "user_engine/code_image.h"
#include "user_engine/patch/placement.h"
#include "user_engine/site_plan.h"
#include "user_engine/target/process.h"

namespace spile::user_engine {

inline constexpr uint64_t kPageBytes = 4096;
inline uint64_t page_of(TargetAddr a) {
  return a.value / kPageBytes;
}

/// A code region and the sites that it serves.
struct Neighbourhood {
  std::vector<const PlannedSite*> sites;
  std::vector<target::AddressRange> modules;
  TargetAddr base;
  uint64_t max_code_bytes = 0;
};

struct AddressPlan {
  std::vector<Neighbourhood> neighbourhoods;
  /// Sites of instructions that only make room for others: no probes, in a neighbourhood like all.
  std::deque<PlannedSite> evicted;
  std::map<const PlannedSite*, patch::Placement> placements;
  std::vector<target::AddressRange> stone_pages;
  TargetAddr data_base, private_base;
  std::optional<target::AddressRange> trap_page;  ///< where there are int3s (abi/trap.h)
  std::optional<TargetAddr> pending_base;         ///< of the pending table, where calls are noted
  std::optional<TargetAddr> stacks_base;          ///< of the pool of private stacks, for Go
  std::vector<std::pair<const PlannedSite*, patch::Refusal>> refused;
};

/// Everything but the data region, whose size depends on the outcome.
///
/// Errors:  unsupported  no room within reach of a module
///          those of reading the process
Result<AddressPlan> plan_addresses(const target::Target& target,
                                   const bundle::Bundle& bundle,
                                   const std::vector<const PlannedSite*>& sites);

/// Chooses where the trap page goes. To be called before place_data. Errors: as plan_addresses.
Result<void> place_traps(const target::Target& target, uint64_t size_bytes, AddressPlan& plan);

/// What goes beside the data region.
struct DataNeighbours {
  bool pending_table = false, private_stacks = false;
};

/// Chooses data_base, private_base and what of pending_base and stacks_base is wanted.
/// Errors: as plan_addresses.
Result<void> place_data(const target::Target& target,
                        uint64_t size_bytes,
                        DataNeighbours wanted,
                        AddressPlan& plan);

}  // namespace spile::user_engine
