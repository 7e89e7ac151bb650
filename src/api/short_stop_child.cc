// What the child of short_stop.h runs: system calls and plain loads and stores, nothing else. Built
// without anything that a compiler may call by itself; all of it lies in the section that no probe
// may be put into.
#include <fcntl.h>
#include <linux/futex.h>
#include <linux/kcmp.h>
#include <sched.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>

#include <cerrno>

#include "api/short_stop.h"

#define SPILE_CHILD __attribute__((section("spile_hit_text"), noinline))

// The child's first frame ends backtraces.
__asm__(R"(
.pushsection spile_hit_text, "ax", @progbits
.globl spile_start_child
.hidden spile_start_child
.type spile_start_child, @function
spile_start_child:
        lea     -32(%rsi), %r9          /* flags in rdi */
        and     $-16, %r9
        mov     %rdx, (%r9)             /* run */
        mov     %rcx, 8(%r9)            /* job */
        mov     %r9, %rsi
        xor     %edx, %edx
        xor     %r10d, %r10d
        xor     %r8d, %r8d
        mov     $56, %eax
        syscall
        test    %rax, %rax
        jz      1f
        ret
1:      xor     %ebp, %ebp
        pop     %rax
        pop     %rdi
        call    *%rax
        xor     %edi, %edi
        mov     $231, %eax              /* exit_group */
        syscall
        hlt
.size spile_start_child, . - spile_start_child
.popsection
)");

