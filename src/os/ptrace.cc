#include "os/ptrace.h"

#include <linux/ptrace.h>
#include <sched.h>
#include <signal.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "os/scheduling.h"
#include "os/step.h"

namespace spile::os {
namespace {

// Spelled as numbers: <linux/ptrace.h> and <sys/ptrace.h> define the same names in incompatible
// ways.
constexpr int kSeccompGetFilter = 0x420c;
constexpr int kGetRseqConfiguration = 0x420f;
constexpr int kGetSyscallUserDispatch = 0x4211;

/// The raw call: glibc's wrapper has a different interface for PEEK requests only, which we do not
/// use.
long raw_ptrace(int request, pid_t tid, uintptr_t addr, uintptr_t data) {
  return ::syscall(SYS_ptrace, static_cast<long>(request), static_cast<long>(tid), addr, data);
}

Result<void> request(int number, const char* name, pid_t tid, uintptr_t addr, uintptr_t data) {
  step(name);
  if (raw_ptrace(number, tid, addr, data) < 0)
    return fail_errno(errno, "{} of thread {}", name, tid);
  return {};
}

template <typename T>
uintptr_t pointer_to(T& value) {
  return reinterpret_cast<uintptr_t>(&value);
}

Stop decode_trap(int status) {
  const int event = status >> 8;
  const int signal = status & 0x7f;
  switch (event) {
    case PTRACE_EVENT_STOP: return {Stop::Kind::kEventStop, signal};
    case PTRACE_EVENT_CLONE: return {Stop::Kind::kClone, signal};
    case PTRACE_EVENT_EXEC: return {Stop::Kind::kExec, signal};
    case 0: break;
    default: return {Stop::Kind::kOther, signal};
  }
  return {(status & 0x80) != 0 ? Stop::Kind::kSyscall : Stop::Kind::kSignal, signal};
}

Stop decode(const siginfo_t& info) {
  switch (info.si_code) {
    case CLD_EXITED: return {Stop::Kind::kExited, info.si_status};
    case CLD_KILLED:
    case CLD_DUMPED: return {Stop::Kind::kKilled, info.si_status};
    default: return decode_trap(info.si_status);
  }
}

void sleep_for(std::chrono::nanoseconds time) {
  timespec t{};
  t.tv_nsec = static_cast<long>(time.count());
  ::nanosleep(&t, nullptr);
}

}  // namespace

Result<void> ptrace_seize(pid_t tid, uint64_t options) {
  return request(PTRACE_SEIZE, "ptrace SEIZE", tid, 0, options | PTRACE_O_TRACESYSGOOD);
}

Result<void> ptrace_set_options(pid_t tid, uint64_t options) {
  return request(PTRACE_SETOPTIONS, "ptrace SETOPTIONS", tid, 0, options | PTRACE_O_TRACESYSGOOD);
}

Result<void> ptrace_interrupt(pid_t tid) {
  return request(PTRACE_INTERRUPT, "ptrace INTERRUPT", tid, 0, 0);
}

Result<void> ptrace_detach(pid_t tid, int signal) {
  return request(PTRACE_DETACH, "ptrace DETACH", tid, 0, static_cast<uintptr_t>(signal));
}

Result<void> ptrace_cont(pid_t tid, int signal) {
  return request(PTRACE_CONT, "ptrace CONT", tid, 0, static_cast<uintptr_t>(signal));
}

Result<void> ptrace_singlestep(pid_t tid, int signal) {
  return request(PTRACE_SINGLESTEP, "ptrace SINGLESTEP", tid, 0, static_cast<uintptr_t>(signal));
}

Result<void> ptrace_syscall(pid_t tid, int signal) {
  return request(PTRACE_SYSCALL, "ptrace SYSCALL", tid, 0, static_cast<uintptr_t>(signal));
}

Result<Registers> ptrace_get_registers(pid_t tid) {
  Registers registers{};
  SPILE_TRY_VOID(request(PTRACE_GETREGS, "ptrace GETREGS", tid, 0, pointer_to(registers)));
  return registers;
}

Result<void> ptrace_set_registers(pid_t tid, const Registers& registers) {
  return request(PTRACE_SETREGS, "ptrace SETREGS", tid, 0, pointer_to(registers));
}

Result<uint64_t> ptrace_get_signal_mask(pid_t tid) {
  uint64_t mask = 0;
  SPILE_TRY_VOID(
      request(PTRACE_GETSIGMASK, "ptrace GETSIGMASK", tid, sizeof mask, pointer_to(mask)));
  return mask;
}

Result<void> ptrace_set_signal_mask(pid_t tid, uint64_t mask) {
  return request(PTRACE_SETSIGMASK, "ptrace SETSIGMASK", tid, sizeof mask, pointer_to(mask));
}

Result<uint64_t> ptrace_event_message(pid_t tid) {
  unsigned long message = 0;
  SPILE_TRY_VOID(request(PTRACE_GETEVENTMSG, "ptrace GETEVENTMSG", tid, 0, pointer_to(message)));
  return message;
}

Result<SyscallStop> ptrace_syscall_info(pid_t tid) {
  __ptrace_syscall_info info{};
  SPILE_TRY_VOID(request(PTRACE_GET_SYSCALL_INFO, "ptrace GET_SYSCALL_INFO", tid, sizeof info,
                         pointer_to(info)));
  if (info.op == PTRACE_SYSCALL_INFO_ENTRY)
    return SyscallStop{true, info.entry.nr, 0, info.instruction_pointer};
  if (info.op == PTRACE_SYSCALL_INFO_EXIT)
    return SyscallStop{false, 0, info.exit.rval, info.instruction_pointer};
  return fail(ErrorCode::kInternal, "thread {} is not at a system call stop", tid);
}

Result<RseqConfig> ptrace_rseq_config(pid_t tid) {
  struct {
    uint64_t area;
    uint32_t size, signature, flags, pad;
  } config{};
  SPILE_TRY_VOID(request(kGetRseqConfiguration, "ptrace GET_RSEQ_CONFIGURATION", tid, sizeof config,
                         pointer_to(config)));
  return RseqConfig{config.area, config.size, config.signature};
}

bool ptrace_user_dispatch(pid_t tid) {
  struct {
    uint64_t mode, selector, offset, length;
  } config{};
  step("ptrace GET_SYSCALL_USER_DISPATCH");
  return raw_ptrace(kGetSyscallUserDispatch, tid, sizeof config, pointer_to(config)) == 0 &&
         config.mode != 0;
}

Result<std::vector<std::vector<sock_filter>>> ptrace_seccomp_filters(pid_t tid) {
  std::vector<std::vector<sock_filter>> filters;
  for (uintptr_t index = 0;; index++) {
    step("ptrace SECCOMP_GET_FILTER");
    const long count = raw_ptrace(kSeccompGetFilter, tid, index, 0);
    if (count < 0 && errno == ENOENT) return filters;  // behind the last one
    if (count < 0) return fail_errno(errno, "read the seccomp filters of thread {}", tid);
    std::vector<sock_filter>& filter = filters.emplace_back(static_cast<size_t>(count));
    if (raw_ptrace(kSeccompGetFilter, tid, index, reinterpret_cast<uintptr_t>(filter.data())) !=
        count)
      return fail_errno(errno, "read the seccomp filters of thread {}", tid);
  }
}

Result<std::optional<Stop>> peek_stop(pid_t tid, bool keep_zombie) {
  siginfo_t info{};
  const int options = WEXITED | WSTOPPED | __WALL | WNOHANG;
  int result;
  do {
    result = ::waitid(P_PID, static_cast<id_t>(tid), &info, options | WNOWAIT);
  } while (result != 0 && errno == EINTR);
  if (result != 0 && errno == ECHILD) return Stop{Stop::Kind::kVanished, 0};
  if (result != 0) return fail_errno(errno, "wait for thread {}", tid);
  if (info.si_pid == 0) return std::nullopt;
  const Stop stop = decode(info);
  if (stop.gone() && !keep_zombie)
    ::waitid(P_PID, static_cast<id_t>(tid), &info, WEXITED | __WALL | WNOHANG);
  return stop;
}

Result<std::optional<Stop>> wait_stop(pid_t tid, Deadline deadline, bool keep_zombie) {
  // Before a thread of real time nobody else runs on this processor until it sleeps.
  const bool real_time = is_real_time();
  const int spins = real_time ? 0 : 30;
  std::chrono::nanoseconds pause{real_time ? 5'000 : 20'000};
  for (int i = 0;; ++i) {
    SPILE_TRY(auto stop, peek_stop(tid, keep_zombie));
    if (stop) return stop;
    if (i < spins) {
      ::sched_yield();
      continue;
    }
    if (Clock::now() >= deadline) return std::nullopt;
    sleep_for(pause);
    pause = std::min<std::chrono::nanoseconds>(pause * 2, std::chrono::milliseconds(1));
  }
}

}  // namespace spile::os
