#include "api/machine.h"

#include <asm/prctl.h>
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

uint64_t spile_xsave_mask = 0;
uint32_t spile_has_xsavec = 0;

namespace spile::api {
namespace {

Trampolines g_trampolines;

/// `enabled`: XCR0; `state_features`: leaf 0xd, subleaf 1, eax.
Trampolines choose_trampolines(uint64_t enabled, unsigned state_features) {
  constexpr uint64_t kAvx = 0x4, kAvx512 = 0xe0;
  constexpr unsigned kTellsWhatIsInUse = 4;
  unsigned a = 0, features = 0, c = 0, d = 0;
  __get_cpuid_count(7, 0, &a, &features, &c, &d);
  constexpr unsigned kFoundationAndWords = 1u << 16 | 1u << 30;
  const bool has_512 =
      (enabled & kAvx512) == kAvx512 && (features & kFoundationAndWords) == kFoundationAndWords;
  const bool has_avx = (enabled & (kAvx | kAvx512)) == kAvx;
  Trampolines chosen;
  if (!has_512 && !has_avx) return chosen;
  chosen.entry = has_512 ? spile_hit_entry_512 : spile_hit_entry_avx;
  if ((state_features & kTellsWhatIsInUse) == 0) return chosen;
  chosen.inside = has_512 ? spile_hit_inside_512 : spile_hit_inside_avx;
  chosen.behind = has_512 ? spile_hit_behind_512 : spile_hit_behind_avx;
  return chosen;
}

}  // namespace

const Trampolines& trampolines() {
  return g_trampolines;
}

Result<void> check_machine() {
  if (spile_xsave_mask != 0) return {};
  unsigned a = 0, b = 0, c = 0, d = 0;
  constexpr unsigned kOsxsave = 1u << 27;
  if (__get_cpuid(1, &a, &b, &c, &d) == 0 || (c & kOsxsave) == 0)
    return fail(ErrorCode::kUnsupported, "this processor has no xsave");
  // A return that no call has made would be a fault.
  constexpr int kShadowStackStatus = 0x5005;
  unsigned long status = 0;
  if (::syscall(SYS_arch_prctl, kShadowStackStatus, &status) == 0 && (status & 1) != 0)
    return fail(ErrorCode::kUnsupported, "the program runs with a shadow stack (CET)");
  unsigned low = 0, high = 0;
  __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  constexpr unsigned kStateLeaf = 0xd, kXsavecBit = 2;
  if (__get_cpuid_count(kStateLeaf, 1, &a, &b, &c, &d) != 0) spile_has_xsavec = a & kXsavecBit;
  constexpr uint64_t kX87SseAvxAvx512 = 0xe7;
  g_trampolines = choose_trampolines(low, a);
  spile_xsave_mask = low & kX87SseAvxAvx512;
  return {};
}

}  // namespace spile::api
