// Scripts: a spile of our own that traces this process, or another, and what it says.
//
// It must be a process of its own, since nobody can stop its own threads. One socket carries the
// frames of tracer_core.h, a pipe its words. It lives as long as the socket: whatever becomes of
// the program, it takes the probes out and ends.
//
// A forked child of the program would hold the socket open: it closes its copy at once, and nobody
// forks while a trace is started.
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <spile/detail/tracer_core.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "api/boundary.h"
#include "api/tracer_process.h"
#include "base/fd.h"
#include "os/process.h"

struct spile_tracer {
  spile::Fd socket, words;  ///< `words` is its standard error
  spile::Fd process;        ///< a pidfd, where the kernel has them (5.2)
  spile_tracer* next = nullptr;
  pid_t child = 0, owner = 0;
  bool traces_us = false, has_ended = false;
  std::vector<uint8_t> read;  ///< frames, and the part of one
  size_t given = 0;           ///< of `read`: those that the caller has had
  std::string said;           ///< its words, for which nobody has asked yet
};

namespace spile::api {
namespace {

constexpr uint32_t kMaxFrameBytes = 256u << 20;
constexpr size_t kReadBytes = 64 << 10;

// ---- all traces of this process ----

struct Tracers {
  std::mutex lock;  ///< also held while one is started
  spile_tracer* first = nullptr;
};

Tracers& tracers() {
  static auto* const kTracers = [] {
    auto* made = new Tracers;
    ::pthread_atfork([] { tracers().lock.lock(); }, [] { tracers().lock.unlock(); },
                     [] {
                       for (auto* t = tracers().first; t != nullptr; t = t->next) {
                         t->socket.reset();
                         t->words.reset();
                         t->process.reset();
                       }
                       tracers().lock.unlock();
                     });
    return made;
  }();
  return *kTracers;
}

void forget(spile_tracer& gone) {
  const std::lock_guard lock(tracers().lock);
  for (auto** at = &tracers().first; *at != nullptr; at = &(*at)->next) {
    if (*at != &gone) continue;
    *at = gone.next;
    return;
  }
}

/// With Yama it may trace us only while we name it; registering a probe names somebody else.
void let_it_trace(const spile_tracer& tracer) {
  if (tracer.traces_us && os::yama_scope() == 1 && !os::has_capability(os::kCapSysPtrace))
    ::prctl(PR_SET_PTRACER, tracer.child, 0, 0, 0);
}

// ---- frames ----

template <typename T>
void put(std::string& to, T value) {
  to.append(reinterpret_cast<const char*>(&value), sizeof value);
}
void put_text(std::string& to, const char* text) {
  put(to, static_cast<uint32_t>(std::strlen(text)));
  to += text;
}

std::string start_frame(const spile_tracer_request& request) {
  std::string frame;
  put(frame, uint32_t{SPILE_TRACER_PROTOCOL});
  put(frame, static_cast<uint8_t>(request.engine));
  put(frame, static_cast<uint8_t>(request.flags));
  put_text(frame, request.script);
  const int self = ::getpid();
  const int* pids = request.pid_count == 0 ? &self : request.pids;
  const size_t count = std::max<size_t>(request.pid_count, 1);
  put(frame, static_cast<uint32_t>(count));
  for (size_t i = 0; i < count; ++i) put(frame, static_cast<int32_t>(pids[i]));
  put(frame, static_cast<uint32_t>(request.parameter_count));
  for (size_t i = 0; i < request.parameter_count; ++i) put_text(frame, request.parameters[i]);
  return frame;
}

bool traces_us(const spile_tracer_request& request) {
  return request.pid_count == 0 || std::find(request.pids, request.pids + request.pid_count,
                                             ::getpid()) != request.pids + request.pid_count;
}

int send_frame(spile_tracer& tracer, unsigned type, const void* bytes, size_t size) {
  let_it_trace(tracer);
  std::string frame;
  put(frame, static_cast<uint32_t>(size + 1));
  put(frame, static_cast<uint8_t>(type));
  if (size > 0) frame.append(static_cast<const char*>(bytes), size);
  for (size_t done = 0; done < frame.size();) {
    const ssize_t n =
        ::send(tracer.socket.get(), frame.data() + done, frame.size() - done, MSG_NOSIGNAL);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return refuse(-EPIPE, "the tracing process has ended");
    done += static_cast<size_t>(n);
  }
  return 0;
}

Result<std::unique_ptr<spile_tracer>> start_tracer(const std::string& program) {
  auto tracer = std::make_unique<spile_tracer>();
  // Until the other ends are closed here: a child forked meanwhile would keep them.
  const std::lock_guard lock(tracers().lock);
  int sockets[2], pipe[2];
  if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sockets) != 0)
    return fail_errno(errno, "make a socket pair");
  tracer->socket = Fd(sockets[0]);
  SPILE_TRY(const Fd theirs, high(Fd(sockets[1]), "make a socket pair"));
  if (::pipe2(pipe, O_CLOEXEC) != 0) return fail_errno(errno, "make a pipe");
  tracer->words = Fd(pipe[0]);
  ::fcntl(pipe[0], F_SETFL, O_NONBLOCK);
  SPILE_TRY(const Fd words, high(Fd(pipe[1]), "make a pipe"));
  SPILE_TRY(auto started, start_spile(program, theirs, words));
  tracer->child = started.pid;
  tracer->process = std::move(started.process);
  tracer->owner = ::getpid();
  tracer->next = std::exchange(tracers().first, tracer.get());
  return tracer;
}

