#include "api/short_stop.h"

#include <fcntl.h>
#include <linux/futex.h>
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <climits>
#include <vector>

#include "base/fd.h"
#include "os/process.h"
#include "user_engine/target/stopped.h"

namespace spile::api {
namespace {

constexpr size_t kChildStackBytes = 64 << 10;

/// What the child may not compute: kept for the life of the program.
struct Tables {
  bool restartable[2][ShortStopJob::kSystemCalls];
  uint8_t* stack_end = nullptr;
  uint64_t main_stack_end = 0;
};

Tables make_tables() {
  Tables tables;
  for (size_t n = 0; n < ShortStopJob::kSystemCalls; ++n) {
    tables.restartable[0][n] = target::restartable_after_eintr(n, false);
    tables.restartable[1][n] = target::restartable_after_eintr(n, true);
  }
  void* stack =
      ::mmap(nullptr, kChildStackBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (stack != MAP_FAILED) tables.stack_end = static_cast<uint8_t*>(stack) + kChildStackBytes;
  if (const auto stat = os::read_stat(::getpid(), ::getpid()))
    tables.main_stack_end = stat->start_stack;
  return tables;
}

const Tables& tables() {
  static const Tables kTables = make_tables();
  return kTables;
}

/// No handler of the program runs on this thread, nor in a child that it starts meanwhile.
class AllBlocked {
 public:
  AllBlocked() {
    sigset_t all;
    ::sigfillset(&all);
    ::pthread_sigmask(SIG_SETMASK, &all, &before_);
  }
  ~AllBlocked() { ::pthread_sigmask(SIG_SETMASK, &before_, nullptr); }
  AllBlocked(const AllBlocked&) = delete;
  AllBlocked& operator=(const AllBlocked&) = delete;

 private:
  sigset_t before_;
};

Fd open_own(const char* path, int flags) {
  return Fd(::open(path, flags | O_CLOEXEC));
}

/// Links of /proc/PID/task: one each, and the two of a directory.
size_t count_threads(const Fd& tasks) {
  struct stat info = {};
  return ::fstat(tasks.get(), &info) == 0 && info.st_nlink > 2 ? info.st_nlink - 2 : 0;
}

void let_child_begin(ShortStopJob& job) {
  __atomic_store_n(&job.go, 1u, __ATOMIC_RELEASE);
  ::syscall(SYS_futex, &job.go, FUTEX_WAKE, INT_MAX, nullptr, nullptr, 0);
}

/// With Yama a child may trace only who has named it (PR_SET_PTRACER); `name_it`: do so.
ShortStop run_child(ShortStopJob& job, bool name_it) {
  job.answer = static_cast<uint32_t>(ShortStop::kUnusual);
  job.thread_count = 0;
  job.go = name_it ? 0 : 1;
  long child = 0;
  {
    const AllBlocked blocked;
    child = spile_start_child(CLONE_VM | CLONE_FS | CLONE_FILES, tables().stack_end, run_short_stop,
                              &job);
  }
  if (child < 0) return ShortStop::kUnusual;
  if (name_it) {
    ::prctl(PR_SET_PTRACER, child, 0, 0, 0);
    let_child_begin(job);
  }
  while (::syscall(SYS_wait4, child, nullptr, __WALL, nullptr) < 0 && errno == EINTR) {
  }
  if (name_it) ::prctl(PR_SET_PTRACER, 0, 0, 0, 0);
  return static_cast<ShortStop>(__atomic_load_n(&job.answer, __ATOMIC_ACQUIRE));
}

/// What the program itself had named is forgotten by naming: only where it must be.
ShortStop ask_child(ShortStopJob& job) {
  static bool must_name = false;
  ShortStop answer = run_child(job, must_name);
  if (answer != ShortStop::kDenied || must_name || os::yama_scope() != 1) return answer;
  must_name = true;
  return run_child(job, must_name);
}

}  // namespace

ShortStop edit_in_short_stop(std::span<const Edit> edits) {
  if (tables().stack_end == nullptr || tables().main_stack_end == 0) return ShortStop::kUnusual;
  const Fd memory = open_own("/proc/self/mem", O_RDWR);
  const Fd tasks = open_own("/proc/self/task", O_RDONLY | O_DIRECTORY);
  if (!memory || !tasks) return ShortStop::kUnusual;
  ShortStopJob job;
  job.edits = edits.data();
  job.edit_count = edits.size();
  job.memory = memory.get();
  job.tasks = tasks.get();
  job.process = ::getpid();
  job.caller = static_cast<int32_t>(::syscall(SYS_gettid));
  job.main_stack_end = tables().main_stack_end;
  job.may_be_inside = !std::ranges::all_of(edits, &Edit::is_one_instruction);
  job.restartable = tables().restartable;
  {
    const AllBlocked blocked;
    if (count_threads(tasks) == 1) return edit_alone(job);
  }
  constexpr size_t kNewcomers = 64;
  std::vector<HeldThread> threads(count_threads(tasks) + kNewcomers);
  job.threads = threads.data();
  job.thread_room = threads.size();
  return ask_child(job);
}

}  // namespace spile::api
