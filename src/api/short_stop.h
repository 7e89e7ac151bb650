// Several bytes of code changed while every other thread of the program is held: in some ten
// microseconds a thread.
//
// The helper program (poke.h) knows every state that a thread can be in, but starting it costs
// milliseconds. Nearly always all threads are in plain states. So a child that shares our memory
// (clone with CLONE_VM, no exec) tries first: it seizes the threads by ptrace, looks, writes, lets
// go. Where it meets anything that it does not know, it lets go without a change, and the helper
// program is asked.
//
//   caller   descriptors, tables (may allocate) -> clone -> wait for its end
//   child    hold all threads -> nobody inside? bytes as expected? -> write -> let go -> exit
//
// The child runs in the program's memory with the caller's thread pointer while any thread may hold
// any lock: it calls nothing of the C library, allocates nothing, touches no thread-local variable
// (short_stop_child.cc). All signals are blocked in it, so that no handler of the program runs
// there. Dead at any moment, the kernel lets go what it holds, and each edit is done or not.
//
// A program with one thread needs no child: the caller writes by itself.
#pragma once

#include <sys/user.h>

#include <cstddef>
#include <cstdint>
#include <span>

#include "api/poke.h"

namespace spile::api {

enum class ShortStop : uint32_t {
  kDone,
  kInside,   ///< a thread stays inside, or a signal handler returns there: try again
  kDenied,   ///< ptrace refuses
  kUnusual,  ///< what the helper program can tell better; nothing has changed
};

/// `edits`: by address. All are made, or none.
ShortStop edit_in_short_stop(std::span<const Edit> edits);

// ---- what caller and child share ----

struct HeldThread {
  int32_t tid;
  enum class State : uint32_t { kRunning, kHeld, kGone } state;
  user_regs_struct registers;
};

struct ShortStopJob {
  static constexpr size_t kSystemCalls = 512;

  const Edit* edits = nullptr;
  size_t edit_count = 0;
  HeldThread* threads = nullptr;
  size_t thread_count = 0, thread_room = 0;
  int memory = -1, tasks = -1;  ///< descriptors: /proc/PID/mem, /proc/PID/task
  int32_t process = 0;          ///< the program's id
  int32_t caller = 0;           ///< its thread id
  uint64_t main_stack_end = 0;
  /// Somebody may be in the middle of what changes: stacks are searched for signal frames.
  bool may_be_inside = false;
  /// [socket][number]: restarted where a stop has made them return EINTR.
  const bool (*restartable)[kSystemCalls] = nullptr;
  /// The child waits until this is not 0: it may have to be named as our tracer first.
  uint32_t go = 0;
  uint32_t answer = 0;  ///< a ShortStop
};

/// In the child: does the job, a ShortStopJob, and leaves the answer there.
void run_short_stop(void* job);
/// The caller is the only thread: the same without a stop. All its signals are blocked.
ShortStop edit_alone(ShortStopJob& job);

extern "C" {
/// clone(2) of a process that runs run(job) on `stack_end` in our memory (CLONE_VM among `flags`).
/// Not the C library's: sanitizers take that for a fork. Gives its id, or a negative errno.
long spile_start_child(unsigned long flags, void* stack_end, void (*run)(void*), void* job);
}

}  // namespace spile::api
