#include "api/signal_chain.h"

#include <atomic>
#include <memory>

namespace spile::api {
namespace {

/// Never freed: a signal may come at any time.
struct Before {
  struct sigaction action = {};
  std::atomic<bool> is_used_up{false};  ///< SA_RESETHAND: it has been called
};
std::atomic<Before*> g_before[NSIG];

bool is_function(const struct sigaction& action) {
  return (action.sa_flags & SA_SIGINFO) != 0 ||
         (action.sa_handler != SIG_DFL && action.sa_handler != SIG_IGN);
}

/// What was there before is known before ours can run.
Result<void> install(int signal, SignalHandler ours, int flags, const struct sigaction& now) {
  auto before = std::make_unique<Before>();
  before->action = now;
  struct sigaction action = {};
  action.sa_sigaction = ours;
  // A system call that a signal of the program interrupts is restarted where the program wants it.
  action.sa_flags = SA_SIGINFO | SA_NODEFER | flags | (now.sa_flags & SA_RESTART);
  Before* const last = g_before[signal].exchange(before.release());
  if (::sigaction(signal, &action, nullptr) == 0) return {};
  const int error = errno;
  g_before[signal] = last;
  return fail_errno(error, "handle signal {}", signal);
}

/// The kernel puts the mask of the interrupted code back when we return.
void block_as_wanted(int signal, const struct sigaction& action) {
  sigset_t blocked = action.sa_mask;
  if ((action.sa_flags & SA_NODEFER) == 0) ::sigaddset(&blocked, signal);
  ::pthread_sigmask(SIG_BLOCK, &blocked, nullptr);
}

/// True: the program's own handler has had it.
bool call_before(Before& before, int signal, siginfo_t* info, void* context) {
  const struct sigaction& action = before.action;
  if (!is_function(action)) return false;
  if ((action.sa_flags & SA_RESETHAND) != 0 && before.is_used_up.exchange(true)) return false;
  block_as_wanted(signal, action);
  if ((action.sa_flags & SA_SIGINFO) != 0) {
    action.sa_sigaction(signal, info, context);
  } else {
    action.sa_handler(signal);
  }
  return true;
}

}  // namespace

Result<void> stand_in_front(int signal, SignalHandler ours, int flags) {
  struct sigaction now = {};
  if (::sigaction(signal, nullptr, &now) != 0) return fail_errno(errno, "handle signal {}", signal);
  if ((now.sa_flags & SA_SIGINFO) != 0 && now.sa_sigaction == ours) return {};
  // One that was put there later may call ours, and ours would call it.
  if (g_before[signal].load() != nullptr && is_function(now))
    return fail(ErrorCode::kBusy,
                "the program has replaced the handler of signal {} ({}) since a probe needed it; "
                "install it before the first probe that does",
                signal, ::sigabbrev_np(signal));
  return install(signal, ours, flags, now);
}

void pass_on(int signal, siginfo_t* info, void* context) {
  Before* before = g_before[signal].load(std::memory_order_acquire);
  if (before != nullptr && call_before(*before, signal, info, context)) return;
  const bool is_exception = info->si_code > 0;
  const bool is_ignored =
      before != nullptr && !is_function(before->action) && before->action.sa_handler == SIG_IGN;
  if (is_ignored && !is_exception) return;
  // The kernel does not let an exception be ignored either.
  ::signal(signal, SIG_DFL);
  if (!is_exception || signal == SIGTRAP) ::raise(signal);
}

}  // namespace spile::api
