#include "user_engine/target/spawn.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/auxv.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <utility>

namespace spile::target {
namespace {

constexpr uint8_t kBreakpoint = 0xcc;  // int3
constexpr uint64_t kStateOffset = 24;  // struct r_debug: r_version, r_map, r_brk, r_state
constexpr uint32_t kConsistent = 0;    // RT_CONSISTENT
constexpr int kMaxHits = 16;           // glibc calls it twice before constructors

struct Pipe {
  Fd read, write;
};

Result<Pipe> make_pipe() {
  int ends[2];
  if (::pipe2(ends, O_CLOEXEC) != 0) return fail_errno(errno, "make a pipe");
  return Pipe{Fd(ends[0]), Fd(ends[1])};
}

/// In the forked child: waits for the tracer's word, then becomes the program. Async-signal-safe.
[[noreturn]] void become(const char* path, char* const* argv, int go, int exec_error) {
  char byte;
  ssize_t n;
  do {
    n = ::read(go, &byte, 1);
  } while (n < 0 && errno == EINTR);
  if (n != 1) ::_exit(127);  // the tracer has died
  undo_tracer_settings();
  // Ours is to learn of a closed pipe from write(2); a program's is its own.
  ::signal(SIGPIPE, SIG_DFL);
  ::execv(path, argv);
  const int error = errno;
  [[maybe_unused]] ssize_t ignored = ::write(exec_error, &error, sizeof error);
  ::_exit(127);
}

bool is_program(const std::string& path) {
  struct stat st{};
  return ::stat(path.c_str(), &st) == 0 && S_ISREG(st.st_mode) && ::access(path.c_str(), X_OK) == 0;
}

ExitStatus decode_exit(int status) {
  if (WIFSIGNALED(status)) return {true, WTERMSIG(status)};
  return {false, WEXITSTATUS(status)};
}

/// Reads one word of a command from the front of `text`.
Result<std::string> take_word(std::string_view& text) {
  std::string word;
  char quote = 0;
  size_t i = 0;
  for (; i < text.size(); ++i) {
    const char c = text[i];
    if (quote == 0 && (c == ' ' || c == '\t' || c == '\n')) break;
    const bool escapes = c == '\\' && quote != '\'' && i + 1 < text.size();
    if (escapes && (quote == 0 || text[i + 1] == '"' || text[i + 1] == '\\')) {
      word.push_back(text[++i]);
    } else if (quote == 0 && (c == '\'' || c == '"')) {
      quote = c;
    } else if (c == quote && quote != 0) {
      quote = 0;
    } else {
      word.push_back(c);
    }
  }
  if (quote != 0) return fail(ErrorCode::kInvalid, "the command has an open {}", quote);
  text.remove_prefix(i);
  return word;
}

}  // namespace

Result<std::vector<std::string>> split_command(std::string_view text) {
  std::vector<std::string> words;
  for (;;) {
    const size_t start = text.find_first_not_of(" \t\n");
    if (start == std::string_view::npos) return words;
    text.remove_prefix(start);
    SPILE_TRY(words.emplace_back(), take_word(text));
  }
}

Result<std::string> find_program(const std::string& name) {
  if (name.empty()) return fail(ErrorCode::kNotFound, "the command is empty");
  if (name.find('/') != std::string::npos) {
    if (is_program(name)) return name;
    const bool there = ::access(name.c_str(), F_OK) == 0;
    return fail(there ? ErrorCode::kDenied : ErrorCode::kNotFound, "{}: {}", name,
                there ? "not an executable file" : "no such file");
  }
  const char* path = ::getenv("PATH");
  std::string_view rest = path != nullptr ? path : "/usr/local/bin:/usr/bin:/bin";
  bool more = true;
  while (more) {
    const size_t end = rest.find(':');
    const std::string_view folder = rest.substr(0, end);
    const std::string candidate = folder.empty() ? "./" + name : fmt::format("{}/{}", folder, name);
    if (is_program(candidate)) return candidate;
    more = end != std::string_view::npos;
    if (more) rest.remove_prefix(end + 1);
  }
  return fail(ErrorCode::kNotFound, "no program \"{}\" in PATH", name);
}

Child::Child(Child&& other) noexcept {
  *this = std::move(other);
}

Child& Child::operator=(Child&& other) noexcept {
  if (this == &other) return *this;
  kill_and_reap();
  pid_ = std::exchange(other.pid_, 0);
  stop_ = other.stop_;
  target_ = std::move(other.target_);
  owned_ = std::exchange(other.owned_, false);
  return *this;
}

Child::~Child() {
  kill_and_reap();
}

void Child::kill_and_reap() {
  if (!owned_) return;
  owned_ = false;
  ::kill(pid_, SIGKILL);
  (void)wait_exit(pid_);
}

Result<Child> Child::spawn(const std::vector<std::string>& command,
                           const FindLoaderSymbols& find_symbols,
                           const SpawnOptions& options) {
  if (!in_tracer_thread())
    return fail(ErrorCode::kInternal, "a command is started outside a tracer thread");
  if (command.empty()) return fail(ErrorCode::kInvalid, "the command is empty");
  const auto deadline = os::Clock::now() + options.timeout;
  Child child;
  SPILE_TRY_VOID(child.start(command, deadline));
  SPILE_TRY(Target target, Target::open(child.pid_));
  child.target_ = std::make_unique<Target>(std::move(target));

  SPILE_TRY(const auto auxv, os::read_auxv(child.pid_));
  const auto base =
      std::find_if(auxv.begin(), auxv.end(), [](const auto& e) { return e.first == AT_BASE; });
  child.stop_ = SpawnStop::kStatic;
  if (base == auxv.end() || base->second == 0) return child;
  child.stop_ = SpawnStop::kLoaderUnknown;
  SPILE_TRY(const auto modules, child.target_->modules());
  for (const Module& module : modules) {
    if (!module.contains(TargetAddr(base->second))) continue;
    if (const auto symbols = find_symbols(module)) {
      SPILE_TRY_VOID(child.run_to_libraries(*symbols, module, deadline));
    }
    break;
  }
  return child;
}

/// Leaves the child at rest, in its new program, before the first instruction.
Result<void> Child::start(const std::vector<std::string>& command, os::Deadline deadline) {
  SPILE_TRY(const std::string path, find_program(command.front()));
  std::vector<char*> argv;
  for (const std::string& word : command) argv.push_back(const_cast<char*>(word.c_str()));
  argv.push_back(nullptr);
  SPILE_TRY(Pipe go, make_pipe());
  SPILE_TRY(Pipe exec_error, make_pipe());

  pid_ = ::fork();
  if (pid_ < 0) return fail_errno(errno, "start {}", path);
  if (pid_ == 0) {
    ::close(go.write.get());  // else the child would never see our end
    become(path.c_str(), argv.data(), go.read.get(), exec_error.write.get());
  }
  owned_ = true;
  exec_error.write.reset();
  SPILE_TRY_VOID(os::ptrace_seize(pid_, PTRACE_O_TRACEEXEC | PTRACE_O_EXITKILL));
  if (::write(go.write.get(), "x", 1) != 1) return fail_errno(errno, "start {}", path);
  auto done = run_to_exec(exec_error.read, deadline);
  if (!done) return forward(done, "run {}", path);
  return rest(deadline);
}

Result<os::Stop> Child::next_stop(os::Deadline deadline) {
  SPILE_TRY(const auto stop, os::wait_stop(pid_, deadline, true));
  if (!stop) return fail(ErrorCode::kBusy, "the program does not get ready in time");
  if (stop->gone())
    return fail(ErrorCode::kTargetGone, "the program has ended before it was ready");
  return *stop;
}

Result<void> Child::run_to_exec(const Fd& exec_error, os::Deadline deadline) {
  for (;;) {
    auto stop = next_stop(deadline);
    if (!stop) {
      int error = 0;
      if (stop.error().code == ErrorCode::kTargetGone &&
          ::read(exec_error.get(), &error, sizeof error) == sizeof error) {
        return fail_errno(error, "exec");
      }
      return forward(stop);
    }
    if (stop->kind == os::Stop::Kind::kExec) return {};
    SPILE_TRY_VOID(os::ptrace_cont(pid_, stop->kind == os::Stop::Kind::kSignal ? stop->signal : 0));
  }
}

/// From any stop to a PTRACE_EVENT_STOP at the edge of user code; at the exec event that also
/// finishes the system call, whose return would overwrite registers set before. A pending SIGTRAP
/// of ours is dropped.
Result<void> Child::rest(os::Deadline deadline) {
  int signal = 0;
  for (;;) {
    SPILE_TRY_VOID(os::ptrace_interrupt(pid_));
    SPILE_TRY_VOID(os::ptrace_cont(pid_, signal));
    SPILE_TRY(const os::Stop stop, next_stop(deadline));
    if (stop.kind == os::Stop::Kind::kEventStop) return {};
    signal = stop.kind == os::Stop::Kind::kSignal ? stop.signal : 0;
  }
}

Result<void> Child::run_to_libraries(const LoaderSymbols& symbols,
                                     const Module& loader,
                                     os::Deadline deadline) {
  const TargetAddr stop_at = loader.bias.to_target(symbols.debug_state);
  for (int hit = 0; hit < kMaxHits; ++hit) {
    SPILE_TRY_VOID(run_to(stop_at, deadline));
    uint32_t state = kConsistent;
    if (symbols.r_debug) {
      SPILE_TRY(state, target_->memory().read_value<uint32_t>(
                           loader.bias.to_target(*symbols.r_debug) + kStateOffset));
    }
    if (state == kConsistent) {
      stop_ = SpawnStop::kLibrariesMapped;
      return rest(deadline);
    }
    SPILE_TRY_VOID(step(deadline));
  }
  return fail(ErrorCode::kCorrupt, "{} never reports its libraries as mapped", loader.path);
}

/// Runs on until `address` would be executed. The int3 is out again when this returns, or the child
/// is killed: it is under PTRACE_O_EXITKILL, and ~Child kills what is not released.
Result<void> Child::run_to(TargetAddr address, os::Deadline deadline) {
  uint8_t original = 0;
  SPILE_TRY_VOID(target_->memory().read(address, {&original, 1}));
  SPILE_TRY_VOID(target_->memory().write(address, {&kBreakpoint, 1}));
  int signal = 0;
  for (;;) {
    SPILE_TRY_VOID(os::ptrace_cont(pid_, signal));
    SPILE_TRY(const os::Stop stop, next_stop(deadline));
    signal = stop.kind == os::Stop::Kind::kSignal ? stop.signal : 0;
    if (signal != SIGTRAP) continue;
    SPILE_TRY(os::Registers registers, os::ptrace_get_registers(pid_));
    if (registers.rip != address.value + 1) continue;  // somebody's own trap
    SPILE_TRY_VOID(target_->memory().write(address, {&original, 1}));
    registers.rip = address.value;
    return os::ptrace_set_registers(pid_, registers);
  }
}

/// One instruction further. A signal that comes meanwhile is delivered: the step then ends in its
/// handler, and the handler's return runs into the next breakpoint at the same place.
Result<void> Child::step(os::Deadline deadline) {
  int signal = 0;
  for (;;) {
    SPILE_TRY_VOID(os::ptrace_singlestep(pid_, signal));
    SPILE_TRY(const os::Stop stop, next_stop(deadline));
    signal = stop.kind == os::Stop::Kind::kSignal ? stop.signal : 0;
    if (signal == SIGTRAP) return {};
  }
}

Result<StoppedProcess> Child::take_stopped() {
  SPILE_TRY_VOID(os::ptrace_set_options(pid_, PTRACE_O_TRACECLONE));
  return StoppedProcess::adopt(*target_, pid_);
}

Result<std::optional<ExitStatus>> poll_exit(pid_t child) {
  int status = 0;
  const pid_t done = ::waitpid(child, &status, WNOHANG);
  if (done < 0) return fail_errno(errno, "wait for child {}", child);
  if (done == 0 || (!WIFEXITED(status) && !WIFSIGNALED(status))) return std::nullopt;
  return decode_exit(status);
}

Result<ExitStatus> wait_exit(pid_t child) {
  for (;;) {
    int status = 0;
    const pid_t done = ::waitpid(child, &status, 0);
    if (done < 0 && errno == EINTR) continue;
    if (done < 0) return fail_errno(errno, "wait for child {}", child);
    if (WIFEXITED(status) || WIFSIGNALED(status)) return decode_exit(status);
  }
}

}  // namespace spile::target
