#include "user_engine/target/test_program.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <grp.h>
#include <poll.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <map>
#include <mutex>

#include "os/process.h"

namespace spile::target {
namespace {

/// For a crowded machine: who waits that long has failed.
constexpr int kPatienceMs = 60'000;

/// A folder of this run, readable by all, removed at the end.
struct Folder {
  Folder() {
    char name[] = "/tmp/spile-target-XXXXXX";
    if (::mkdtemp(name) != nullptr) path = name;
    ::chmod(name, 0755);
    owner = ::getpid();
  }
  ~Folder() {
    std::error_code ignored;
    if (owner == ::getpid()) std::filesystem::remove_all(path, ignored);
  }
  std::string path;
  pid_t owner = 0;
};

std::string read_until(int fd, const char* wanted, int timeout_ms) {
  std::string text;
  char buffer[512];
  pollfd p{fd, POLLIN, 0};
  while (::poll(&p, 1, timeout_ms) > 0) {
    const ssize_t n = ::read(fd, buffer, sizeof buffer);
    if (n <= 0) break;
    text.append(buffer, static_cast<size_t>(n));
    if (wanted != nullptr && text.find(wanted) != std::string::npos) break;
  }
  return text;
}

}  // namespace

std::string build_program(const std::string& source, const std::string& compiler_and_flags) {
  static Folder folder;
  static std::map<std::string, std::string> built;
  auto [it, added] = built.emplace(source + "|" + compiler_and_flags, "");
  if (!added) return it->second;
  const std::string compiler = compiler_and_flags.substr(0, compiler_and_flags.find(' '));
  if (std::system(fmt::format("command -v {} >/dev/null", compiler).c_str()) != 0) return {};
  const std::string from = std::filesystem::path(__FILE__).parent_path() / "testdata" / source;
  const std::string to = fmt::format("{}/program{}", folder.path, built.size());
  const std::string command = source.ends_with(".go")
                                  ? fmt::format("GOCACHE={}/cache GO111MODULE=off {} -o {} {}",
                                                folder.path, compiler_and_flags, to, from)
                                  : fmt::format("{} -o {} {}", compiler_and_flags, to, from);
  if (std::system(command.c_str()) == 0) it->second = to;
  return it->second;
}

Program Program::start(const std::vector<std::string>& command, uid_t uid) {
  int in[2], out[2];
  if (::pipe2(in, O_CLOEXEC) != 0 || ::pipe2(out, O_CLOEXEC) != 0) std::abort();
  Program program;
  program.pid_ = ::fork();
  if (program.pid_ == 0) {
    ::dup2(in[0], 0);
    ::dup2(out[1], 1);
    if (uid != 0 && (::setgroups(0, nullptr) != 0 || ::setgid(uid) != 0 || ::setuid(uid) != 0))
      ::_exit(126);
    ::alarm(60);
    std::vector<char*> argv;
    for (const std::string& word : command) argv.push_back(const_cast<char*>(word.c_str()));
    argv.push_back(nullptr);
    ::execvp(argv[0], argv.data());
    ::_exit(127);
  }
  program.owned_.pid = program.pid_;
  ::close(in[0]);
  ::close(out[1]);
  program.in_ = Fd(in[1]);
  program.out_ = Fd(out[0]);
  return program;
}

Program::~Program() {
  if (owned_.pid == 0) return;
  ::kill(owned_.pid, SIGKILL);
  ::waitpid(owned_.pid, nullptr, 0);
}

bool Program::ready() {
  const bool said = read_until(out_.get(), "ready", kPatienceMs).find("ready") != std::string::npos;
  for (int i = 0; said && i < 20 && state() != 'S'; ++i) ::usleep(200);
  return said;
}

std::string Program::output_so_far() {
  return read_until(out_.get(), nullptr, 0);
}

std::string Program::finish() {
  ::signal(SIGPIPE, SIG_IGN);
  [[maybe_unused]] const ssize_t n =
      ::write(in_.get(), "x", 1);  // fails when the program has ended: judged below
  std::string text = read_until(out_.get(), nullptr, kPatienceMs);
  int status = 0;
  pid_t done = 0;
  for (int i = 0; i < kPatienceMs && done == 0; ++i) {
    done = ::waitpid(pid_, &status, WNOHANG);
    if (done == 0) ::usleep(1000);
  }
  if (done == 0) return text + " [hangs in state " + state() + "]";
  owned_.pid = 0;
  while (!text.empty() && text.back() == '\n') text.pop_back();
  if (WIFSIGNALED(status)) return fmt::format("{} [killed by signal {}]", text, WTERMSIG(status));
  if (WEXITSTATUS(status) != 0)
    return fmt::format("{} [exit status {}]", text, WEXITSTATUS(status));
  return text;
}

char Program::state() const {
  auto stat = os::read_stat(pid_, pid_);
  return stat ? stat->state : '?';
}

char Program::state_after_waiting_for(char wanted) const {
  for (int i = 0; i < 50'000 && state() != wanted; ++i) ::usleep(200);
  return state();
}

}  // namespace spile::target
