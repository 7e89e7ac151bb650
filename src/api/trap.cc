// Breakpoints: the SIGTRAP handler of the library.
//
// It is put there at the first breakpoint and stays: a thread may have run into one that is gone by
// the time that its signal is delivered. It then finds the original byte and lets the thread run
// it. Signals that are not ours go to the handler that was there before. Red zone and vector
// registers are the kernel's care: the signal frame keeps them.
#include <signal.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <memory>
#include <vector>

#include "api/engine.h"
#include "api/signal_chain.h"
#include "api/signal_context.h"
#include "os/process.h"

namespace spile::api {
namespace {

/// By address; replaced as a whole, never freed: a signal may come at any time. Grows only.
struct Traps {
  std::vector<Site*> sites;
};
std::atomic<const Traps*> g_traps{nullptr};

Site* trap_at(uint64_t address) {
  const Traps* traps = g_traps.load(std::memory_order_acquire);
  if (traps == nullptr) return nullptr;
  const auto it = std::lower_bound(traps->sites.begin(), traps->sites.end(), address,
                                   [](const Site* s, uint64_t a) { return s->address < a; });
  return it != traps->sites.end() && (*it)->address == address ? *it : nullptr;
}

void hit(Site& site, ucontext_t& context) {
  greg_t* g = context.uc_mcontext.gregs;
  spile_regs regs = registers_of(context);
  const bool redirected = spile_dispatch(&regs, &site) != 0;
  put_registers(regs, context);
  const uint64_t displaced = __atomic_load_n(&site.displaced, __ATOMIC_ACQUIRE);
  g[REG_RIP] = static_cast<greg_t>(redirected ? regs.ip : displaced);
}

void on_trap(int signal, siginfo_t* info, void* raw) {
  auto& context = *static_cast<ucontext_t*>(raw);
  const auto address = static_cast<uint64_t>(context.uc_mcontext.gregs[REG_RIP]) - 1;
  const bool is_breakpoint = info->si_code == SI_KERNEL || info->si_code == TRAP_BRKPT;
  Site* site = is_breakpoint ? trap_at(address) : nullptr;
  if (site == nullptr) return pass_on(signal, info, raw);
  constexpr uint8_t kInt3 = 0xcc;
  if (*reinterpret_cast<const volatile uint8_t*>(address) != kInt3) {
    context.uc_mcontext.gregs[REG_RIP] = static_cast<greg_t>(address);
    return;
  }
  hit(*site, context);
}

Result<void> look_for_blocked() {
  SPILE_TRY(const auto threads, os::list_threads(::getpid()));
  for (const pid_t tid : threads) {
    const auto status = os::read_status(tid);
    if (status && (status->blocked >> (SIGTRAP - 1) & 1) != 0)
      return fail(ErrorCode::kUnsafe,
                  "thread {} has SIGTRAP blocked: a breakpoint there would kill the program", tid);
  }
  return {};
}

/// A breakpoint kills a program whose thread has SIGTRAP blocked. Threads that begin or end have
/// all signals blocked for a moment, so this looks more than once. What will be blocked later
/// nobody knows: that is the risk of SPILE_ALLOW_TRAP.
Result<void> expect_unblocked() {
  constexpr int kLooks = 20;
  for (int look = 1;; ++look) {
    auto done = look_for_blocked();
    if (done || look == kLooks) return done;
    const timespec pause{0, 1'000'000};
    ::nanosleep(&pause, nullptr);
  }
}

}  // namespace

Result<void> add_trap(Site* site) {
  SPILE_TRY_VOID(expect_unblocked());
  SPILE_TRY_VOID(stand_in_front(SIGTRAP, on_trap, SA_RESTART));
  if (trap_at(site->address) != nullptr) return {};
  const Traps* old = g_traps.load();
  auto next = std::make_unique<Traps>(old == nullptr ? Traps{} : *old);
  const auto behind = std::ranges::lower_bound(next->sites, site->address, {}, &Site::address);
  next->sites.insert(behind, site);
  g_traps.store(next.release(), std::memory_order_release);
  return {};
}

}  // namespace spile::api
