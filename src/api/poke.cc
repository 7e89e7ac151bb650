#include "api/poke.h"

#include <fcntl.h>
#include <linux/memfd.h>
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "api/readers.h"
#include "api/short_stop.h"
#include "base/fd.h"
#include "os/memory.h"
#include "os/process.h"

extern "C" const uint8_t spile_helper_begin[], spile_helper_end[];

namespace spile::api {
namespace {

/// While a thread is in the way.
constexpr int kAttempts = 50, kHelperAttempts = 20;
constexpr size_t kChildStackBytes = 64 << 10;

Result<Fd> memory_file(const char* name, bool for_exec) {
  // MFD_EXEC (0x10), which older kernels do not know.
  int fd = for_exec ? ::memfd_create(name, MFD_CLOEXEC | 0x10u) : -1;
  if (fd < 0) fd = ::memfd_create(name, MFD_CLOEXEC);
  if (fd < 0) return fail_errno(errno, "make a memory file");
  return Fd(fd);
}

Result<Fd> helper_program() {
  SPILE_TRY(Fd file, memory_file("spile-helper", true));
  const auto size = static_cast<size_t>(spile_helper_end - spile_helper_begin);
  for (size_t done = 0; done < size;) {
    const ssize_t n = ::write(file.get(), spile_helper_begin + done, size - done);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return fail_errno(errno, "write the helper program");
    done += static_cast<size_t>(n);
  }
  return file;
}

struct Start {
  int program = -1, request = -1;
  char* const* environment = nullptr;
  sigset_t mask;
  volatile int error = 0;  ///< memory is shared until exec
};

/// Runs in the program's memory while the thread that called waits: only system calls.
void run_helper(void* argument) {
  auto* start = static_cast<Start*>(argument);
  // A handler of the program must not run in here.
  struct sigaction fresh = {};
  fresh.sa_handler = SIG_DFL;
  for (int signal = 1; signal < 65; ++signal) ::sigaction(signal, &fresh, nullptr);
  if (start->request == kRequestDescriptor) {
    ::fcntl(kRequestDescriptor, F_SETFD, 0);
  } else if (::dup2(start->request, kRequestDescriptor) < 0) {
    start->error = errno;
    ::_exit(127);
  }
  char name[] = "spile-helper";
  char* const words[] = {name, nullptr};
  sigset_t none;
  ::sigemptyset(&none);
  ::sigprocmask(SIG_SETMASK, &none, nullptr);
  ::syscall(SYS_execveat, start->program, "", words, start->environment, AT_EMPTY_PATH);
  start->error = errno;
  ::_exit(127);
}

/// As vfork and exec, but the child sends no SIGCHLD and is seen only by waits that ask for it.
Result<pid_t> start_helper(const Fd& program, const Fd& request) {
  static uint8_t* const kStack = [] {
    void* p = ::mmap(nullptr, kChildStackBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
                     -1, 0);
    return p == MAP_FAILED ? nullptr : static_cast<uint8_t*>(p);
  }();
  if (kStack == nullptr) return fail(ErrorCode::kInternal, "no memory for the helper's stack");
  std::string path = "LD_LIBRARY_PATH=";
  if (const char* value = ::getenv("LD_LIBRARY_PATH")) path += value;
  char* environment[] = {path.data(), nullptr};
  Start start;
  // dup2 onto our own descriptor 3 would close the program: it must be elsewhere.
  const Fd high(::fcntl(program.get(), F_DUPFD_CLOEXEC, 64));
  start.program = high ? high.get() : program.get();
  start.request = request.get();
  start.environment = environment;
  sigset_t all;
  ::sigfillset(&all);
  ::pthread_sigmask(SIG_SETMASK, &all, &start.mask);
  const long started =
      spile_start_child(CLONE_VM | CLONE_VFORK, kStack + kChildStackBytes, run_helper, &start);
  ::pthread_sigmask(SIG_SETMASK, &start.mask, nullptr);
  if (started < 0) return fail_errno(static_cast<int>(-started), "start the helper process");
  const auto pid = static_cast<pid_t>(started);
  if (start.error != 0) {
    ::waitpid(pid, nullptr, __WALL);
    return fail_errno(start.error,
                      "run the helper program from memory (vm.memfd_noexec must not be 2)");
  }
  return pid;
}

/// With Yama only ancestors may trace, unless the traced process names somebody. What the program
/// itself had named before is not known any more afterwards.
class AllowTracer {
 public:
  explicit AllowTracer(pid_t helper)
      : needed_(os::yama_scope() == 1 && !os::has_capability(os::kCapSysPtrace)) {
    if (needed_) ::prctl(PR_SET_PTRACER, helper, 0, 0, 0);
  }
  ~AllowTracer() {
    if (needed_) ::prctl(PR_SET_PTRACER, 0, 0, 0, 0);
  }