int open_tracer(const spile_tracer_request& request, spile_tracer** to) {
  if (::prctl(PR_GET_SECCOMP) != 0)
    return refuse(-EPERM,
                  "the program runs under seccomp, which may kill it for starting a process; start "
                  "the trace before it is confined");
  auto program = find_spile(request.program);
  if (!program) return refuse(program.error());
  auto tracer = start_tracer(*program);
  if (!tracer) return refuse(tracer.error());
  (*tracer)->traces_us = traces_us(request);
  const std::string frame = start_frame(request);
  *to = tracer->release();
  // If it has ended already, receiving tells why.
  (void)send_frame(**to, SPILE_FRAME_START, frame.data(), frame.size());
  return 0;
}

/// 1 and the frame; 0: not whole yet; negative: no frame can be so long.
int next_frame(spile_tracer& tracer, const unsigned char** frame, size_t* size) {
  const size_t left = tracer.read.size() - tracer.given;
  uint32_t bytes = 0;
  if (left < sizeof bytes) return 0;
  std::memcpy(&bytes, tracer.read.data() + tracer.given, sizeof bytes);
  if (bytes == 0 || bytes > kMaxFrameBytes)
    return refuse(-EIO, "the tracing process talks nonsense");
  if (left - sizeof bytes < bytes) return 0;
  *frame = tracer.read.data() + tracer.given + sizeof bytes;
  *size = bytes;
  tracer.given += sizeof bytes + bytes;
  return 1;
}

/// A pipe that nobody empties would hold it up. False: nothing was there.
bool hear_words(spile_tracer& tracer) {
  char words[4096];
  const ssize_t n = ::read(tracer.words.get(), words, sizeof words);
  if (n > 0) tracer.said.append(words, static_cast<size_t>(n));
  if (n == 0) tracer.words.reset();
  return n > 0;
}

/// Waits for the socket and the pipe. 1: read something; 0: nothing within the time; negative: its
/// end.
int read_more(spile_tracer& tracer, int timeout_ms) {
  pollfd wait[] = {{tracer.socket.get(), POLLIN, 0}, {tracer.words.get(), POLLIN, 0}};
  const int ready = ::poll(wait, 2, timeout_ms);
  if (ready < 0) return errno == EINTR ? 0 : -errno;
  if (wait[1].revents != 0) hear_words(tracer);
  if (wait[0].revents == 0) return ready > 0 ? 1 : 0;
  tracer.read.erase(tracer.read.begin(), tracer.read.begin() + static_cast<long>(tracer.given));
  tracer.given = 0;
  const size_t before = tracer.read.size();
  tracer.read.resize(before + kReadBytes);
  const ssize_t n = ::read(tracer.socket.get(), tracer.read.data() + before, kReadBytes);
  tracer.read.resize(before + static_cast<size_t>(std::max<ssize_t>(n, 0)));
  if (n < 0 && errno == EINTR) return 0;
  if (n > 0) return 1;
  while (hear_words(tracer)) {
  }
  tracer.has_ended = true;
  return refuse(-EPIPE, "the tracing process has ended");
}

int64_t now_ms() {
  timespec now = {};
  ::clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec * 1000 + now.tv_nsec / 1'000'000;
}

int receive(spile_tracer& tracer, int timeout_ms, const unsigned char** frame, size_t* size) {
  const int64_t end = now_ms() + timeout_ms;
  while (true) {
    if (const int got = next_frame(tracer, frame, size)) return got;
    if (tracer.has_ended) return -EPIPE;
    const auto left = timeout_ms < 0 ? -1 : static_cast<int>(std::max<int64_t>(end - now_ms(), 0));
    const int read = read_more(tracer, left);
    if (read < 0) return read;
    if (read == 0 && timeout_ms >= 0 && now_ms() >= end) return 0;
  }
}

/// Back when it has detached and ended.
void close_tracer(spile_tracer& tracer) {
  if (tracer.owner != ::getpid()) return;  // a forked child: the trace is its parent's
  let_it_trace(tracer);
  ::shutdown(tracer.socket.get(), SHUT_WR);
  const unsigned char* frame = nullptr;
  size_t size = 0;
  while (receive(tracer, -1, &frame, &size) >= 0) {
  }
  wait_for_end(tracer.process, tracer.child);
}

}  // namespace
}  // namespace spile::api

using namespace spile::api;

extern "C" {

int spile_tracer_open(const spile_tracer_request* request, spile_tracer** tracer) {
  return guarded([&] {
    if (request == nullptr || request->script == nullptr || tracer == nullptr)
      return refuse(-EINVAL, "no script");
    return open_tracer(*request, tracer);
  });
}

int spile_tracer_send(spile_tracer* tracer, unsigned type, const void* bytes, size_t size) {
  return guarded([&] {
    if (tracer == nullptr || tracer->owner != ::getpid())
      return refuse(-EINVAL, "no trace, or that of the process that this one was forked from");
    return send_frame(*tracer, type, bytes, size);
  });
}

int spile_tracer_receive(spile_tracer* tracer,
                         int timeout_ms,
                         const unsigned char** frame,
                         size_t* size) {
  return guarded([&] {
    if (tracer == nullptr || tracer->owner != ::getpid())
      return refuse(-EPIPE, "no trace, or that of the process that this one was forked from");
    return receive(*tracer, timeout_ms, frame, size);
  });
}

size_t spile_tracer_messages(spile_tracer* tracer, char* to, size_t size) {
  if (tracer == nullptr || to == nullptr) return 0;
  const size_t n = std::min(size, tracer->said.size());
  tracer->said.copy(to, n);
  tracer->said.erase(0, n);
  return n;
}

void spile_tracer_close(spile_tracer* tracer) {
  if (tracer == nullptr) return;
  close_tracer(*tracer);
  forget(*tracer);
  delete tracer;
}

}  // extern "C"
