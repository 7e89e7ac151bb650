// The bytes of a code region behind the blob, the constants and the map descriptors
// (shm::write_code_prefix): program bodies, then one detour a site. Pure: addresses in, bytes out.
#pragma once

#include <array>
#include <map>
#include <span>
#include <vector>

#include "abi/code_region.h"
#include "base/error.h"
#include "bpf/checker.h"
#include "bundle/bundle.h"
#include "user_engine/jit/detour.h"
#include "user_engine/jit/jit.h"
#include "user_engine/patch/placement.h"
#include "user_engine/site_plan.h"

namespace spile::user_engine {

/// What our checker is told about one program of a bundle.
bpf::CheckEnv check_env(const bundle::Bundle& bundle, const bundle::Program& program);

/// One analysis a program, for the JIT. Errors: the checker's, with the program's name.
Result<std::vector<bpf::Analysis>> check_programs(const bundle::Bundle& bundle);

struct CodeRequest {
  TargetAddr base;  ///< where the region will be mapped
  const bundle::Bundle* bundle = nullptr;
  std::span<const bpf::Analysis> analyses;  ///< one a program
  std::vector<abi::RtMap> maps;             ///< descriptors with addresses of the target
  std::vector<const PlannedSite*> sites;
  /// Sites whose bytes are decided already: their jump leads to a stone that goes on to the detour.
  const std::map<const PlannedSite*, patch::Placement>* placements = nullptr;
  jit::CpuNumber cpu = jit::CpuNumber::kRdpid;
  TargetAddr cpu_stats;  ///< of CPU slot 0
  uint32_t cpu_mask = 0;
  bool count_hits = false;
  bool has_private_stacks = false;  ///< the pool is mapped, and the constants have its addresses
};

struct BuiltSite {
  const PlannedSite* site = nullptr;
  TargetAddr detour;
  std::vector<patch::Segment> segments;  ///< the last with the jump back
  std::vector<patch::Edit> edits;        ///< what is written; the last is at the site
  uint32_t stack_bytes = 0;
};

/// A word of the region that switches programs (jit::Gate).
struct CodeGate {
  uint32_t offset = 0;                   ///< in CodeImage::bytes
  uint32_t first_probe = 0, probes = 0;  ///< in CodeImage::gate_probes
  uint64_t open = 0, closed = 0;
};

struct CodeImage {
  TargetAddr base;
  std::vector<uint8_t> bytes;  ///< whole pages from `base` on; zero up to abi::bodies_offset
  std::vector<BuiltSite> sites;
  /// Of the original bytes at sites in modules that have no file: offset in `bytes`, entries.
  uint32_t saved_offset = 0, saved_count = 0;
  std::vector<std::pair<const PlannedSite*, std::string>>
      refused;  ///< a hit would need more stack than there is
  std::vector<CodeGate> gates;
  /// Indices into Bundle::probes; its size stands for what is never switched.
  std::vector<uint32_t> gate_probes;
};

/// An upper bound of the size, known before the address.
uint64_t max_code_bytes(const bundle::Bundle& bundle, std::span<const PlannedSite* const> sites);

/// What compiling a program for the region of `request` takes. `base` is for the caller to set.
jit::JitEnv jit_environment(const CodeRequest& request);

Result<CodeImage> build_code(const CodeRequest& request);

}  // namespace spile::user_engine
