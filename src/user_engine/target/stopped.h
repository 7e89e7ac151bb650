// All threads of a target held still, and put back exactly as they were.
//
// The problem: a debugger's stop is visible. System calls return EINTR, signals get lost, a process
// that was stopped by its user runs on, and a tracer that is killed in the middle leaves
// half-changed threads. What is done about it:
//
//  * SEIZE + INTERRUPT, never ATTACH: no signal is sent. Every thread ends in a PTRACE_EVENT_STOP,
//  which lies inside
//    the kernel's get_signal(): interrupted system calls are restarted by the kernel itself when
//    the thread goes on.
//  * A signal that was just being delivered is let through (its handler's frame is set up), and the
//  thread stops
//    again before the handler's first instruction. So no signal is ever held by us, and none can be
//    lost with us.
//  * System calls that return EINTR whatever stopped them (epoll_wait, sigtimedwait, ...) are
//  restarted: rax -EINTR
//    becomes -ERESTARTNOHAND, which the kernel turns back into EINTR where a real handler runs.
//  * Threads are left by DETACH only. A bare CONT after an injected call leaks -ERESTART codes into
//  the program.
//  * Everything runs on a tracer thread (on_tracer_thread), whose end makes the kernel release
//  every thread that it
//    still traces, including one that never came to a stop (vfork parent, dead network mount).
#pragma once

#include <sys/types.h>

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/address.h"
#include "base/error.h"
#include "os/affinity.h"
#include "os/ptrace.h"
#include "os/scheduling.h"
#include "user_engine/target/process.h"

namespace spile::target {

/// Runs `work` on a thread of its own and waits for it. All stopping, injecting and spawning must
/// happen in there. When it returns nothing is traced any more, whatever happened inside. The
/// thread and its creator get processors promptly (os/scheduling.h) until then.
void on_tracer_thread(const std::function<void()>& work);
/// Is this such a thread?
bool in_tracer_thread();
/// Puts the calling process (a child just forked from a tracer thread) back to what the tracer
/// thread's creator had: signal mask, timer slack, scheduling. Async-signal-safe.
void undo_tracer_settings();

/// The same with a result: `auto r = with_tracer_thread([&]() -> Result<void> { ... });`
template <typename F>
auto with_tracer_thread(F&& work) -> decltype(work()) {
  std::optional<decltype(work())> result;
  on_tracer_thread([&] { result.emplace(work()); });
  return std::move(*result);
}

struct StopOptions {
  /// How long all threads together may take to stop.
  std::chrono::milliseconds timeout{500};
};

/// Whether a stop, or a try that came to nothing, took so long that the process should run for a
/// while before the next: a thread that does not stop holds the others until the timeout.
inline bool is_slow_stop(std::chrono::steady_clock::duration held) {
  return held > std::chrono::milliseconds(100);
}

struct StoppedThread {
  pid_t tid = 0;
  /// As they were at the stop (EINTR cured), or as set_registers() left them.
  os::Registers registers{};
  bool group_stopped =
      false;  ///< stopped by SIGSTOP and the like before we came; stays so afterwards

  /// The thread waits to restart a system call: the kernel will move rip back by 2 when it goes on.
  bool will_restart() const;
  /// In user code, not in a system call.
  bool in_user_code() const { return static_cast<int64_t>(registers.orig_rax) < 0; }
};

/// A thread's restartable sequence: where it is registered and whether one is open.
struct RseqState {
  os::RseqConfig config;
  uint64_t descriptor = 0;                    ///< rseq_cs: address of the descriptor, 0: none
  uint64_t start = 0, length = 0, abort = 0;  ///< of the descriptor, when it could be read
  bool inside(uint64_t ip) const { return length != 0 && ip - start < length; }
};

class StoppedProcess {
 public:
  /// Stops every thread: until two passes over /proc/PID/task find no new one and all have stopped.
  ///
  /// Errors:  busy         a thread did not stop in time (named, with its state: vfork parent, disk
  /// wait, frozen);
  ///                       another tracer came first; everything is released
  ///          denied       as Target::open
  ///          target gone  it ended or called exec meanwhile
  ///          unsafe       another process shares its memory (clone with CLONE_VM, not a thread)
  ///          and would run on.
  ///                       Only direct children are looked at: others cannot be found without
  ///                       reading all of /proc.
  ///          internal     not on a tracer thread
  static Result<StoppedProcess> stop(const Target& target, const StopOptions& options = {});

