// The hit path. Built for general registers only, calls nothing but the handlers and spile_enter(),
// takes no lock.
//
// A thread inside a handler does not run handlers: the probe counts a miss, and the program goes
// on. So a handler may call what is probed, and a signal handler may come at any moment.
#include "api/hit.h"

#include <errno.h>

#include "api/readers.h"

namespace {

using spile::api::Hook;
using spile::api::Site;

__attribute__((tls_model("initial-exec"))) thread_local bool t_is_running = false;

void count_missed(Hook* const* hooks) {
  for (; *hooks != nullptr; ++hooks) __atomic_fetch_add((*hooks)->missed, 1ul, __ATOMIC_RELAXED);
}

}  // namespace

extern "C" __attribute__((section("spile_hit_text"))) int spile_dispatch(spile_regs* regs,
                                                                         Site* site) {
  uint64_t* entered = spile_enter();
  int redirected = 0;
  regs->ip = site->address + 1;
  // Pairs with the release in engine.cc.
  Hook* const* hooks = site->hooks.load(std::memory_order_acquire);
  if (hooks != nullptr && t_is_running) {
    count_missed(hooks);
  } else if (hooks != nullptr) {
    t_is_running = true;
    const int kept_errno = errno;
    for (; *hooks != nullptr && redirected == 0; ++hooks) {
      Hook* hook = *hooks;
      if (hook->before != nullptr) redirected = hook->before(hook, site, regs) != 0;
    }
    errno = kept_errno;
    t_is_running = false;
  }
  spile_leave(entered);
  return redirected;
}

extern "C" __attribute__((section("spile_hit_text"))) int spile_dispatch_behind(spile_regs* regs,
                                                                                Site* site) {
  uint64_t* entered = spile_enter();
  regs->ip = site->next;
  Hook* const* hooks = site->hooks.load(std::memory_order_acquire);
  if (hooks != nullptr && !t_is_running) {
    t_is_running = true;
    const int kept_errno = errno;
    for (; *hooks != nullptr; ++hooks) {
      if ((*hooks)->behind != nullptr) (*hooks)->behind(*hooks, site, regs);
    }
    errno = kept_errno;
    t_is_running = false;
  }
  spile_leave(entered);
  return 0;
}
