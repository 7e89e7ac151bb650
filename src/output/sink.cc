#include "output/sink.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <unistd.h>

#include <cerrno>
#include <ctime>

namespace spile::output {
namespace {

constexpr size_t kBufferBytes = 64 * 1024;

/// Holds SIGPIPE back in this thread and swallows the one that our own write raised; one that was
/// pending already stays.
class PipeSignalGuard {
 public:
  PipeSignalGuard() {
    sigemptyset(&pipe_);
    sigaddset(&pipe_, SIGPIPE);
    sigset_t pending;
    sigpending(&pending);
    was_pending_ = sigismember(&pending, SIGPIPE) == 1;
    pthread_sigmask(SIG_BLOCK, &pipe_, &before_);
  }
  ~PipeSignalGuard() {
    const int saved_errno = errno;
    const timespec at_once{};
    if (!was_pending_) {
      while (sigtimedwait(&pipe_, nullptr, &at_once) == -1 && errno == EINTR) {
      }
    }
    pthread_sigmask(SIG_SETMASK, &before_, nullptr);
    errno = saved_errno;
  }
  PipeSignalGuard(const PipeSignalGuard&) = delete;
  PipeSignalGuard& operator=(const PipeSignalGuard&) = delete;

 private:
  sigset_t pipe_{}, before_{};
  bool was_pending_ = false;
};

void wait_until_writable(int fd) {
  pollfd wait{fd, POLLOUT, 0};
  poll(&wait, 1, -1);
}

Result<void> write_all(int fd, std::string_view text) {
  const PipeSignalGuard guard;
  while (!text.empty()) {
    const ssize_t written = ::write(fd, text.data(), text.size());
    if (written >= 0) {
      text.remove_prefix(static_cast<size_t>(written));
    } else if (errno == EAGAIN) {
      wait_until_writable(fd);
    } else if (errno == EPIPE) {
      return fail(ErrorCode::kTargetGone, "write the output: nobody reads it any more");
    } else if (errno != EINTR) {
      return fail_errno(errno, "write the output");
    }
  }
  return {};
}

}  // namespace

Result<Sink> Sink::create(const std::string& path, Buffering buffering) {
  Fd fd(::open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644));
  if (!fd) return fail_errno(errno, "open {} for the output", path);
  return Sink(std::move(fd), buffering);
}

Result<void> Sink::write(std::string_view text) {
  pending_ += text;
  const bool is_line = buffering_ == Buffering::kLine && text.ends_with('\n');
  if (is_line || buffering_ == Buffering::kNone || pending_.size() >= kBufferBytes) return flush();
  return {};
}

Result<void> Sink::flush() {
  if (pending_.empty()) return {};
  std::string text;
  text.swap(pending_);  // on failure it is gone: a second try would write a part of it twice
  return write_all(fd_, text);
}

}  // namespace spile::output
