// What happens at a probe: read by the code of hit.cc and trampoline.S while the program runs,
// written by engine.cc.
//
// Everything a hit reads is published whole and freed only behind wait_for_readers().
#pragma once

#include <spile/probes.h>

#include <atomic>
#include <cstddef>
#include <cstdint>

namespace spile::api {

struct Site;

/// What one registration wants at one site. Its owner embeds it.
struct Hook {
  /// Before the instruction; not 0: go on at regs->ip, asking nobody else.
  int (*before)(Hook*, Site*, spile_regs*) = nullptr;
  /// Behind it.
  void (*behind)(Hook*, Site*, spile_regs*) = nullptr;
  unsigned long* missed = nullptr;  ///< counts hits inside a handler
  void* owner = nullptr;
};

/// A probed instruction. Never freed: its code stays.
struct Site {
  uint64_t address = 0;
  /// Ends with a null; null: none. Pairs with spile_enter() in hit.cc.
  std::atomic<Hook* const*> hooks{nullptr};
  /// Where the displaced instruction begins, and where it would be followed in the original code.
  uint64_t displaced = 0, next = 0;
};

static_assert(offsetof(Hook, before) == 0 && offsetof(Site, address) == 0 &&
              offsetof(Site, hooks) == 8);  // trampoline.S

}  // namespace spile::api

extern "C" {
/// trampoline.S, called by a detour with a Site on the stack. _general leaves vector registers
/// alone; the others keep them: _full by xsave, _512 and _avx by hand, where only that can be live
/// which they know (at an entry; elsewhere they look at what is in use).
void spile_hit_full();
void spile_hit_general();
void spile_hit_behind_full();
void spile_hit_behind_general();
void spile_hit_entry_512();
void spile_hit_entry_avx();
void spile_hit_inside_512();
void spile_hit_inside_avx();
void spile_hit_behind_512();
void spile_hit_behind_avx();
/// hit.cc. 1: go on at regs->ip. For a breakpoint `regs` is a copy of the signal's context.
int spile_dispatch(spile_regs* regs, spile::api::Site* site);
int spile_dispatch_behind(spile_regs* regs, spile::api::Site* site);
/// What xsave writes: x87, SSE, AVX, masks and AVX-512; set before the first probe.
extern uint64_t spile_xsave_mask;
extern uint32_t spile_has_xsavec;
}
