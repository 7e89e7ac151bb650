#include "os/gated_child.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>

namespace spile::os {

namespace {

/// In the child, after fork: only async-signal-safe calls.
[[noreturn]] void wait_and_exec(int gate,
                                int failure,
                                const char* program,
                                char* const* arguments) {
  char go = 0;
  if (read(gate, &go, 1) != 1) _exit(127);  // the parent is gone, or has given up
  sigset_t none;
  sigemptyset(&none);
  sigprocmask(SIG_SETMASK, &none, nullptr);
  signal(SIGPIPE, SIG_DFL);
  signal(SIGINT, SIG_DFL);
  signal(SIGTERM, SIG_DFL);
  execv(program, arguments);
  int error = errno;
  if (write(failure, &error, sizeof error) < 0) _exit(126);
  _exit(127);
}

}  // namespace

Result<GatedChild> GatedChild::spawn(const std::string& program,
                                     const std::vector<std::string>& arguments) {
  int gate[2], failure[2];
  if (pipe2(gate, O_CLOEXEC) < 0) return fail_errno(errno, "pipe");
  GatedChild child;
  child.gate_ = Fd(gate[1]);
  Fd gate_read(gate[0]);
  if (pipe2(failure, O_CLOEXEC) < 0) return fail_errno(errno, "pipe");
  child.failure_ = Fd(failure[0]);
  Fd failure_write(failure[1]);
  std::vector<char*> argv;
  for (const std::string& a : arguments) argv.push_back(const_cast<char*>(a.c_str()));
  argv.push_back(nullptr);
  child.pid_ = fork();
  if (child.pid_ < 0) return fail_errno(errno, "fork");
  if (child.pid_ == 0) {
    // Its own copy of the writing end would keep the gate from ever reporting that the parent has
    // gone.
    close(gate[1]);
    wait_and_exec(gate[0], failure[1], program.c_str(), argv.data());
  }
  return child;
}

GatedChild::~GatedChild() {
  if (pid_ <= 0 || !gate_) return;
  kill(pid_, SIGKILL);
  int status = 0;
  waitpid(pid_, &status, 0);
}

Result<void> GatedChild::open_gate() {
  char go = 'g';
  if (write(gate_.get(), &go, 1) != 1) return fail_errno(errno, "start the command");
  gate_.reset();
  // Closed by a successful exec.
  int error = 0;
  ssize_t got = read(failure_.get(), &error, sizeof error);
  failure_.reset();
  if (got == static_cast<ssize_t>(sizeof error)) return fail_errno(error, "exec");
  return {};
}

}  // namespace spile::os
