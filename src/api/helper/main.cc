// The helper process: stops the threads of its parent, makes the edits of a request, lets them go.
// See poke.h.
#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <thread>
#include <vector>

#include "api/poke.h"
#include "user_engine/target/process.h"
#include "user_engine/target/stopped.h"
#include "user_engine/target/threads_inside.h"

namespace spile::api {
namespace {

using target::StoppedProcess;

struct Request {
  PokeRequest* head = nullptr;
  std::vector<Edit> edits;  ///< a copy
};

Result<Request> read_request() {
  struct stat info = {};
  if (::fstat(kRequestDescriptor, &info) != 0) return fail_errno(errno, "read the request");
  const auto size = static_cast<size_t>(info.st_size);
  void* memory = size < sizeof(PokeRequest) ? MAP_FAILED
                                            : ::mmap(nullptr, size, PROT_READ | PROT_WRITE,
                                                     MAP_SHARED, kRequestDescriptor, 0);
  if (memory == MAP_FAILED) return fail(ErrorCode::kCorrupt, "no request");
  Request request;
  request.head = static_cast<PokeRequest*>(memory);
  if (sizeof(PokeRequest) + uint64_t{request.head->count} * sizeof(Edit) > size)
    return fail(ErrorCode::kCorrupt, "a request that is cut off");
  const auto* first = reinterpret_cast<const Edit*>(request.head + 1);
  request.edits.assign(first, first + request.head->count);
  return request;
}

/// Addresses at which nobody may go on once the bytes have changed: all but the first.
std::vector<target::AddressRange> insides(const std::vector<Edit>& edits) {
  std::vector<target::AddressRange> ranges;
  for (const Edit& edit : edits) {
    if (edit.size > 1) ranges.push_back({edit.at + 1, edit.at + edit.size});
  }
  return ranges;
}

Result<void> expect_nobody_inside(const StoppedProcess& process, const std::vector<Edit>& edits) {
  const auto ranges = insides(edits);
  for (const target::ThreadInside& inside : target::threads_at(process, ranges)) {
    return fail(ErrorCode::kBusy, "thread {} stays inside the code to be changed, at {}",
                process.threads()[inside.thread].tid, inside.address);
  }
  const auto contexts = target::live_contexts(process, ranges);
  if (!contexts.found.empty())
    return fail(ErrorCode::kBusy, "a signal handler will return into the code to be changed, at {}",
                contexts.found.front().rip);
  if (!contexts.incomplete.empty())
    return fail(ErrorCode::kBusy,
                "the stack of thread {} cannot be searched for signal handlers that would return "
                "into the code to be changed",
                process.threads()[contexts.incomplete.front()].tid);
  return {};
}

enum class State : uint8_t { kBefore, kDone };

Result<std::vector<State>> states_of(const StoppedProcess& process,
                                     const std::vector<Edit>& edits) {
  std::vector<State> states;
  for (const Edit& edit : edits) {
    std::array<uint8_t, kMaxEditBytes> now{};
    SPILE_TRY_VOID(process.memory().read(edit.at, std::span(now).first(edit.size)));
    const auto is = [&](const auto& bytes) {
      return std::equal(now.begin(), now.begin() + edit.size, bytes.begin());
    };
    if (!is(edit.before) && !is(edit.after))
      return fail(ErrorCode::kUnsafe,
                  "the code at {} has been changed by somebody else (a debugger, another tracer)",
                  edit.at);
    states.push_back(is(edit.after) ? State::kDone : State::kBefore);
  }
  return states;
}

/// Each write is whole: five bytes of one page in one system call, and no thread runs meanwhile.
Result<void> write_all(const StoppedProcess& process,
                       const std::vector<Edit>& edits,
                       const std::vector<State>& states) {
  for (size_t i = 0; i < edits.size(); ++i) {
    if (states[i] == State::kDone) continue;
    const Edit& edit = edits[i];
    auto done = process.memory().write(edit.at, std::span(edit.after).first(edit.size));
    if (done) continue;
    while (i-- > 0) {
      if (states[i] == State::kBefore)
        (void)process.memory().write(edits[i].at, std::span(edits[i].before).first(edits[i].size));
    }
    return done;
  }
  return {};
}

Result<void> serve(const target::Target& target, const std::vector<Edit>& edits) {
  return target::with_tracer_thread([&]() -> Result<void> {
    SPILE_TRY(auto process, StoppedProcess::stop(target));
    SPILE_TRY_VOID(expect_nobody_inside(process, edits));
    SPILE_TRY(const auto states, states_of(process, edits));
    return write_all(process, edits, states);
  });
}

/// Yama: our parent names us right after it has started us.
Result<target::Target> open_parent(pid_t pid) {
  for (int i = 0;; ++i) {
    auto target = target::Target::open(pid);
    if (target || target.error().code != ErrorCode::kDenied || i == 20) return target;
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
}

Result<void> work(const Request& request) {
  if (request.head->pid != ::getppid())
    return fail(ErrorCode::kInvalid, "the helper of the spile library is not to be run by hand");
  SPILE_TRY(const auto target, open_parent(request.head->pid));
  return serve(target, request.edits);
}

void answer(PokeRequest& head, const Result<void>& result) {
  if (!result) std::strncpy(head.message, result.error().message.c_str(), kMaxMessageBytes - 1);
  const int32_t code = result ? 0 : 1 + static_cast<int32_t>(result.error().code);
  __atomic_store_n(&head.answer, code, __ATOMIC_RELEASE);
}

}  // namespace
}  // namespace spile::api

int main() {
  using namespace spile::api;
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  const auto request = read_request();
  if (!request) return 1;
  answer(*request->head, work(*request));
  return 0;
}
