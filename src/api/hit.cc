// The hit path. Built for general registers only, calls nothing but the handlers and spile_enter(),
// takes no lock.
//
// A thread inside a handler does not run handlers: the probe counts a miss, and the program goes
// on. So a handler may call what is probed, and a signal handler may come at any moment.
#include "api/hit.h"

#include <errno.h>

#include "api/readers.h"

namespace {

using spile::api::begin_reading;
using spile::api::end_reading;
using spile::api::Hook;
using spile::api::kRunsHandlers;
using spile::api::Site;

void count_missed(Hook* const* hooks) {
  for (; *hooks != nullptr; ++hooks) __atomic_fetch_add((*hooks)->missed, 1ul, __ATOMIC_RELAXED);
}

/// Newest first; the first that is not 0 ends it. Each sees the program as it is there.
inline int run_before(Hook* const* hooks, Site* site, spile_regs* regs) {
  const unsigned long sp = regs->sp;
  for (; *hooks != nullptr; ++hooks) {
    regs->ip = site->address + 1;
    regs->sp = sp;
    if ((*hooks)->before != nullptr && (*hooks)->before(*hooks, site, regs) != 0) return 1;
  }
  return 0;
}

inline int run_behind(Hook* const* hooks, Site* site, spile_regs* regs) {
  for (; *hooks != nullptr; ++hooks) {
    if ((*hooks)->behind != nullptr) (*hooks)->behind(*hooks, site, regs);
  }
  return 0;
}

using Run = int (*)(Hook* const*, Site*, spile_regs*);

/// The first hit of a thread, one beyond the table of threads, one in a callback of a tracepoint or
/// in a handler.
template <Run Handlers, bool Counts>
__attribute__((section("spile_hit_text"), noinline)) int run_slowly(Site* site, spile_regs* regs) {
  uint64_t* entered = spile_enter();
  int redirected = 0;
  Hook* const* hooks = site->hooks.load(std::memory_order_acquire);
  uint64_t* word = spile_thread.word != nullptr ? spile_thread.word : &spile_thread.crowd_word;
  if (hooks != nullptr && (*word & kRunsHandlers) != 0) {
    if (Counts) count_missed(hooks);
  } else if (hooks != nullptr) {
    __atomic_store_n(word, *word | kRunsHandlers, __ATOMIC_RELAXED);
    const int kept_errno = errno;
    redirected = Handlers(hooks, site, regs);
    errno = kept_errno;
    __atomic_store_n(word, *word & ~kRunsHandlers, __ATOMIC_RELAXED);
  }
  spile_leave(entered);
  return redirected;
}

/// A thread that reads nothing runs no handler. trampoline.S has the same once more for handlers
/// that use general registers only, without registers to keep.
template <Run Handlers, bool Counts>
__attribute__((always_inline)) inline int run(Site* site, spile_regs* regs) {
  uint64_t* word = spile_thread.word;
  if (__builtin_expect(word == nullptr || *word != 0, 0))
    return run_slowly<Handlers, Counts>(site, regs);
  begin_reading(word, kRunsHandlers);
  int redirected = 0;
  // Pairs with the release in engine.cc.
  Hook* const* hooks = site->hooks.load(std::memory_order_acquire);
  if (__builtin_expect(hooks != nullptr, 1)) {
    const int kept_errno = *spile_thread.errno_place;
    redirected = Handlers(hooks, site, regs);
    *spile_thread.errno_place = kept_errno;
  }
  end_reading(word);
  return redirected;
}

}  // namespace

extern "C" __attribute__((section("spile_hit_text"))) int spile_dispatch(spile_regs* regs,
                                                                         Site* site) {
  return run<run_before, true>(site, regs);
}

extern "C" __attribute__((section("spile_hit_text"))) int spile_dispatch_behind(spile_regs* regs,
                                                                                Site* site) {
  regs->ip = site->next;
  return run<run_behind, false>(site, regs);
}