namespace spile::api {
namespace {

using State = HeldThread::State;

/// Rounds in which a thread that does not stop is waited for: some 20 ms.
constexpr unsigned kYields = 64, kNaps = 400;
constexpr long kNapNs = 50'000;
constexpr uint64_t kMaxStackBytes = 1 << 20;
constexpr size_t kChunkBytes = 8192;

template <typename... Arguments>
[[gnu::always_inline]] inline long call(long number, Arguments... arguments) {
  const long all[6] = {static_cast<long>(arguments)...};
  register long r10 __asm__("r10") = all[3];
  register long r8 __asm__("r8") = all[4];
  register long r9 __asm__("r9") = all[5];
  long result = 0;
  __asm__ volatile("syscall"
                   : "=a"(result)
                   : "a"(number), "D"(all[0]), "S"(all[1]), "d"(all[2]), "r"(r10), "r"(r8), "r"(r9)
                   : "rcx", "r11", "memory");
  return result;
}
[[gnu::always_inline]] inline long word(const void* p) {
  return reinterpret_cast<long>(p);
}
[[gnu::always_inline]] inline long trace(long request, long tid, long address, long data) {
  return call(SYS_ptrace, request, tid, address, data);
}

// ---- holding ----

SPILE_CHILD bool knows(const ShortStopJob& job, int32_t tid) {
  for (size_t i = 0; i < job.thread_count; ++i) {
    if (job.threads[i].tid == tid) return true;
  }
  return false;
}

/// -1: not a number.
SPILE_CHILD int32_t number(const char* text) {
  int32_t value = 0;
  if (*text == 0) return -1;
  for (; *text != 0; ++text) {
    if (*text < '0' || *text > '9') return -1;
    value = value * 10 + (*text - '0');
  }
  return value;
}

/// "TID/name" in `to`, which has room.
SPILE_CHILD void path_of(int32_t tid, const char* name, char* to) {
  char digits[12];
  int n = 0;
  for (; tid != 0; tid /= 10) digits[n++] = static_cast<char>('0' + tid % 10);
  while (n > 0) *to++ = digits[--n];
  *to++ = '/';
  while ((*to++ = *name++) != 0) {
  }
}

/// At most `size` - 1 bytes and a zero; false where there is no such file, or it is larger.
SPILE_CHILD bool read_small(
    const ShortStopJob& job, int32_t tid, const char* name, char* to, long size) {
  char path[32];
  path_of(tid, name, path);
  const long fd = call(SYS_openat, job.tasks, word(path), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return false;
  const long got = call(SYS_read, fd, word(to), size - 1);
  call(SYS_close, fd);
  if (got < 0) return false;
  to[got] = 0;
  return got < size - 1;
}

/// A leader that has ended before its threads stays as a zombie.
SPILE_CHILD bool has_ended(const ShortStopJob& job, int32_t tid) {
  char text[512];
  if (!read_small(job, tid, "stat", text, sizeof text)) return true;
  const char* state = text;
  for (const char* p = text; *p != 0; ++p) {
    if (p[0] == ')' && p[1] == ' ') state = p + 2;
  }
  return *state == 'Z' || *state == 'X';
}

SPILE_CHILD ShortStop seize(ShortStopJob& job, int32_t tid) {
  if (job.thread_count == job.thread_room) return ShortStop::kUnusual;
  HeldThread& thread = job.threads[job.thread_count];
  thread.tid = tid;
  const long seized = trace(PTRACE_SEIZE, tid, 0, PTRACE_O_TRACESYSGOOD);
  if (seized == -ESRCH) return ShortStop::kDone;
  if (seized < 0 && !has_ended(job, tid)) return ShortStop::kDenied;
  thread.state = seized < 0 ? State::kGone : State::kRunning;
  ++job.thread_count;
  if (seized == 0) trace(PTRACE_INTERRUPT, tid, 0, 0);
  return ShortStop::kDone;
}

struct DirectoryEntry {  // struct linux_dirent64
  uint64_t inode;
  int64_t offset;
  uint16_t size;
  uint8_t type;
  char name[1];
};

/// kDone: `added` says how many threads were not known before.
SPILE_CHILD ShortStop seize_new(ShortStopJob& job, size_t& added) {
  alignas(8) char entries[2048];
  added = 0;
  if (call(SYS_lseek, job.tasks, 0, SEEK_SET) < 0) return ShortStop::kUnusual;
  for (;;) {
    const long got = call(SYS_getdents64, job.tasks, word(entries), sizeof entries);
    if (got < 0) return ShortStop::kUnusual;
    if (got == 0) return ShortStop::kDone;
    for (long at = 0; at < got;) {
      const auto* entry = reinterpret_cast<const DirectoryEntry*>(entries + at);
      at += entry->size;  // NOLINT: the kernel has written it
      const int32_t tid = number(entry->name);
      if (tid <= 0 || knows(job, tid)) continue;
      const ShortStop seized = seize(job, tid);
      if (seized != ShortStop::kDone) return seized;
      ++added;
    }
  }
}

/// A stop makes some system calls return EINTR. The threads are still inside the kernel's
/// get_signal(), where ERESTARTNOHAND starts them again (user_engine/target/stopped.h).
SPILE_CHILD void cure_eintr(const ShortStopJob& job, HeldThread& thread) {
  constexpr long kRestartNoHand = -514;
  const uint64_t system_call = thread.registers.orig_rax;
  if (system_call >= ShortStopJob::kSystemCalls ||
      static_cast<int64_t>(thread.registers.rax) != -EINTR)
    return;
  struct stat file = {};
  const bool is_socket =
      call(SYS_fstat, static_cast<int32_t>(thread.registers.rdi), word(&file)) == 0 &&
      S_ISSOCK(file.st_mode);
  if (!job.restartable[is_socket][system_call]) return;
  thread.registers.rax = static_cast<uint64_t>(kRestartNoHand);
  trace(PTRACE_SETREGS, thread.tid, 0, word(&thread.registers));
}

/// What a thread has reported. A signal that was about to be delivered is let through, and the
/// thread is asked to stop again.
SPILE_CHILD void take_report(const ShortStopJob& job, HeldThread& thread, int status) {
  constexpr int kEventStop = 128;
  if (!WIFSTOPPED(status)) {
    thread.state = State::kGone;
    return;
  }
  if (status >> 16 == kEventStop) {
    const long got = trace(PTRACE_GETREGS, thread.tid, 0, word(&thread.registers));
    thread.state = got < 0 ? State::kGone : State::kHeld;
    // At once: whatever becomes of the attempt, the thread goes on as if nothing had been.
    if (thread.state == State::kHeld) cure_eintr(job, thread);
    return;
  }
  trace(PTRACE_INTERRUPT, thread.tid, 0, 0);
  trace(PTRACE_CONT, thread.tid, 0, status >> 16 == 0 ? WSTOPSIG(status) : 0);
}

/// Threads that wait for a device or a vfork child cannot be stopped: `rounds` bounds the waiting.
SPILE_CHILD bool settle(const ShortStopJob& job, HeldThread& thread, unsigned& rounds) {
  while (thread.state == State::kRunning) {
    int status = 0;
    const long got = call(SYS_wait4, thread.tid, word(&status), __WALL | WNOHANG, 0);
    if (got == thread.tid) {
      take_report(job, thread, status);
    } else if (got < 0) {
      thread.state = State::kGone;
    } else if (++rounds > kYields + kNaps) {
      return false;
    } else if (rounds <= kYields) {
      call(SYS_sched_yield);
    } else {
      const timespec nap{0, kNapNs};
      call(SYS_nanosleep, word(&nap), 0);
    }
  }
  return true;
}

/// As many threads rest as there are: nobody is left to make one.
SPILE_CHILD bool all_rest(const ShortStopJob& job) {
  size_t held = 0;
  for (size_t i = 0; i < job.thread_count; ++i) held += job.threads[i].state == State::kHeld;
  struct stat list = {};
  return call(SYS_fstat, job.tasks, word(&list)) == 0 && list.st_nlink == held + 2;
}

/// Until all rest by their number; or, where a leader has ended before its threads and counts, two
/// looks at the list find no new one.
SPILE_CHILD ShortStop hold_all(ShortStopJob& job) {
  unsigned rounds = 0;
  for (unsigned quiet = 0; quiet < 2;) {
    size_t added = 0;
    const ShortStop seized = seize_new(job, added);
    if (seized != ShortStop::kDone) return seized;
    if (!knows(job, job.caller)) return ShortStop::kUnusual;  // another pid namespace
    for (size_t i = 0; i < job.thread_count; ++i) {
      if (!settle(job, job.threads[i], rounds)) return ShortStop::kUnusual;
    }
    if (all_rest(job)) return ShortStop::kDone;
    quiet = added == 0 ? quiet + 1 : 0;
  }
  return ShortStop::kDone;
}

SPILE_CHILD void let_go(ShortStopJob& job) {
  // Those that never came to rest are let go by our end.
  for (size_t i = 0; i < job.thread_count; ++i) {
    if (job.threads[i].state == State::kHeld) trace(PTRACE_DETACH, job.threads[i].tid, 0, 0);
  }
}

// ---- is anybody in the way? ----

/// Whether somebody at `address` would run on in the middle of an edit.
SPILE_CHILD bool is_inside(const ShortStopJob& job, uint64_t address) {
  size_t low = 0, high = job.edit_count;
  while (low < high) {
    const size_t middle = (low + high) / 2;
    if (job.edits[middle].at.value < address) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low > 0 && address < job.edits[low - 1].at.value + job.edits[low - 1].size;
}

/// The kernel will step back to its first byte.
SPILE_CHILD bool will_restart(const user_regs_struct& r) {
  if (static_cast<int64_t>(r.orig_rax) < 0) return false;
  const auto result = static_cast<int64_t>(r.rax);
  return result == -512 || result == -513 || result == -514 || result == -516;
}

SPILE_CHILD bool is_inside(const ShortStopJob& job, const user_regs_struct& r) {
  return is_inside(job, r.rip) || (will_restart(r) && is_inside(job, r.rip - 2));
}

/// Words around a saved instruction pointer, as user_engine/target/live_contexts.cc knows a signal
/// frame by.
[[gnu::always_inline]] inline bool looks_like_frame(const uint64_t* rip) {
  constexpr uint64_t kUserCode = 0x33, kNeverSet = ~uint64_t{0x3f7fd7};
  // NOLINTNEXTLINE: the kernel has written it
  return (rip[2] & 0xffff) == kUserCode && (rip[1] & 2) != 0 && (rip[1] & kNeverSet) == 0 &&
         rip[0] >> 56 == 0 && rip[-1] >> 56 == 0;
}

/// From a stack pointer to where that stack ends. Plain stacks only: that of the first thread, and
/// those below a thread's own data, as the C libraries make them.
SPILE_CHILD uint64_t stack_end(const ShortStopJob& job, uint64_t sp, uint64_t fs) {
  for (const uint64_t end : {fs, job.main_stack_end}) {
    if (end > sp && end - sp <= kMaxStackBytes) return end;
  }
  return 0;
}

/// Signal frames on the stack above sp. What we may not read, or what leads to another stack, is
/// not for us.
SPILE_CHILD ShortStop search_stack(const ShortStopJob& job, uint64_t sp, uint64_t fs) {
  const uint64_t end = stack_end(job, sp, fs);
  if (end == 0) return ShortStop::kUnusual;
  uint64_t words[kChunkBytes / 8];
  constexpr uint64_t kOverlap = 32;
  const long self = call(SYS_getpid);
  for (uint64_t at = sp & ~uint64_t{15}; at < end; at += kChunkBytes - kOverlap) {
    const uint64_t size = end - at < kChunkBytes ? end - at : kChunkBytes;
    const iovec to{words, size}, from{reinterpret_cast<void*>(at), size};
    const long got = call(SYS_process_vm_readv, self, word(&to), 1, word(&from), 1, 0);
    if (got != static_cast<long>(size)) return ShortStop::kUnusual;
    // [i - 1] rsp   [i] rip   [i + 1] eflags   [i + 2] cs; rip lies 8 above a multiple of 16.
    for (size_t i = 1; i + 2 < size / 8; i += 2) {
      if (!looks_like_frame(words + i)) continue;
      if (is_inside(job, words[i])) return ShortStop::kInside;
      const uint64_t from_sp = words[i - 1];
      if (from_sp < at + i * 8 || from_sp > end) return ShortStop::kUnusual;
    }
  }
  return ShortStop::kDone;
}

/// A process that shares our memory would run on. Only children are looked at, as in
/// StoppedProcess.
SPILE_CHILD bool has_sharer(const ShortStopJob& job, int32_t tid) {
  char text[4096];
  text[0] = 0;
  // No such file in this kernel; or more children than there is room for: then nobody knows.
  if (!read_small(job, tid, "children", text, sizeof text)) return text[0] != 0;
  const long self = call(SYS_getpid);
  for (const char* p = text; *p != 0;) {
    long child = 0;
    for (; *p >= '0' && *p <= '9'; ++p) child = child * 10 + (*p - '0');
    while (*p == ' ' || *p == '\n') ++p;
    if (child == 0) return true;
    if (child != self && call(SYS_kcmp, job.caller, child, KCMP_VM, 0, 0) == 0) return true;
  }
  return false;
}

SPILE_CHILD ShortStop nobody_in_the_way(const ShortStopJob& job) {
  for (size_t i = 0; i < job.thread_count; ++i) {
    const HeldThread& thread = job.threads[i];
    if (thread.state != State::kHeld) continue;
    if (has_sharer(job, thread.tid)) return ShortStop::kUnusual;
    if (is_inside(job, thread.registers)) return ShortStop::kInside;
    if (!job.may_be_inside) continue;
    const ShortStop found = search_stack(job, thread.registers.rsp, thread.registers.fs_base);
    if (found != ShortStop::kDone) return found;
  }
  return ShortStop::kDone;
}

// ---- bytes ----

SPILE_CHILD bool holds(const Edit& edit, const uint8_t* bytes) {
  const auto* now = reinterpret_cast<const volatile uint8_t*>(edit.at.value);
  for (size_t i = 0; i < edit.size; ++i) {
    if (now[i] != bytes[i]) return false;
  }
  return true;
}

SPILE_CHILD bool write(const ShortStopJob& job, const Edit& edit, const uint8_t* bytes) {
  return call(SYS_pwrite64, job.memory, word(bytes), edit.size, static_cast<long>(edit.at.value)) ==
         edit.size;
}

/// An edit that is done already stays.
SPILE_CHILD ShortStop write_all(const ShortStopJob& job) {
  for (size_t i = 0; i < job.edit_count; ++i) {
    const Edit& edit = job.edits[i];
    if (!holds(edit, edit.before.data()) && !holds(edit, edit.after.data()))
      return ShortStop::kUnusual;
  }
  for (size_t i = 0; i < job.edit_count; ++i) {
    const Edit& edit = job.edits[i];
    if (holds(edit, edit.after.data()) || write(job, edit, edit.after.data())) continue;
    while (i-- > 0) (void)write(job, job.edits[i], job.edits[i].before.data());
    return ShortStop::kUnusual;
  }
  return ShortStop::kDone;
}

}  // namespace

SPILE_CHILD void run_short_stop(void* data) {
  auto& job = *static_cast<ShortStopJob*>(data);
  // Nobody would end our waiting.
  call(SYS_prctl, PR_SET_PDEATHSIG, SIGKILL);
  if (call(SYS_getppid) != job.process) return;
  while (__atomic_load_n(&job.go, __ATOMIC_ACQUIRE) == 0)
    call(SYS_futex, word(&job.go), FUTEX_WAIT, 0, 0);
  ShortStop answer = hold_all(job);
  if (answer == ShortStop::kDone) answer = nobody_in_the_way(job);
  if (answer == ShortStop::kDone) answer = write_all(job);
  let_go(job);
  __atomic_store_n(&job.answer, static_cast<uint32_t>(answer), __ATOMIC_RELEASE);
}

SPILE_CHILD ShortStop edit_alone(ShortStopJob& job) {
  if (has_sharer(job, job.caller)) return ShortStop::kUnusual;
  if (job.may_be_inside) {
    const auto frame = reinterpret_cast<uint64_t>(__builtin_frame_address(0));
    uint64_t fs = 0;
    __asm__("mov %%fs:0, %0" : "=r"(fs));
    const ShortStop found = search_stack(job, frame, fs);
    if (found != ShortStop::kDone) return found;
  }
  return write_all(job);
}

}  // namespace spile::api
