#include "api/tracer_process.h"

#include <dlfcn.h>
#include <fcntl.h>
#include <link.h>
#include <sched.h>
#include <signal.h>
#include <spile/detail/tracer_core.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "api/descriptors.h"

namespace spile::api {
namespace {

constexpr size_t kChildStackBytes = 64 << 10;

// ---- which program ----

bool is_executable(const std::string& path) {
  return !path.empty() && ::access(path.c_str(), X_OK) == 0;
}

/// Beside the library, as it is installed or built; "" where the library is part of the program.
/// Not by the name that dladdr gives: for the program that is what its caller has called it.
std::string beside_the_library() {
  Dl_info info = {};
  link_map* map = nullptr;
  if (::dladdr1(reinterpret_cast<void*>(&spile_tracer_open), &info, reinterpret_cast<void**>(&map),
                RTLD_DL_LINKMAP) == 0 ||
      map == nullptr || map->l_name == nullptr)
    return {};
  const std::string file = map->l_name;
  const size_t slash = file.rfind('/');
  if (slash == std::string::npos) return {};
  const std::string folder = file.substr(0, slash);
  for (const char* place : {"/../bin/spile", "/../../bin/spile", "/spile"}) {
    if (is_executable(folder + place)) return folder + place;
  }
  return {};
}

std::string in_path() {
  const char* path = ::secure_getenv("PATH");
  std::string rest = path == nullptr ? "" : path;
  while (!rest.empty()) {
    const size_t end = std::min(rest.find(':'), rest.size());
    const std::string file = rest.substr(0, end) + "/spile";
    if (end > 0 && is_executable(file)) return file;
    rest.erase(0, end + 1);
  }
  return {};
}

}  // namespace

Result<std::string> find_spile(const char* given) {
  if (given == nullptr) given = ::secure_getenv("SPILE_PROGRAM");
  if (given != nullptr) {
    if (is_executable(given)) return std::string(given);
    return fail(ErrorCode::kNotFound, "{} cannot be run: {}", given, std::strerror(errno));
  }
  for (std::string found : {beside_the_library(), in_path()}) {
    if (!found.empty()) return found;
  }
  return fail(ErrorCode::kNotFound,
              "the program spile, which runs scripts, is neither beside the library nor in $PATH; "
              "$SPILE_PROGRAM may say where it is");
}

namespace {

// ---- starting it ----

struct Start {
  const char* program = nullptr;
  uint8_t* stack = nullptr;  ///< of the second child
  int socket = -1, words = -1, nothing = -1;
  char* const* environment = nullptr;
  volatile int pid = 0, error = 0;  ///< memory is shared until exec
  int process = -1;                 ///< a pidfd, by the kernel
};

void move_to(int from, int to) {
  if (from == to) {
    ::fcntl(to, F_SETFD, 0);
  } else {
    ::dup2(from, to);
  }
}

/// Runs in the program's memory while the thread that called waits: only system calls. Its
/// descriptors are its own.
int run_spile(void* argument) {
  auto* start = static_cast<Start*>(argument);
  struct sigaction fresh = {};
  fresh.sa_handler = SIG_DFL;
  for (int signal = 1; signal < 65; ++signal) ::sigaction(signal, &fresh, nullptr);
  ::syscall(SYS_setsid);  // Ctrl-C is the program's
  move_to(start->nothing, 0);
  move_to(start->nothing, 1);
  move_to(start->words, 2);
  move_to(start->socket, SPILE_TRACER_DESCRIPTOR);
  // The program's sockets and pipes must not stay open because of us.
  close_from(SPILE_TRACER_DESCRIPTOR + 1);
  sigset_t none;
  ::sigemptyset(&none);
  ::sigprocmask(SIG_SETMASK, &none, nullptr);
  char name[] = "spile", mode[] = "library-tracer";
  char* const words[] = {name, mode, nullptr};
  ::execve(start->program, words, start->environment);
  start->error = errno;
  ::_exit(127);
}

/// The child in between. It does not exec, and so sends no signal. Its descriptors are the
/// program's, so that the pidfd is, too.
int run_between(void* argument) {
  auto* start = static_cast<Start*>(argument);
  const int pid = ::clone(run_spile, start->stack, CLONE_VM | CLONE_VFORK | CLONE_PIDFD, start,
                          &start->process);
  if (pid < 0) start->error = errno;
  start->pid = pid;
  ::_exit(0);
}

class ChildStacks {
 public:
  ChildStacks()
      : memory_(::mmap(nullptr,
                       2 * kChildStackBytes,
                       PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS,
                       -1,
                       0)) {}
  ~ChildStacks() {
    if (memory_ != MAP_FAILED) ::munmap(memory_, 2 * kChildStackBytes);
  }
  ChildStacks(const ChildStacks&) = delete;
  ChildStacks& operator=(const ChildStacks&) = delete;
  explicit operator bool() const { return memory_ != MAP_FAILED; }
  uint8_t* end(size_t which) const {
    return static_cast<uint8_t*>(memory_) + (which + 1) * kChildStackBytes;
  }

 private:
  void* memory_;
};

/// The program's, without what would load something into it.
std::vector<char*> environment_for_spile() {
  std::vector<char*> environment;
  for (char** at = environ; at != nullptr && *at != nullptr; ++at) {
    if (std::strncmp(*at, "LD_PRELOAD=", 11) != 0) environment.push_back(*at);
  }
  environment.push_back(nullptr);
  return environment;
}

}  // namespace

Result<Fd> high(Fd low, const char* what) {
  if (!low) return fail_errno(errno, "{}", what);
  Fd moved(::fcntl(low.get(), F_DUPFD_CLOEXEC, 64));
  if (!moved) return fail_errno(errno, "{}", what);
  return moved;
}

void wait_for_end(const Fd& process, pid_t pid) {
  siginfo_t info = {};
  const auto waited = [&] {
    return process ? ::waitid(P_PIDFD, static_cast<id_t>(process.get()), &info, WEXITED | __WALL)
                   : ::waitpid(pid, nullptr, __WALL);
  };
  while (waited() < 0 && errno == EINTR) {
  }
}

Result<StartedSpile> start_spile(const std::string& program, const Fd& socket, const Fd& words) {
  SPILE_TRY(const Fd nothing, high(Fd(::open("/dev/null", O_RDWR | O_CLOEXEC)), "open /dev/null"));
  const ChildStacks stacks;
  if (!stacks) return fail(ErrorCode::kInternal, "no memory for a stack");
  const auto environment = environment_for_spile();
  Start start;
  start.program = program.c_str();
  start.stack = stacks.end(1);
  start.socket = socket.get();
  start.words = words.get();
  start.nothing = nothing.get();
  start.environment = environment.data();
  sigset_t all, before;
  ::sigfillset(&all);
  ::pthread_sigmask(SIG_SETMASK, &all, &before);
  const int pid = ::clone(run_between, stacks.end(0), CLONE_VM | CLONE_VFORK | CLONE_FILES, &start);
  const int clone_error = errno;
  ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
  if (pid < 0) return fail_errno(clone_error, "start the tracing process");
  while (::waitpid(pid, nullptr, __WALL) < 0 && errno == EINTR) {
  }
  StartedSpile started{start.pid, Fd(start.process)};
  if (start.error == 0) return started;
  if (started.pid > 0) wait_for_end(started.process, started.pid);
  return fail_errno(start.error, "run {}", program);
}

}  // namespace spile::api
