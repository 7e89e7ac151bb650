#include "user_engine/target/stopped.h"

#include <pthread.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <thread>

namespace spile::target {
namespace {

thread_local bool t_is_tracer = false;
thread_local sigset_t t_creator_mask;
thread_local unsigned long t_creator_slack_ns = 0;
thread_local std::optional<os::Scheduling> t_creator_scheduling;

pid_t my_tid() {
  return static_cast<pid_t>(::syscall(SYS_gettid));
}

void run_as_tracer(const std::function<void()>& work,
                   unsigned long creator_slack_ns,
                   const std::optional<os::Scheduling>& creator_scheduling) {
  t_creator_slack_ns = creator_slack_ns;
  t_creator_scheduling = creator_scheduling;
  // Handlers of the program we live in belong to its own threads; 1 ns of slack makes short sleeps
  // short.
  sigset_t all;
  ::sigfillset(&all);
  ::pthread_sigmask(SIG_SETMASK, &all, &t_creator_mask);
  ::prctl(PR_SET_TIMERSLACK, 1UL);
  t_is_tracer = true;
  work();
}

/// What an unkillable wait looks like to a user.
std::string describe_state(char state) {
  switch (state) {
    case 'D':
      return "state D: it waits for a vfork child or for a device, and cannot be interrupted";
    case 'R': return "state R: it runs, or its cgroup is frozen";
    default: return fmt::format("state {}; its cgroup may be frozen", state);
  }
}

/// Threads in which the place of the thread id is searched for; the others are only asked whether
/// it is there.
constexpr size_t kThreadsSearched = 16;

/// Offsets from the fs base, in order, at which the thread's data hold this word.
std::vector<int64_t> offsets_holding(const os::ProcessMemory& memory,
                                     uint64_t fs_base,
                                     uint32_t wanted) {
  constexpr uint64_t kBefore = 1024, kAfter = 4096, kPage = 4096;
  const TargetAddr start(fs_base - kBefore);
  std::vector<uint8_t> bytes(kBefore + kAfter);
  if (memory.read_some(start, bytes) != bytes.size()) {
    // It reaches into unmapped pages on either side.
    std::ranges::fill(bytes, uint8_t{0});
    for (uint64_t at = 0; at < bytes.size();) {
      const uint64_t size =
          std::min<uint64_t>(kPage - (start.value + at) % kPage, bytes.size() - at);
      memory.read_some(start + at, {bytes.data() + at, size});
      at += size;
    }
  }
  std::vector<int64_t> offsets;
  for (size_t at = 0; at + sizeof wanted <= bytes.size(); at += sizeof wanted) {
    if (std::memcmp(bytes.data() + at, &wanted, sizeof wanted) == 0) {
      offsets.push_back(static_cast<int64_t>(at) - static_cast<int64_t>(kBefore));
    }
  }
  return offsets;
}

}  // namespace

void on_tracer_thread(const std::function<void()>& work) {
  // A thread that ends gives up all that it traces: the kernel's own guarantee that nothing stays
  // behind.
  const int slack_ns = ::prctl(PR_GET_TIMERSLACK);
  std::optional<os::Scheduling> scheduling;
  if (auto now = os::get_scheduling()) scheduling = *now;
  // The creator too: it waits for the thread's end, and the work goes on only when it runs.
  const os::Urgency prompt = os::Urgency::prompt();
  std::thread thread([&] {
    run_as_tracer(work, slack_ns > 0 ? static_cast<unsigned long>(slack_ns) : 0, scheduling);
  });
  thread.join();
}

void undo_tracer_settings() {
  ::prctl(PR_SET_TIMERSLACK, t_creator_slack_ns);
  if (t_creator_scheduling) (void)os::set_scheduling(*t_creator_scheduling);
  ::sigprocmask(SIG_SETMASK, &t_creator_mask, nullptr);
}

bool in_tracer_thread() {
  return t_is_tracer;
}

bool restartable_after_eintr(uint64_t number, bool fd_is_socket) {
  switch (number) {
    case SYS_epoll_wait:
    case SYS_epoll_pwait:
    case 441:  // epoll_pwait2
    case SYS_rt_sigtimedwait:
    case SYS_semop:
    case SYS_semtimedop:
    case SYS_io_getevents:
    case 333:  // io_pgetevents
    case 426:  // io_uring_enter: EINTR only when nothing was submitted
      return true;
    // With SO_RCVTIMEO these return EINTR where they otherwise restart; nothing has been received
    // then.
    case SYS_read:
    case SYS_recvfrom:
    case SYS_recvmsg:
    case SYS_recvmmsg:
    case SYS_accept:
    case SYS_accept4: return fd_is_socket;
    default: return false;  // connect above all: a second one fails with EALREADY
  }
}

bool StoppedThread::will_restart() const {
  if (in_user_code()) return false;
  switch (static_cast<int64_t>(registers.rax)) {
    case os::kErestartSys:
    case os::kErestartNoIntr:
    case os::kErestartNoHand:
    case os::kErestartRestartBlock: return true;
    default: return false;
  }
}

// ---- stopping
// --------------------------------------------------------------------------------------------------

StoppedProcess::StoppedProcess(StoppedProcess&& other) noexcept {
  *this = std::move(other);
}

StoppedProcess& StoppedProcess::operator=(StoppedProcess&& other) noexcept {
  if (this == &other) return *this;
  detach();
  target_ = other.target_;
  threads_ = std::exchange(other.threads_, {});
  running_ = std::exchange(other.running_, {});
  skipped_ = std::exchange(other.skipped_, {});
  own_child_ = other.own_child_;
  pin_ = std::move(other.pin_);
  since_ = other.since_;
  return *this;
}

StoppedProcess::~StoppedProcess() {
  detach();
}

void StoppedProcess::detach() {
  if (threads_.empty() && running_.empty()) return;
  // The first that goes must not have the others wait.
  const os::Urgency urgency = os::Urgency::real_time();
  for (const StoppedThread& thread : threads_) (void)os::ptrace_detach(thread.tid, 0);
  // Those that never came to rest: whoever has by now is let go, the others go with this thread's
  // end.
  for (pid_t tid : running_) {
    auto stop = os::peek_stop(tid, is_own_child(tid));
    if (!stop || !*stop || (*stop)->gone()) continue;
    (void)os::ptrace_detach(tid, (*stop)->kind == os::Stop::Kind::kSignal ? (*stop)->signal : 0);
  }
  threads_.clear();
  running_.clear();
  skipped_.clear();
  pin_ = os::CpuPin();
}

Result<StoppedProcess> StoppedProcess::stop(const Target& target, const StopOptions& options) {
  if (!in_tracer_thread())
    return fail(ErrorCode::kInternal, "a target is stopped outside a tracer thread");
  StoppedProcess process(target);
  auto done = process.stop_all(os::Clock::now() + options.timeout);
  if (!done) return forward(done, "stop process {} ({})", target.pid(), target.name());
  return process;
}

Result<StoppedProcess> StoppedProcess::adopt(const Target& target, pid_t tid) {
  if (!in_tracer_thread())
    return fail(ErrorCode::kInternal, "a target is taken over outside a tracer thread");
  StoppedProcess process(target);
  process.since_ = os::Clock::now();
  process.own_child_ = true;
  StoppedThread thread;
  thread.tid = tid;
  process.threads_.push_back(thread);
  process.take_registers(process.threads_.back());
  return process;
}

Result<void> StoppedProcess::stop_all(os::Deadline deadline) {
  since_ = os::Clock::now();
  if (auto status = os::read_status(target_->pid())) own_child_ = status->parent == ::getpid();
  SPILE_TRY(const pid_t tid, target_->live_thread());
  if (auto stat = os::read_stat(target_->pid(), tid)) pin_ = os::CpuPin::to(stat->cpu);
  const os::Urgency urgency = os::Urgency::real_time();
  return gather(deadline);
}

/// Until nothing of the target runs.
Result<void> StoppedProcess::gather(os::Deadline deadline) {
  for (int quiet_passes = 0; quiet_passes < 2;) {
    SPILE_TRY(const size_t added, seize_new_threads());
    const bool busy = added != 0 || !running_.empty();
    SPILE_TRY_VOID(settle_all(deadline));
    quiet_passes = busy ? 0 : quiet_passes + 1;
    if (busy && os::Clock::now() >= deadline) {
      return fail(ErrorCode::kBusy, "it starts threads faster than they can be stopped ({} so far)",
                  threads_.size());
    }
  }
  if (threads_.empty() || !target_->memory().alive()) {
    return fail(ErrorCode::kTargetGone, "it has ended or called exec meanwhile");
  }
  return check_sharers();
}

Result<void> StoppedProcess::let_run(std::span<const pid_t> tids, std::chrono::nanoseconds time) {
  const os::Urgency urgency = os::Urgency::real_time();
  for (const pid_t tid : tids) {
    const auto erased =
        std::erase_if(threads_, [&](const StoppedThread& thread) { return thread.tid == tid; });
    SPILE_CHECK(erased == 1);
    (void)os::ptrace_detach(tid, 0);
  }
  std::this_thread::sleep_for(time);
  auto done = gather(os::Clock::now() + StopOptions().timeout);
  if (done) return done;
  detach();
  return forward(done, "stop process {} ({})", target_->pid(), target_->name());
}

bool StoppedProcess::knows(pid_t tid) const {
  const auto has = [&](const std::vector<pid_t>& list) {
    return std::find(list.begin(), list.end(), tid) != list.end();
  };
  return has(running_) || has(skipped_) ||
         std::any_of(threads_.begin(), threads_.end(),
                     [&](const StoppedThread& t) { return t.tid == tid; });
}

Result<size_t> StoppedProcess::seize_new_threads() {
  SPILE_TRY(const auto tids, os::list_threads(target_->pid()));
  size_t added = 0;
  for (pid_t tid : tids) {
    if (knows(tid)) continue;
    SPILE_TRY(const bool seized, seize(tid));
    added += seized ? 1 : 0;
  }
  return added;
}

/// False when the thread ended first. A refusal is believed only when it is repeated while nobody
/// traces the thread: another tracer may let go between our request and our question who it was.
Result<bool> StoppedProcess::seize(pid_t tid) {
  constexpr int kTries = 5;
  for (int i = 0; i < kTries; ++i) {
    auto seized = os::ptrace_seize(tid, PTRACE_O_TRACECLONE);
    if (seized) {
      running_.push_back(tid);
      (void)os::ptrace_interrupt(tid);
      return true;
    }
    if (seized.error().code == ErrorCode::kTargetGone) return false;
    auto status = os::read_status(tid);
    if (!status) return false;
    if (status->state == 'Z' ||
        status->state == 'X') {  // a leader that ended before its threads stays as a zombie
      skipped_.push_back(tid);
      return false;
    }
    if (status->tracer == my_tid()) {  // born under PTRACE_O_TRACECLONE: it stops by itself
      running_.push_back(tid);
      return true;
    }
    if (status->tracer != 0) return fail(ErrorCode::kBusy, "{}", explain_denied(tid));
  }
  return fail(ErrorCode::kDenied, "{}", explain_denied(tid));
}

Result<void> StoppedProcess::settle_all(os::Deadline deadline) {
  while (!running_.empty()) {
    const pid_t tid = running_.back();
    SPILE_TRY(auto thread, settle(tid, deadline));
    std::erase(running_, tid);  // settle() may have added others behind it
    if (!thread) continue;
    threads_.push_back(*thread);
    take_registers(threads_.back());
  }
  return {};
}

Result<std::optional<StoppedThread>> StoppedProcess::settle(pid_t tid, os::Deadline deadline) {
  for (;;) {
    SPILE_TRY(const auto stop, os::wait_stop(tid, deadline, is_own_child(tid)));
    if (!stop) {
      auto status = os::read_status(tid);
      if (!status || status->state == 'Z' || status->state == 'X') return std::nullopt;
      return std::unexpected(cannot_stop(tid));
    }
    if (stop->gone()) return std::nullopt;
    switch (stop->kind) {
      case os::Stop::Kind::kEventStop: {
        StoppedThread thread;
        thread.tid = tid;
        thread.group_stopped = stop->signal != SIGTRAP;
        return thread;
      }
      case os::Stop::Kind::kClone: SPILE_TRY_VOID(adopt_clone(tid)); break;
      case os::Stop::Kind::kSignal: SPILE_TRY_VOID(let_pass(tid, stop->signal)); break;
      default: SPILE_TRY_VOID(let_pass(tid, 0)); break;
    }
  }
}

/// On to the next stop: the interrupt is asked for again, since any stop forgets one that was
/// pending.
Result<void> StoppedProcess::let_pass(pid_t tid, int signal) {
  SPILE_TRY_VOID(os::ptrace_interrupt(tid));
  auto done = os::ptrace_cont(tid, signal);
  if (!done && done.error().code != ErrorCode::kTargetGone)
    return done;  // gone: the next wait says so
  return {};
}

/// A thread at the end of its clone(): the child is traced already. It may also be no thread but a
/// process.
Result<void> StoppedProcess::adopt_clone(pid_t parent) {
  auto child = os::ptrace_event_message(parent);
  if (child && !knows(static_cast<pid_t>(*child))) {
    const pid_t tid = static_cast<pid_t>(*child);
    auto status = os::read_status(tid);
    if (status && status->tgid == target_->pid()) {
      running_.push_back(tid);
    } else if (status) {
      auto stop = os::wait_stop(tid, os::Clock::now() + std::chrono::milliseconds(20), false);
      if (stop && *stop && !(*stop)->gone()) (void)os::ptrace_detach(tid, 0);
    }
  }
  return let_pass(parent, 0);
}

Error StoppedProcess::cannot_stop(pid_t tid) const {
  auto status = os::read_status(tid);
  return Error{ErrorCode::kBusy, fmt::format("thread {} ({}) does not stop ({}); try again later",
                                             tid, status ? status->name : "?",
                                             describe_state(status ? status->state : '?'))};
}

void StoppedProcess::take_registers(StoppedThread& thread) {
  auto registers = os::ptrace_get_registers(thread.tid);
  if (!registers) return;  // killed meanwhile: every later request says so
  thread.registers = *registers;
  cure_eintr(thread);
}

/// A stop makes some system calls return EINTR. We are still inside the kernel's get_signal(): with
/// ERESTARTNOHAND it restarts the call, or returns EINTR where a real handler runs. Relative
/// timeouts start again.
void StoppedProcess::cure_eintr(StoppedThread& thread) {
  if (thread.in_user_code() || static_cast<int64_t>(thread.registers.rax) != -EINTR) return;
  const auto link = os::read_link(
      fmt::format("/proc/{}/fd/{}", thread.tid, static_cast<int>(thread.registers.rdi)));
  const bool socket = link && link->starts_with("socket:");
  if (!restartable_after_eintr(thread.registers.orig_rax, socket)) return;
  os::Registers cured = thread.registers;
  cured.rax = static_cast<uint64_t>(os::kErestartNoHand);
  if (os::ptrace_set_registers(thread.tid, cured)) thread.registers = cured;
}

Result<void> StoppedProcess::check_sharers() const {
  for (pid_t child : os::list_children(target_->pid())) {
    auto same = os::same_memory(threads_.front().tid, child);
    if (same && *same) {
      return fail(ErrorCode::kUnsafe,
                  "process {} shares its memory (clone with CLONE_VM) and would go on running "
                  "while code changes",
                  child);
    }
  }
  return {};
}

// ---- looking into stopped threads
// --------------------------------------------------------------------------------

Result<void> StoppedProcess::set_registers(size_t thread, const os::Registers& registers) {
  SPILE_CHECK(thread < threads_.size());
  SPILE_TRY_VOID(os::ptrace_set_registers(threads_[thread].tid, registers));
  threads_[thread].registers = registers;
  return {};
}

Result<RseqState> StoppedProcess::rseq(size_t thread) const {
  SPILE_CHECK(thread < threads_.size());
  constexpr uint64_t kDescriptorField = 8;  // struct rseq: cpu_id_start, cpu_id, rseq_cs
  RseqState state;
  SPILE_TRY(state.config, os::ptrace_rseq_config(threads_[thread].tid));
  if (state.config.area == 0) return state;
  SPILE_TRY(state.descriptor,
            memory().read_value<uint64_t>(TargetAddr(state.config.area + kDescriptorField)));
  if (state.descriptor == 0) return state;
  struct Descriptor {
    uint32_t version, flags;
    uint64_t start, length, abort;
  };
  if (auto d = memory().read_value<Descriptor>(TargetAddr(state.descriptor))) {
    state.start = d->start;
    state.length = d->length;
    state.abort = d->abort;
  }
  return state;
}

Result<void> StoppedProcess::clear_rseq(size_t thread, const RseqState& state) {
  SPILE_CHECK(thread < threads_.size());
  if (state.config.area == 0) return {};
  const uint8_t zero[8] = {};
  return memory().write(TargetAddr(state.config.area + 8), zero);
}

std::optional<StoppedProcess::CommonRseq> StoppedProcess::common_rseq() const {
  std::optional<CommonRseq> common;
  for (const StoppedThread& thread : threads_) {
    auto config = os::ptrace_rseq_config(thread.tid);
    const uint64_t fs = thread.registers.fs_base;
    if (!config || config->area == 0 || fs == 0) return std::nullopt;
    const CommonRseq here{static_cast<int64_t>(config->area - fs), config->signature};
    if (!common) common = here;
    if (common->offset_from_fs != here.offset_from_fs || common->signature != here.signature)
      return std::nullopt;
  }
  return common;
}

bool StoppedProcess::fs_bases_usable() const {
  std::vector<uint64_t> bases;
  for (const StoppedThread& thread : threads_) bases.push_back(thread.registers.fs_base);
  std::sort(bases.begin(), bases.end());
  return !bases.empty() && bases.front() != 0 &&
         std::adjacent_find(bases.begin(), bases.end()) == bases.end();
}

std::optional<int64_t> StoppedProcess::tid_offset() const {
  constexpr int64_t kKnown[] = {720, 48};  // glibc's struct pthread, musl's
  if (!fs_bases_usable()) return std::nullopt;
  auto tids = own_tids();
  if (!tids) return std::nullopt;
  const size_t searched = std::min(threads_.size(), kThreadsSearched);
  std::vector<int64_t> common =
      offsets_holding(memory(), threads_.front().registers.fs_base, tids->front());
  for (size_t i = 1; i < searched; ++i) {
    auto here = offsets_holding(memory(), threads_[i].registers.fs_base, (*tids)[i]);
    std::erase_if(common,
                  [&](int64_t offset) { return !std::ranges::binary_search(here, offset); });
  }
  for (size_t i = searched; i < threads_.size() && !common.empty(); ++i) {
    std::erase_if(common, [&](int64_t offset) {
      auto word = memory().read_value<uint32_t>(TargetAddr(threads_[i].registers.fs_base) +
                                                static_cast<uint64_t>(offset));
      return !word || *word != (*tids)[i];
    });
  }
  for (int64_t known : kKnown) {
    if (std::ranges::find(common, known) != common.end()) return known;
  }
  // One thread alone proves nothing: any variable may happen to hold its id.
  if (common.size() == 1 && threads_.size() >= 2) return common.front();
  return std::nullopt;
}

/// The threads' ids as they see them themselves. Where a few see the number that we see, there is
/// no other pid namespace and /proc need not be asked for each: some 20 us.
std::optional<std::vector<uint32_t>> StoppedProcess::own_tids() const {
  std::vector<uint32_t> tids;
  bool same = true;
  for (size_t i = 0; i < threads_.size(); ++i) {
    if (same && i >= kThreadsSearched) {
      tids.push_back(static_cast<uint32_t>(threads_[i].tid));
      continue;
    }
    auto status = os::read_status(threads_[i].tid);
    if (!status) return std::nullopt;
    same &= status->innermost_tid == threads_[i].tid;
    tids.push_back(static_cast<uint32_t>(status->innermost_tid));
  }
  return tids;
}

}  // namespace spile::target
