// Everything that a stop needs, made while the target runs: addresses, code, data, what is to be
// written where. Nothing of the target is changed.
#pragma once

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "abi/code_region.h"
#include "user_engine/address_plan.h"
#include "user_engine/attachment.h"
#include "user_engine/shm/region.h"

namespace spile::user_engine {

/// One edit, and the site that it is for.
struct Write {
  const patch::Edit* edit = nullptr;
  const BuiltSite* site = nullptr;
};

/// What is patched in one stop.
struct Batch {
  size_t first = 0, count = 0;          ///< in Prepared::writes
  std::vector<const BuiltSite*> sites;  ///< those whose own bytes are written, by address
};

/// Pointers in it point into it; it may be moved.
struct Prepared {
  AddressPlan addresses;
  std::vector<CodeImage> code;  ///< one a neighbourhood
  shm::RegionLayout layout;
  Mapping image;             ///< of the data region: formatted, BEGIN has run on it
  shm::Region image_region;  ///< over `image`
  std::vector<abi::SafeRange> safe_ranges;
  std::vector<uint8_t> trap_page;  ///< at addresses.trap_page; empty: no int3s
  abi::SafeRange main_stack = {};  ///< the [stack] mapping; empty: unknown
  int seccomp_mode = 0;
  std::vector<BuiltSite*> built;     ///< by address
  std::vector<Write> writes;         ///< by level, then by address
  std::vector<Batch> batches;        ///< in the order of writing
  std::vector<uint32_t> by_address;  ///< indices into writes
  /// Counters of static tracepoints to be raised, each once however many of its places are probed.
  std::vector<Semaphore> semaphores;
  /// Sites that must be left out, with the reason. Then the rest of this is not to be used: others
  /// may have counted on their bytes.
  std::vector<std::pair<const PlannedSite*, std::string>> refused;

  std::span<const Write> writes_of(const Batch& batch) const {
    return std::span(writes).subspan(batch.first, batch.count);
  }
};

/// The shared memory that an attachment has already.
struct Home {
  shm::RegionLayout layout;
  TargetAddr data_base, private_base;
  std::optional<TargetAddr> pending_base;
};

struct PrepareOptions {
  const Home* home = nullptr;  ///< the sites join these; null: memory of their own
  /// Without a home: what may come to be needed when libraries are loaded later.
  size_t later_edits = 0;
  bool later_calls = false;  ///< calls may have to be noted (Action::Kind::kNote)
};

/// Makes `built`, `writes`, `by_address` and `batches` of the sites in `code`.
void order_writes(Prepared& prepared);

/// Errors: those of plan_addresses, of the JIT and of context.begin.
Result<Prepared> prepare(const target::Target& target,
                         const AttachContext& context,
                         const std::vector<const PlannedSite*>& sites,
                         const PrepareOptions& options = {});

}  // namespace spile::user_engine
