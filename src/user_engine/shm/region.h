// Lays out the data region of one process for a Bundle, formats it, and is the tracer's view of it.
//
//   plan_region(bundle)  ->  RegionLayout        pure: sizes and offsets, private to the tracer
//   Region::format(memory, layout)               header, ring words; the rest of fresh memory is
//   right as zeroes consts_for(layout, where the target has it)  what goes into the read-only code
//   region write_code_prefix(code, ...)                 blob, constants, map descriptors
//
// The Region never reads a size, offset or mask from the shared memory.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "abi/code_region.h"
#include "abi/data_region.h"
#include "abi/site.h"
#include "base/address.h"
#include "base/error.h"
#include "bundle/bundle.h"

namespace spile::shm {

struct RegionOptions {
  uint32_t cpus = 0;                       ///< highest CPU number + 1; 0: what this machine has
  uint32_t site_capacity = 0;              ///< entries of the site table
  uint64_t seed = 0;                       ///< of hash functions and the trace id; 0: random
  uint64_t max_bytes = uint64_t{1} << 32;  ///< a larger region is refused
  uint64_t max_ring_bytes = uint64_t{1}
                            << 26;  ///< of all CPUs of one ring map: rings are made smaller to fit
};

struct RegionLayout {
  uint64_t size_bytes = 0;  ///< a multiple of the page size
  uint32_t cpu_slots = 1;   ///< a power of two
  uint32_t site_capacity = 0;
  uint64_t sites_offset = 0, maps_offset = 0, rings_offset = 0;
  uint64_t trace_id = 0;
  std::vector<abi::RtMap> maps;  ///< addresses count from the start of the region
};

/// Where everything goes. Errors: invalid for a map that nobody could have (key or value too large,
/// a ring whose size is no power of two), unsupported for a region larger than options.max_bytes;
/// the map is named.
Result<RegionLayout> plan_region(const bundle::Bundle& bundle, const RegionOptions& options);

/// Descriptor of map `index` for an address space that has the region at `data_base`.
abi::RtMap map_descriptor(const RegionLayout& layout, size_t index, uint64_t data_base);

/// Constants for code that sees the region at `data_base`: geometry, CPU features of this machine.
/// The thread id comes from gettid, every system call is allowed, nothing is a safe range: the
/// caller refines that.
abi::RtConsts consts_for(const RegionLayout& layout, uint64_t data_base, uint64_t code_base);

/// Writes blob, constants and map descriptors to the start of a code region. Returns where program
/// bodies may start. Errors: invalid when they do not fit.
Result<uint64_t> write_code_prefix(std::span<uint8_t> code,
                                   const RegionLayout& layout,
                                   const abi::RtConsts& consts);

/// The tracer's view of one data region.
class Region {
 public:
  Region() = default;

  /// Takes fresh (zeroed) shared memory of layout.size_bytes and writes what must not be zero.
  /// `memory` must outlive it.
  static Result<Region> format(std::span<uint8_t> memory, RegionLayout layout);
  /// The same without writing: memory that format() was called on before, by us, with this layout.
  static Result<Region> view(std::span<uint8_t> memory, RegionLayout layout);

  const RegionLayout& layout() const { return layout_; }
  std::span<uint8_t> memory() const { return memory_; }
  size_t map_count() const { return maps_.size(); }
  /// Private descriptor with this process's addresses. `index` is an index into Bundle::maps.
  const abi::RtMap& map(size_t index) const { return maps_[index]; }
  /// Private constants with this process's addresses: what rt's operations need to run in the
  /// tracer.
  const abi::RtConsts& consts() const { return *consts_; }

  // Shared memory: what is read from it is untrusted.
  abi::Journal& journal_untrusted() const { return *at<abi::Journal>(abi::kJournalOffset); }
  std::span<abi::StrayCell> strays_untrusted() const {
    return {at<abi::StrayCell>(abi::kStrayOffset), abi::kStrayCells};
  }
  abi::LoaderGate& loader_gate_untrusted() const {
    return *at<abi::LoaderGate>(abi::kLoaderGateOffset);
  }
  abi::TimePage& time_page() const { return *at<abi::TimePage>(abi::kTimeOffset); }
  std::span<abi::SiteEntry> sites_untrusted() const {
    return {at<abi::SiteEntry>(layout_.sites_offset), layout_.site_capacity};
  }
  /// Added up over CPUs.
  abi::CpuStats stats_untrusted() const;

 private:
  template <typename T>
  T* at(uint64_t offset) const {
    return reinterpret_cast<T*>(memory_.data() + offset);
  }

  std::span<uint8_t> memory_;
  RegionLayout layout_;
  std::vector<abi::RtMap> maps_;
  std::unique_ptr<abi::RtConsts> consts_;
};

/// What an adopter may believe of a region's header: every section lies inside `memory`. Errors:
/// corrupt.
Result<abi::DataHeader> check_header(std::span<const uint8_t> memory);

}  // namespace spile::shm
