// ptrace(2) and its stops, typed. Every call must come from the thread that seized the tracee.
#pragma once

#include <linux/filter.h>
#include <sys/ptrace.h>
#include <sys/types.h>
#include <sys/user.h>

#include <chrono>
#include <cstdint>
#include <optional>
#include <vector>

#include "base/error.h"

namespace spile::os {

using Clock = std::chrono::steady_clock;
using Deadline = Clock::time_point;
using Registers = user_regs_struct;

/// orig_rax of a thread that is not in a system call.
inline constexpr uint64_t kNoSystemCall = ~0ull;

/// Codes that only the kernel sees: what a system call leaves in rax when it is to be started
/// again.
enum : int64_t {
  kErestartSys = -512,
  kErestartNoIntr = -513,
  kErestartNoHand = -514,
  kErestartRestartBlock = -516,
};

/// What a tracee reported.
struct Stop {
  enum class Kind {
    kEventStop,  ///< PTRACE_EVENT_STOP: our interrupt (signal SIGTRAP) or a group-stop (signal
                 ///< SIGSTOP, SIGTSTP, ...)
    kSignal,     ///< a signal is about to be delivered
    kSyscall,    ///< entry to or exit from a system call
    kClone,      ///< PTRACE_EVENT_CLONE, inside the system call
    kExec,       ///< PTRACE_EVENT_EXEC, inside the system call
    kOther,      ///< another event
    kExited,     ///< gone by exit; `signal` is the status
    kKilled,     ///< gone by signal
    kVanished,   ///< not ours any more: reaped, or replaced by an exec of another thread
  };
  Kind kind = Kind::kOther;
  int signal = 0;

  bool gone() const {
    return kind == Kind::kExited || kind == Kind::kKilled || kind == Kind::kVanished;
  }
};

/// Options are PTRACE_O_*; PTRACE_O_TRACESYSGOOD is always added: without it a tracer that dies
/// between a system call stop and its wait would leave the tracee with a SIGTRAP (kernel:
/// ptrace_report_syscall).
Result<void> ptrace_seize(pid_t tid, uint64_t options);
Result<void> ptrace_set_options(pid_t tid, uint64_t options);
Result<void> ptrace_interrupt(pid_t tid);
Result<void> ptrace_detach(pid_t tid, int signal);
Result<void> ptrace_cont(pid_t tid, int signal);
Result<void> ptrace_singlestep(pid_t tid, int signal);
/// Runs to the next system call stop.
Result<void> ptrace_syscall(pid_t tid, int signal);

Result<Registers> ptrace_get_registers(pid_t tid);
Result<void> ptrace_set_registers(pid_t tid, const Registers& registers);

/// The blocked signals that the thread itself believes in: inside sigsuspend, ppoll and the like
/// the saved mask.
Result<uint64_t> ptrace_get_signal_mask(pid_t tid);
Result<void> ptrace_set_signal_mask(pid_t tid, uint64_t mask);

/// At kClone: the thread id of the child.
Result<uint64_t> ptrace_event_message(pid_t tid);

struct SyscallStop {
  bool entry = false;   ///< else exit
  uint64_t number = 0;  ///< at entry
  int64_t value = 0;    ///< at exit
  uint64_t rip = 0;     ///< behind the system call instruction
};
Result<SyscallStop> ptrace_syscall_info(pid_t tid);

/// Where the thread has registered its rseq area; `area` 0: it has not. Linux 5.13.
struct RseqConfig {
  uint64_t area = 0;
  uint32_t size_bytes = 0;
  uint32_t signature = 0;
};
Result<RseqConfig> ptrace_rseq_config(pid_t tid);

/// True when the thread redirects its own system calls (PR_SET_SYSCALL_USER_DISPATCH, as Wine
/// does). Linux 6.4; older kernels cannot tell and answer false.
bool ptrace_user_dispatch(pid_t tid);

/// The seccomp filters of a stopped thread, classic BPF, newest first. Errors: denied without
/// CAP_SYS_ADMIN, invalid for a thread in strict mode, unsupported by kernels without
/// CONFIG_CHECKPOINT_RESTORE.
Result<std::vector<std::vector<sock_filter>>> ptrace_seccomp_filters(pid_t tid);

/// Looks for a stop without waiting. A stop is left unconsumed (WNOWAIT): should the tracer die in
/// a signal-delivery stop, the kernel then still delivers the signal (a consumed one would be
/// lost). The end of a thread is consumed, unless it is a child of this process (`keep_zombie`).
Result<std::optional<Stop>> peek_stop(pid_t tid, bool keep_zombie);

/// Waits for a stop: spins for some microseconds (a stop takes 5 us when pinned to the tracee's
/// CPU), then sleeps. nullopt when `deadline` has passed.
Result<std::optional<Stop>> wait_stop(pid_t tid, Deadline deadline, bool keep_zombie);

}  // namespace spile::os
