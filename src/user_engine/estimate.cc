#include "user_engine/estimate.h"

#include <sys/mman.h>
#include <time.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <set>
#include <vector>

#include "base/fd.h"
#include "user_engine/code_image.h"
#include "user_engine/jit/detour.h"
#include "user_engine/shm/region.h"

namespace spile::user_engine {

namespace {

/// Rounds of calls; the quickest round counts, since interruptions only ever add. Few enough that
/// the records fit into the ring.
constexpr int kRounds = 5, kCallsARound = 40;
/// Programs that are tried; the others are taken to be like them.
constexpr size_t kMostPrograms = 16;
/// Where the arguments point to.
constexpr size_t kArgumentBytes = 4096;

uint64_t now_ns() {
  timespec now = {};
  clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<uint64_t>(now.tv_sec) * 1'000'000'000 + static_cast<uint64_t>(now.tv_nsec);
}

Result<Mapping> map_memory(size_t size_bytes) {
  void* at = mmap(nullptr, size_bytes, PROT_READ | PROT_WRITE,
                  MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (at == MAP_FAILED) return fail_errno(errno, "map {} bytes", size_bytes);
  return Mapping(at, size_bytes);
}

/// Calls the detour as a function with `argument` in every argument register.
void hit(uint64_t detour, uint64_t argument) {
  using Function = void (*)(uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t);
  reinterpret_cast<Function>(detour)(argument, argument, argument, argument, argument, argument);
}

double quickest_ns(uint64_t detour, uint64_t argument) {
  double best = 0;
  for (int round = 0; round < kRounds; round++) {
    uint64_t begin = now_ns();
    for (int i = 0; i < kCallsARound; i++) hit(detour, argument);
    double ns = static_cast<double>(now_ns() - begin) / kCallsARound;
    best = round == 0 ? ns : std::min(best, ns);
  }
  return best;
}

/// A code region of our own with one detour a program.
class Model {
 public:
  Model(const bundle::Bundle& bundle, std::span<const bpf::Analysis> analyses)
      : bundle_(bundle), analyses_(analyses) {}

  Result<void> prepare() {
    SPILE_TRY(auto layout, shm::plan_region(bundle_, {}));
    SPILE_TRY(data_, map_memory(layout.size_bytes));
    uint64_t size = max_code_bytes(bundle_, {}) +
                    bundle_.programs.size() * (jit::kMaxDetourBytes + jit::kMaxProgramCallBytes);
    SPILE_TRY(code_, map_memory(size));
    SPILE_TRY(arguments_, map_memory(kArgumentBytes));
    SPILE_TRY(region_, shm::Region::format(data_.bytes(), std::move(layout)));
    auto data_base = reinterpret_cast<uint64_t>(data_.data());
    auto consts = shm::consts_for(region_.layout(), data_base, base().value);
    SPILE_TRY(used_, shm::write_code_prefix(code_.bytes(), region_.layout(), consts));
    request_.base = base();
    request_.bundle = &bundle_;
    for (size_t i = 0; i < region_.layout().maps.size(); i++)
      request_.maps.push_back(shm::map_descriptor(region_.layout(), i, data_base));
    request_.cpu =
        (consts.flags & abi::kHasRdpid) != 0 ? jit::CpuNumber::kRdpid : jit::CpuNumber::kLsl;
    request_.cpu_stats = TargetAddr(data_base) + abi::kStatsOffset;
    request_.cpu_mask = consts.cpu_mask;
    return {};
  }

  Result<void> add(size_t program) {
    jit::JitEnv env = jit_environment(request_);
    env.base = here();
    SPILE_TRY(auto body, jit::compile(bundle_.programs[program].code, analyses_[program], env));
    put(body.bytes);
    jit::DetourSpec spec;
    spec.at = spec.site = here();
    spec.at_entry = spec.may_override = true;
    spec.programs.push_back({&body, 0});
    spec.cpu = request_.cpu;
    spec.hits = jit::HitCounter{request_.cpu_stats + offsetof(abi::CpuStats, hits),
                                sizeof(abi::CpuStats), request_.cpu_mask};
    spec.displaced = [](TargetAddr) -> Result<std::vector<uint8_t>> {
      return std::vector<uint8_t>{0xc3};  // ret: the probed function does nothing
    };
    SPILE_TRY(auto detour, jit::emit_detour(spec));
    detours_.push_back(here().value);
    put(detour.bytes);
    return {};
  }

  Result<double> run() {
    if (mprotect(code_.data(), code_.size(), PROT_READ | PROT_EXEC) != 0)
      return fail_errno(errno, "make code executable");
    auto argument = reinterpret_cast<uint64_t>(arguments_.data());
    double sum = 0;
    for (uint64_t detour : detours_) sum += quickest_ns(detour, argument);
    return detours_.empty() ? 0 : sum / static_cast<double>(detours_.size());
  }

 private:
  TargetAddr base() const { return TargetAddr(reinterpret_cast<uint64_t>(code_.data())); }
  TargetAddr here() const { return base() + used_; }
  void put(std::span<const uint8_t> bytes) {
    SPILE_CHECK(used_ + bytes.size() <= code_.size());
    std::ranges::copy(bytes, code_.data() + used_);
    used_ = (used_ + bytes.size() + 15) / 16 * 16;
  }

  const bundle::Bundle& bundle_;
  std::span<const bpf::Analysis> analyses_;
  Mapping data_, code_, arguments_;
  shm::Region region_;
  CodeRequest request_;
  uint64_t used_ = 0;
  std::vector<uint64_t> detours_;
};

}  // namespace

Result<double> estimate_hit_ns(const bundle::Bundle& bundle,
                               std::span<const bpf::Analysis> analyses) {
  std::set<size_t> programs;
  for (const bundle::Probe& probe : bundle.probes) {
    bool in_process = probe.kind == bundle::ProbeKind::kUprobe ||
                      probe.kind == bundle::ProbeKind::kUretprobe ||
                      probe.kind == bundle::ProbeKind::kUsdt;
    if (in_process && programs.size() < kMostPrograms)
      programs.insert(static_cast<size_t>(probe.program));
  }
  Model model(bundle, analyses);
  SPILE_TRY_VOID(model.prepare());
  for (size_t program : programs) SPILE_TRY_VOID(model.add(program));
  return model.run();
}

}  // namespace spile::user_engine