 private:
  bool needed_;
};

/// Waits for the helper by its answer and its end.
void wait_for_end(pid_t helper) {
  while (::waitpid(helper, nullptr, __WALL) < 0 && errno == EINTR) {
  }
}

Result<void> answer_of(const PokeRequest& request) {
  const int32_t answer = __atomic_load_n(&request.answer, __ATOMIC_ACQUIRE);
  if (answer == 0) return {};
  if (answer == PokeRequest::kNoAnswer)
    return fail(ErrorCode::kInternal, "the helper process ended without an answer");
  return std::unexpected(
      Error{static_cast<ErrorCode>(answer - 1),
            std::string(request.message, strnlen(request.message, kMaxMessageBytes))});
}

Result<void> ask_helper(const Fd& program, std::span<const Edit> edits) {
  SPILE_TRY(const Fd file, memory_file("spile-request", false));
  const size_t size = sizeof(PokeRequest) + edits.size_bytes();
  SPILE_TRY_VOID(os::set_size(file, size));
  SPILE_TRY(const auto view, os::map_read_write(file, size));
  auto* request = new (view.data()) PokeRequest;
  request->pid = ::getpid();
  request->count = static_cast<uint32_t>(edits.size());
  std::memcpy(view.data() + sizeof(PokeRequest), edits.data(), edits.size_bytes());
  SPILE_TRY(const pid_t helper, start_helper(program, file));
  const AllowTracer allowed(helper);
  wait_for_end(helper);
  return answer_of(*request);
}

Result<void> check_allowed() {
  if (::prctl(PR_GET_SECCOMP) != 0)
    return fail(ErrorCode::kDenied,
                "the program runs under seccomp, which may kill it for starting a helper process; "
                "register before it is confined");
  // A vfork child: the threads of its parent would run on.
  const auto shared = os::same_memory(::getpid(), ::getppid());
  if (shared && *shared)
    return fail(ErrorCode::kUnsafe,
                "this process shares its memory with its parent (vfork, or clone with CLONE_VM), "
                "which would go on running while code changes; register there");
  return {};
}

/// One byte each: nobody need stand still.
Result<void> poke_bytes(std::span<const Edit> edits) {
  auto memory = os::ProcessMemory::open(::getpid());
  if (!memory) return forward(memory, "change the program's own code");
  for (const Edit& edit : edits) {
    SPILE_TRY(const uint8_t now, memory->read_value<uint8_t>(edit.at));
    if (now == edit.after[0]) continue;
    if (now != edit.before[0])
      return fail(ErrorCode::kUnsafe, "the code at {} has been changed by somebody else", edit.at);
    SPILE_TRY_VOID(memory->write(edit.at, std::span(edit.after).first(1)));
  }
  synchronize_code();
  return {};
}

void pause_before(int attempt) {
  const timespec pause{0, 100'000L * attempt};
  ::nanosleep(&pause, nullptr);
}

/// False: ask the helper, who has the words.
bool poke_in_short_stop(std::span<const Edit> edits) {
  for (int attempt = 1; attempt <= kAttempts; ++attempt) {
    const ShortStop answer = edit_in_short_stop(edits);
    if (answer == ShortStop::kDone) synchronize_code();
    if (answer != ShortStop::kInside) return answer == ShortStop::kDone;
    pause_before(attempt);
  }
  return false;
}

Result<void> poke_by_helper(std::span<const Edit> edits) {
  SPILE_TRY(const Fd program, helper_program());
  for (int attempt = 1;; ++attempt) {
    auto done = ask_helper(program, edits);
    if (done || done.error().code != ErrorCode::kBusy || attempt == kHelperAttempts) return done;
    pause_before(attempt);
  }
}

}  // namespace

Result<void> poke(std::span<const Edit> edits) {
  if (edits.empty()) return {};
  bool bytes_only = true;
  for (const Edit& edit : edits) bytes_only &= edit.size == 1;
  if (bytes_only) return poke_bytes(edits);
  SPILE_TRY_VOID(check_allowed());
  std::vector<Edit> sorted(edits.begin(), edits.end());
  std::ranges::sort(sorted, {}, &Edit::at);
  if (poke_in_short_stop(sorted)) return {};
  return poke_by_helper(sorted);
}

}  // namespace spile::api
