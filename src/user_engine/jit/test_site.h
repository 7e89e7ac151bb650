// Test support: a function of one instruction with a detour at it, and what must be as it was.
#pragma once

#include <gtest/gtest.h>

#include <cstring>
#include <vector>

#include "user_engine/jit/detour.h"
#include "user_engine/jit/test_programs.h"

namespace spile::jit::testing {

inline std::vector<uint8_t> jump_to(TargetAddr from, TargetAddr to) {
  auto distance = static_cast<int32_t>(to - (from + 5));
  std::vector<uint8_t> bytes(5);
  bytes[0] = 0xe9;
  std::memcpy(&bytes[1], &distance, 4);
  return bytes;
}

/// A piece of code with a 7-byte site in it, patched with a jump to a detour and run.
class Site {
 public:
  /// `code[site_offset, +7)` is one instruction that may be moved.
  Site(World& world, std::vector<uint8_t> code, size_t site_offset)
      : world_(world), offset_(site_offset) {
    code_ = world.page.put(code);
  }

  TargetAddr code() const { return code_; }
  TargetAddr address() const { return code_ + offset_; }

  DetourSpec spec(std::vector<DetourProgram> programs) {
    DetourSpec spec;
    spec.at = world_.page.next();
    spec.site = address();
    spec.programs = std::move(programs);
    spec.displaced = [this](TargetAddr at) -> Result<std::vector<uint8_t>> {
      auto* original = reinterpret_cast<const uint8_t*>(address().value);
      std::vector<uint8_t> bytes(original, original + kSiteBytes);
      auto back = jump_to(at + kSiteBytes, address() + kSiteBytes);
      bytes.insert(bytes.end(), back.begin(), back.end());
      return bytes;
    };
    return spec;
  }

  Detour patch(const DetourSpec& spec) {
    auto detour = emit_detour(spec);
    if (!detour) {
      ADD_FAILURE() << detour.error().message;
      return {};
    }
    world_.page.put(detour->bytes);
    auto jump = jump_to(address(), spec.at);
    std::memcpy(reinterpret_cast<void*>(address().value), jump.data(), jump.size());
    return std::move(*detour);
  }
  Detour patch(std::vector<DetourProgram> programs) { return patch(spec(std::move(programs))); }

  static constexpr size_t kSiteBytes = 7;

 private:
  World& world_;
  TargetAddr code_;
  size_t offset_;
};

// lea 0x11223344(%rax),%rax: changes a register, no flags; ret
inline const std::vector<uint8_t> kLeaRet = {0x48, 0x8d, 0x80, 0x44, 0x33, 0x22, 0x11, 0xc3};
inline constexpr uint64_t kLeaAdds = 0x11223344;

/// Every probe must leave the state that the bare function leaves, in all of these.
/// `vector_15_is_zeroed`: but for that register, which a detour to a private stack gives back zero.
inline void expect_state_kept(Site& site,
                              uint64_t gpr_added = kLeaAdds,
                              bool vector_15_is_zeroed = false) {
  for (uint64_t flags = 0; flags < 256; ++flags) {
    uint64_t arithmetic = (flags & 1) | (flags >> 1 & 1) << 2 | (flags >> 2 & 1) << 4 |
                          (flags >> 3 & 1) << 6 | (flags >> 4 & 1) << 7 | (flags >> 5 & 1) << 11;
    uint64_t others =
        (flags >> 6 & 1 ? kDirectionFlag : 0) | (flags >> 7 & 1 ? kAlignmentFlag | kIdFlag : 0);
    CpuState before = distinct_state(flags, arithmetic | others);
    CpuState after = run_with_state(site.code().value, before, {}, flags % 2 * 8);
    before.gpr[kRax] += gpr_added;
    if (vector_15_is_zeroed) before.xmm[15] = {};
    ASSERT_EQ(after.gpr, before.gpr) << "flags " << flags;
    ASSERT_EQ(after.flags, before.flags) << "flags " << flags;
    ASSERT_EQ(after.xmm, before.xmm) << "flags " << flags;
  }
}

/// Reads memory through a helper, multiplies, divides and shifts: uses every register it can.
inline bpf::Program busy_program(int map) {
  using bpf::Builder;
  using bpf::Helper;
  using bpf::Reg;
  namespace regs = bpf::x86_64_regs;
  Builder b;
  auto out = b.new_label();
  b.mov(Reg::r6, Reg::r1);
  b.call(Helper::kKtimeGetNs);
  b.mov(Reg::r7, Reg::r0);
  b.load(8, Reg::r8, Reg::r6, regs::kSi);
  b.load(8, Reg::r9, Reg::r6, regs::kFlags);
  b.alu(bpf::kDiv, Reg::r8, Reg::r7);
  b.alu(bpf::kLsh, Reg::r9, Reg::r8);
  b.store(8, Reg::r10, -16, Reg::r9);
  b.store(8, Reg::r10, -24, Reg::r8);
  b.load_map(Reg::r1, map);
  b.store_imm(4, Reg::r10, -4, 0);
  b.mov(Reg::r2, Reg::r10);
  b.alu_imm(bpf::kAdd, Reg::r2, -4);
  b.call(Helper::kMapLookupElem);
  b.jump_if_imm(bpf::kJeq, Reg::r0, 0, out);
  b.load(8, Reg::r3, Reg::r10, -16);
  b.alu(bpf::kMod, Reg::r3, Reg::r9);
  b.mov_imm(Reg::r1, 1);
  b.atomic(8, bpf::kAtomicAdd, Reg::r0, 0, Reg::r1);
  b.store(8, Reg::r0, 8, Reg::r3);
  b.bind(out);
  b.mov_imm(Reg::r0, 0);
  b.exit();
  return *std::move(b).finish();
}

inline JitEnv as_engine(JitEnv env) {
  env.keep_result = false;
  return env;
}

}  // namespace spile::jit::testing