  /// Takes over a child that this thread has seized and that is in a PTRACE_EVENT_STOP (spawn.h).
  static Result<StoppedProcess> adopt(const Target& target, pid_t tid);

  StoppedProcess(StoppedProcess&&) noexcept;
  StoppedProcess& operator=(StoppedProcess&&) noexcept;
  ~StoppedProcess();  ///< detaches

  /// Lets every thread go on, by DETACH. Idempotent.
  void detach();

  /// Lets these threads go for `time`, the others stay, and stops them again: a thread that only
  /// lacks a processor to leave a place gets one at once. Indices into threads() mean nothing
  /// afterwards. Errors: as stop(); everything is released then.
  Result<void> let_run(std::span<const pid_t> tids, std::chrono::nanoseconds time);

  const Target& target() const { return *target_; }
  const std::vector<StoppedThread>& threads() const { return threads_; }
  const os::ProcessMemory& memory() const { return target_->memory(); }

  /// Changes a thread's registers at once: SETREGS.
  Result<void> set_registers(size_t thread, const os::Registers& registers);

  Result<RseqState> rseq(size_t thread) const;
  /// Forgets the thread's open restartable sequence: it would otherwise be killed when the
  /// descriptor is unmapped, and cannot be single-stepped.
  Result<void> clear_rseq(size_t thread, const RseqState& state);

  /// True when all threads have registered rseq at the same offset from their fs base, with the
  /// same signature.
  struct CommonRseq {
    int64_t offset_from_fs = 0;
    uint32_t signature = 0;
  };
  std::optional<CommonRseq> common_rseq() const;

  /// All fs bases differ and none is zero: per-thread data may be found through them.
  bool fs_bases_usable() const;

  /// Offset from the fs base at which every thread keeps its own thread id (glibc 720, musl 48;
  /// Go's varies), or nullopt where that is not certain: no such offset, several, or a single
  /// thread and no known libc offset. Searched for in a few threads, then checked in every one:
  /// some microseconds a thread.
  std::optional<int64_t> tid_offset() const;

  /// Offset from the fs base of two words in which libc keeps where the stack of each thread begins
  /// and its size, or nullopt where that is not certain. Found where the initial thread has 0 and
  /// its first stack pointer there (glibc), and where the words of other threads hold both their
  /// stack pointer and their control block; checked in every thread, and that all between the two
  /// is mapped. A program that has cut holes there is left alone.
  std::optional<int64_t> stack_offset() const;

  /// How long the target has been stopped.
  std::chrono::nanoseconds stopped_for() const { return os::Clock::now() - since_; }

 private:
  friend class Injection;
  explicit StoppedProcess(const Target& target) : target_(&target) {}

  /// All the steps of stop(), on an object that detaches when it goes away.
  Result<void> stop_all(os::Deadline deadline);
  Result<void> gather(os::Deadline deadline);
  Result<size_t> seize_new_threads();
  Result<bool> seize(pid_t tid);
  Result<void> settle_all(os::Deadline deadline);
  /// Waits until one seized thread rests in a PTRACE_EVENT_STOP. nullopt: it has ended.
  Result<std::optional<StoppedThread>> settle(pid_t tid, os::Deadline deadline);
  Result<void> adopt_clone(pid_t parent);
  Result<void> let_pass(pid_t tid, int signal);
  void take_registers(StoppedThread& thread);
  void cure_eintr(StoppedThread& thread);
  Result<void> check_sharers() const;
  Error cannot_stop(pid_t tid) const;
  std::optional<std::vector<uint32_t>> own_tids() const;
  bool knows(pid_t tid) const;
  bool is_own_child(pid_t tid) const { return own_child_ && tid == target_->pid(); }

  const Target* target_;
  std::vector<StoppedThread> threads_;
  std::vector<pid_t> running_;  ///< seized, not yet stopped
  std::vector<pid_t>
      skipped_;  ///< zombies, and auto-attached processes that are no threads of the target
  bool own_child_ = false;  ///< the target is our child: its end is left for whoever waits for it
  os::CpuPin pin_;
  os::Clock::time_point since_{};
};

/// System calls that return EINTR after any stop and may simply be started again; `fd_is_socket`
/// answers for calls on descriptors (read, recv, accept).
bool restartable_after_eintr(uint64_t number, bool fd_is_socket);

}  // namespace spile::target
