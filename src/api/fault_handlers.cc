// The fault handler of older kernels' kprobes: what a handler does about an exception in itself.
//
// Exceptions of a program are signals. While a handler with a fault handler runs, its thread says
// so; the signal handler looks there and asks it. Every other signal goes on to what was there
// before.
#include <signal.h>

#include <cerrno>
#include <cstddef>

#include <spile/detail/kprobe_5_4.h>

#include "api/boundary.h"
#include "api/engine.h"
#include "api/signal_chain.h"
#include "api/signal_context.h"

namespace spile::api {
namespace {

static_assert(offsetof(spile_kprobe_5_4, own_post_handler) == offsetof(spile_kprobe, post_handler));
static_assert(offsetof(spile_kprobe_5_4, nmissed) == offsetof(spile_kprobe, nmissed));

constexpr int kSignals[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL};

/// Whose handler the thread is in.
__attribute__((tls_model("initial-exec"))) thread_local spile_kprobe_5_4* t_inside = nullptr;

class Inside {
 public:
  explicit Inside(spile_kprobe_5_4* p) { t_inside = p->fault_handler != nullptr ? p : nullptr; }
  ~Inside() { t_inside = nullptr; }
  Inside(const Inside&) = delete;
  Inside& operator=(const Inside&) = delete;
};

int run_before(spile_kprobe* own, spile_regs* regs) {
  auto* p = reinterpret_cast<spile_kprobe_5_4*>(own);
  const Inside inside(p);
  return p->pre_handler(p, regs);
}

void run_behind(spile_kprobe* own, spile_regs* regs, unsigned long flags) {
  auto* p = reinterpret_cast<spile_kprobe_5_4*>(own);
  const Inside inside(p);
  p->post_handler(p, regs, flags);
}

/// True: the handler goes on, where the fault handler wants.
bool is_handled(ucontext_t& context) {
  spile_kprobe_5_4* p = t_inside;
  spile_regs regs = registers_of(context);
  t_inside = nullptr;  // an exception in here is the program's
  const int trap = static_cast<int>(context.uc_mcontext.gregs[REG_TRAPNO]);
  const bool handled = p->fault_handler(p, &regs, trap) != 0;
  t_inside = p;
  if (!handled) return false;
  put_registers(regs, context);
  context.uc_mcontext.gregs[REG_RIP] = static_cast<greg_t>(regs.ip);
  return true;
}

void on_fault(int signal, siginfo_t* info, void* raw) {
  const int kept_errno = errno;
  const bool is_ours = t_inside != nullptr && info->si_code > 0;
  if (!is_ours || !is_handled(*static_cast<ucontext_t*>(raw))) pass_on(signal, info, raw);
  errno = kept_errno;
}

Result<void> handle_faults() {
  for (int signal : kSignals) SPILE_TRY_VOID(stand_in_front(signal, on_fault, SA_ONSTACK));
  return {};
}

}  // namespace
}  // namespace spile::api

using namespace spile::api;

extern "C" int spile_register_kprobe_5_4(spile_kprobe_5_4* p) {
  return guarded([&] {
    if (p == nullptr) return refuse(-EINVAL, "no probe");
    if (p->own.internal == nullptr) {
      p->own.pre_handler = p->pre_handler != nullptr ? run_before : nullptr;
      p->own.post_handler = p->post_handler != nullptr ? run_behind : nullptr;
    }
    if (p->fault_handler != nullptr) {
      const EngineSession session;
      if (const auto done = handle_faults(); !done) return refuse(done.error());
    }
    return spile_register_kprobe(&p->own);
  });
}
