#include "user_engine/target/inject.h"

#include <fcntl.h>
#include <linux/membarrier.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <utility>

#include "os/memory.h"
#include "user_engine/target/stub.h"
#include "user_engine/target/threads_inside.h"

#ifndef MAP_FIXED_NOREPLACE
#define MAP_FIXED_NOREPLACE 0x100000
#endif
#ifndef MADV_WIPEONFORK
#define MADV_WIPEONFORK 18
#endif
#ifndef F_SEAL_FUTURE_WRITE
#define F_SEAL_FUTURE_WRITE 0x0010
#endif

namespace spile::target {
namespace {

constexpr uint64_t kPage = 4096;
constexpr uint64_t kAllSignals = ~0ull;
constexpr uint64_t kTrapBit = uint64_t{1} << (SIGTRAP - 1);
constexpr uint64_t kSigsetBytes = 8;
constexpr int64_t kNoDescriptor = -1;
/// One injected call; more means that something holds the memory map's lock, or a frozen cgroup.
constexpr auto kCallTimeout = std::chrono::seconds(2);
constexpr auto kRescueTimeout = std::chrono::milliseconds(200);

bool inside_stub(const StoppedProcess& process, TargetAddr at, uint64_t size_bytes) {
  const AddressRange range{at, at + size_bytes};
  return !threads_at(process, {&range, 1}).empty();
}

constexpr uint8_t kInt3 = 0xcc;

/// A SIGTRAP will be delivered before its next instruction.
bool is_trapping(const os::Status& status) {
  return (status.pending & ~status.blocked & kTrapBit) != 0;
}

}  // namespace

// ---- one thread, borrowed
// ------------------------------------------------------------------------------------------

/// A thread of a stopped process that makes system calls for us, and gets everything back.
class Injection {
 public:
  using Arguments = std::array<uint64_t, 6>;

  static Result<Injection> begin(StoppedProcess& process);
  Injection(Injection&& other) noexcept
      : process_(std::exchange(other.process_, nullptr)),
        thread_(other.thread_),
        place_(other.place_),
        mask_(other.mask_),
        descriptor_(other.descriptor_),
        entered_(other.entered_),
        suspended_(other.suspended_),
        written_(other.written_) {}
  Injection& operator=(Injection&&) = delete;
  ~Injection() { (void)end(); }

  /// The call's value, -errno included.
  Result<int64_t> call(uint64_t number, const Arguments& arguments);
  Result<int64_t> create_memfd(std::string_view name, unsigned flags);
  /// Closes the descriptor that create_memfd() made.
  Result<void> close_descriptor();
  /// Registers and signal mask as they were; the stub's bytes wiped. Idempotent.
  Result<void> end();

  pid_t tid() const { return process_->threads_[thread_].tid; }
  int64_t descriptor() const { return descriptor_; }

 private:
  explicit Injection(StoppedProcess& process) : process_(&process) {}

  Result<void> choose_thread();
  Result<bool> is_usable(size_t thread, bool accept_filter) const;
  bool is_behind_int3(const StoppedThread& thread, const os::Status& status) const;
  Error nobody_usable() const;
  Result<void> suspend_filter();
  void follow_to_cpu();
  Result<void> leave_rseq();
  Result<void> choose_place();
  Result<void> write_stub();
  Result<int64_t> enter(uint64_t entry, uint64_t number, const Arguments& arguments);
  Result<int64_t> run_call(uint64_t expected_rip);
  void rescue();
  StoppedThread& thread() { return process_->threads_[thread_]; }

  StoppedProcess* process_;
  size_t thread_ = 0;
  TargetAddr place_;
  uint64_t mask_ = 0;
  int64_t descriptor_ = kNoDescriptor;
  bool entered_ = false;
  bool suspended_ = false;
  bool written_ = false;
};

Result<Injection> Injection::begin(StoppedProcess& process) {
  if (process.threads_.empty())
    return fail(ErrorCode::kTargetGone, "process {} has no thread left", process.target().pid());
  Injection injection(process);
  SPILE_TRY_VOID(injection.choose_thread());
  injection.follow_to_cpu();
  SPILE_TRY_VOID(injection.leave_rseq());
  SPILE_TRY_VOID(injection.choose_place());
  SPILE_TRY(injection.mask_, os::ptrace_get_signal_mask(injection.tid()));
  SPILE_TRY_VOID(injection.write_stub());
  return injection;
}

/// A thread in user code is best: nothing has to be restarted. One without a seccomp filter is
/// needed, or the right to switch filters off.
Result<void> Injection::choose_thread() {
  for (const bool accept_filter : {false, true}) {
    for (const bool user_code : {true, false}) {
      for (size_t i = 0; i < process_->threads_.size(); ++i) {
        if (process_->threads_[i].in_user_code() != user_code) continue;
        SPILE_TRY(const bool usable, is_usable(i, accept_filter));
        if (!usable) continue;
        thread_ = i;
        return accept_filter ? suspend_filter() : Result<void>{};
      }
    }
  }
  return std::unexpected(nobody_usable());
}

Error Injection::nobody_usable() const {
  for (const StoppedThread& thread : process_->threads_) {
    auto status = os::read_status(thread.tid);
    if (status && is_behind_int3(thread, *status))
      return {ErrorCode::kBusy, "every thread is about to get the SIGTRAP of a breakpoint"};
  }
  return {ErrorCode::kUnsupported, "every thread redirects its own system calls (as under Wine)"};
}

Result<bool> Injection::is_usable(size_t index, bool accept_filter) const {
  const StoppedThread& candidate = process_->threads_[index];
  auto status = os::read_status(candidate.tid);
  if (!status) return false;
  if (status->seccomp != 0 && !accept_filter) return false;
  if (is_behind_int3(candidate, *status)) return false;
  return !os::ptrace_user_dispatch(candidate.tid);
}

/// The signal's handler must find the address of the int3, not that of our stub. Of a program that
/// steps itself the signal may come anywhere.
bool Injection::is_behind_int3(const StoppedThread& thread, const os::Status& status) const {
  if (!thread.in_user_code() || !is_trapping(status)) return false;
  auto before = process_->memory().read_value<uint8_t>(TargetAddr(thread.registers.rip - 1));
  return before && *before == kInt3;
}

Result<void> Injection::suspend_filter() {
  auto done = os::ptrace_set_options(tid(), PTRACE_O_TRACECLONE | PTRACE_O_SUSPEND_SECCOMP);
  if (!done) {
    return fail(ErrorCode::kDenied,
                "every thread runs under a seccomp filter, which may kill the process for the "
                "system calls we need: "
                "CAP_SYS_ADMIN is needed to suspend it (run as root)");
  }
  suspended_ = true;
  return {};
}

/// A stop on our own CPU costs 5 us, across CPUs 150.
void Injection::follow_to_cpu() {
  auto stat = os::read_stat(process_->target().pid(), tid());
  if (!stat) return;
  process_->pin_ = os::CpuPin();
  process_->pin_ = os::CpuPin::to(stat->cpu);
}

/// A thread inside a restartable sequence has been interrupted: it must abort, as the kernel would
/// make it. Left alone, the kernel would see it in the stub, forget the sequence, and we would put
/// it back into the middle.
Result<void> Injection::leave_rseq() {
  if (!thread().in_user_code()) return {};
  auto state = process_->rseq(thread_);
  if (!state || !state->inside(thread().registers.rip)) return {};
  os::Registers registers = thread().registers;
  registers.rip = state->abort;
  SPILE_TRY_VOID(process_->set_registers(thread_, registers));
  return process_->clear_rseq(thread_, *state);
}

Result<void> Injection::choose_place() {
  SPILE_TRY(const auto maps, os::read_maps(tid()));
  for (const StubPlace& place : find_stub_places(maps, process_->memory())) {
    if (place.leftover_bytes != 0 && inside_stub(*process_, place.address, place.leftover_bytes))
      continue;
    place_ = place.address;
    return {};
  }
  return fail(ErrorCode::kUnsupported,
              "no executable page has {} unused bytes at its end for the injection stub (not even "
              "the vdso)",
              stub_layout().size);
}

Result<void> Injection::write_stub() {
  std::array<uint8_t, 2> before_rip{};
  process_->memory().read_some(TargetAddr(thread().registers.rip - 2), before_rip);
  const os::Registers home = way_home(thread(), before_rip);
  auto done = process_->memory().write(place_, make_stub(home, mask_));
  if (!done) return forward(done, "write the injection stub");
  written_ = true;
  return {};
}

/// Moves the thread to one of the stub's two entries and lets it make the call.
Result<int64_t> Injection::enter(uint64_t entry, uint64_t number, const Arguments& a) {
  os::Registers registers = thread().registers;
  registers.rip = place_.value + entry;
  registers.rax = number;
  registers.orig_rax = os::kNoSystemCall;  // the kernel must not restart anything on the way
  registers.rbx = static_cast<uint64_t>(descriptor_);
  registers.rdi = a[0], registers.rsi = a[1], registers.rdx = a[2];
  registers.r10 = a[3], registers.r8 = a[4], registers.r9 = a[5];
  SPILE_TRY_VOID(os::ptrace_set_registers(tid(), registers));
  if (!entered_) {
    entered_ = true;
    // After SETREGS, not before: from now on the stub's tail would put the mask back.
    SPILE_TRY_VOID(os::ptrace_set_signal_mask(tid(), kAllSignals));
  }
  return run_call(place_.value + (entry == stub_layout().memfd ? stub_layout().after_memfd
                                                               : stub_layout().after_call));
}

/// entry stop, exit stop; other stops are passed over.
Result<int64_t> Injection::run_call(uint64_t expected_rip) {
  const auto deadline = os::Clock::now() + kCallTimeout;
  int signal = 0;
  for (;;) {
    SPILE_TRY_VOID(os::ptrace_syscall(tid(), signal));
    signal = 0;
    SPILE_TRY(const auto stop, os::wait_stop(tid(), deadline, process_->is_own_child(tid())));
    if (!stop || os::Clock::now() > deadline) {
      rescue();
      return fail(ErrorCode::kBusy,
                  "an injected system call does not return: the target's cgroup may be frozen");
    }
    if (stop->gone()) return fail(ErrorCode::kTargetGone, "the target was killed meanwhile");
    if (stop->kind == os::Stop::Kind::kSyscall) {
      SPILE_TRY(const os::SyscallStop info, os::ptrace_syscall_info(tid()));
      if (info.rip != expected_rip)
        return fail(ErrorCode::kInternal, "thread {} makes a system call of its own", tid());
      if (!info.entry) return info.value;
    } else if (stop->kind == os::Stop::Kind::kSignal) {
      // Only SIGSTOP cannot be blocked: let it take effect, it stops the thread once we are gone.
      if (stop->signal != SIGSTOP) {
        return fail(ErrorCode::kInternal, "signal {} ({}) in an injected system call", stop->signal,
                    ::strsignal(stop->signal));
      }
      signal = SIGSTOP;
    }
  }
}

/// The thread runs (or hangs) in the stub: get it to stop so that end() can restore it. Where that
/// fails the stub's tail does it as soon as the thread can run.
void Injection::rescue() {
  (void)os::ptrace_interrupt(tid());
  (void)os::wait_stop(tid(), os::Clock::now() + kRescueTimeout, process_->is_own_child(tid()));
}

Result<int64_t> Injection::call(uint64_t number, const Arguments& arguments) {
  return enter(stub_layout().call, number, arguments);
}

Result<int64_t> Injection::create_memfd(std::string_view name, unsigned flags) {
  const TargetAddr at = place_ + stub_layout().name;
  SPILE_TRY_VOID(process_->memory().write(at, name_field(name)));
  SPILE_TRY(const int64_t value, enter(stub_layout().memfd, SYS_memfd_create, {at.value, flags}));
  descriptor_ = value >= 0 ? value : kNoDescriptor;
  return value;
}

Result<void> Injection::close_descriptor() {
  // The tail must not close it a second time: another thread may own the number by then.
  const auto descriptor = static_cast<uint64_t>(std::exchange(descriptor_, kNoDescriptor));
  SPILE_TRY([[maybe_unused]] const int64_t value, call(SYS_close, {descriptor}));
  return {};
}

Result<void> Injection::end() {
  if (process_ == nullptr) return {};
  if (entered_ && descriptor_ != kNoDescriptor) (void)close_descriptor();
  StoppedProcess& process = *std::exchange(process_, nullptr);
  const StoppedThread& home = process.threads_[thread_];
  Result<void> done;
  if (entered_) {
    // Mask first: killed in between, the tail restores the rest.
    done = os::ptrace_set_signal_mask(home.tid, mask_);
    if (done) done = os::ptrace_set_registers(home.tid, home.registers);
  }
  if (!done) return forward(done, "put thread {} back", home.tid);
  if (suspended_) (void)os::ptrace_set_options(home.tid, PTRACE_O_TRACECLONE);
  if (written_) return process.memory().write(place_, std::vector<uint8_t>(stub_layout().size, 0));
  return {};
}

// ---- regions
// -------------------------------------------------------------------------------------------------------

namespace {

Result<void> check_spec(const RegionSpec& spec) {
  const bool file = spec.kind != RegionSpec::Kind::kPrivate;
  if (spec.size_bytes == 0 || spec.size_bytes % kPage != 0 || spec.address.value % kPage != 0 ||
      (spec.allocate_later && spec.populate) ||
      (file &&
       (spec.name.size() >= stub_layout().name_bytes || !spec.name.starts_with(kRegionPrefix)))) {
    return fail(ErrorCode::kInvalid, "region \"{}\" at {}, {} bytes", spec.name, spec.address,
                spec.size_bytes);
  }
  uint64_t sum = 0;
  for (const AddressRange& piece : spec.pieces) {
    sum += piece.size();
    if (piece.size() == 0 || piece.size() % kPage != 0 || piece.start.value % kPage != 0)
      return fail(ErrorCode::kInvalid, "region \"{}\" has a piece of {} bytes at {}", spec.name,
                  piece.size(), piece.start);
  }
  if (!spec.pieces.empty() && (sum != spec.size_bytes || !file))
    return fail(ErrorCode::kInvalid, "region \"{}\": its pieces do not make {} bytes", spec.name,
                spec.size_bytes);
  return {};
}

std::unexpected<Error> call_failed(int64_t value, std::string_view what) {
  Error error = errno_error(static_cast<int>(-value), what);
  if (value == -EEXIST) error.code = ErrorCode::kBusy;
  if (value == -ENOMEM)
    error.message += " (the target's RLIMIT_AS, or vm.max_map_count, or no memory)";
  if (value == -EMFILE || value == -ENFILE) {
    error.code = ErrorCode::kDenied;
    error.message += " (the target has no free descriptor, and we may not raise its RLIMIT_NOFILE)";
  }
  if (value == -EAGAIN)
    error.message += " (the target locks its memory and has reached RLIMIT_MEMLOCK)";
  return std::unexpected(std::move(error));
}

/// Lets the target open one descriptor more than it may, for as long as this object lives.
class MoreDescriptors {
 public:
  static Result<MoreDescriptors> allow(pid_t pid) {
    MoreDescriptors more;
    SPILE_TRY(more.before_, os::get_limit(pid, RLIMIT_NOFILE));
    os::Limit raised = more.before_;
    if (raised.hard > raised.soft) {
      raised.soft = raised.hard;
    } else {
      raised.soft = raised.hard = raised.hard + 64;  // CAP_SYS_RESOURCE
    }
    SPILE_TRY_VOID(os::set_limit(pid, RLIMIT_NOFILE, raised));
    more.pid_ = pid;
    return more;
  }
  MoreDescriptors(MoreDescriptors&& other) noexcept
      : pid_(std::exchange(other.pid_, 0)), before_(other.before_) {}
  MoreDescriptors& operator=(MoreDescriptors&&) = delete;
  ~MoreDescriptors() {
    if (pid_ != 0) (void)os::set_limit(pid_, RLIMIT_NOFILE, before_);
  }

 private:
  MoreDescriptors() = default;
  pid_t pid_ = 0;
  os::Limit before_;
};

Result<int64_t> create_memfd_any_flags(Injection& injection, std::string_view name) {
  int64_t value = -EINVAL;
  for (unsigned flags : os::memfd_flag_ladder()) {
    SPILE_TRY(value, injection.create_memfd(name, flags));
    if (value != -EINVAL) break;
  }
  return value;
}

Result<void> create_file(Injection& injection, pid_t pid, const RegionSpec& spec) {
  SPILE_TRY(int64_t value, create_memfd_any_flags(injection, spec.name));
  if (value == -EMFILE) {
    if (auto more = MoreDescriptors::allow(pid)) {
      SPILE_TRY(value, create_memfd_any_flags(injection, spec.name));
    }
  }
  if (value < 0) return call_failed(value, "create a memory file in the target");
  return {};
}

/// Size, pages, our view, seals. After this the target cannot resize it, and cannot map code
/// writable.
Result<RemoteMemory> prepare_file(const Injection& injection, const RegionSpec& spec) {
  SPILE_TRY(Fd file, os::open_read_write(
                         fmt::format("/proc/{}/fd/{}", injection.tid(), injection.descriptor())));
  SPILE_TRY_VOID(os::set_size(file, spec.size_bytes));
  if (!spec.allocate_later) SPILE_TRY_VOID(os::allocate(file, spec.size_bytes));
  SPILE_TRY(Mapping local, os::map_read_write(file, spec.size_bytes, !spec.allocate_later));
  const int seals = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL;
  SPILE_TRY_VOID(os::add_seals(
      file, spec.kind == RegionSpec::Kind::kCode ? seals | F_SEAL_FUTURE_WRITE : seals));
  return RemoteMemory{spec, std::move(local), spec.allocate_later ? std::move(file) : Fd()};
}

std::vector<AddressRange> pieces_of(const RegionSpec& spec) {
  if (!spec.pieces.empty()) return spec.pieces;
  return {{spec.address, spec.address + spec.size_bytes}};
}

Result<void> map_piece(Injection& injection,
                       const RegionSpec& spec,
                       const AddressRange& piece,
                       uint64_t offset) {
  const bool anonymous = spec.kind == RegionSpec::Kind::kPrivate;
  const uint64_t prot =
      spec.kind == RegionSpec::Kind::kCode ? PROT_READ | PROT_EXEC : PROT_READ | PROT_WRITE;
  const uint64_t flags = (anonymous ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_SHARED) |
                         MAP_FIXED_NOREPLACE | (spec.populate ? MAP_POPULATE : 0) |
                         (spec.kept_by_fork ? MAP_NORESERVE : 0);
  const uint64_t fd = static_cast<uint64_t>(anonymous ? kNoDescriptor : injection.descriptor());
  SPILE_TRY(const int64_t value,
            injection.call(SYS_mmap, {piece.start.value, piece.size(), prot, flags, fd, offset}));
  if (value < 0 && value > -4096)
    return call_failed(value, fmt::format("map {} bytes at {}", piece.size(), piece.start));
  if (static_cast<uint64_t>(value) !=
      piece.start.value) {  // before Linux 4.17 the address is only a hint
    (void)injection.call(SYS_munmap, {static_cast<uint64_t>(value), piece.size()});
    return fail(ErrorCode::kBusy, "something is already mapped at {}", piece.start);
  }
  return {};
}

void unmap_pieces(Injection& injection, std::span<const AddressRange> pieces) {
  for (const AddressRange& piece : pieces)
    (void)injection.call(SYS_munmap, {piece.start.value, piece.size()});
}

/// All pieces or none.
Result<void> map_in_target(Injection& injection, const RegionSpec& spec) {
  const auto pieces = pieces_of(spec);
  uint64_t offset = 0;
  for (size_t i = 0; i < pieces.size(); ++i) {
    auto mapped = map_piece(injection, spec, pieces[i], offset);
    if (!mapped) {
      if (mapped.error().code != ErrorCode::kTargetGone)
        unmap_pieces(injection, std::span(pieces).first(i));
      return mapped;
    }
    offset += pieces[i].size();
  }
  return {};
}

Result<RemoteMemory> map_file(Injection& injection, pid_t pid, const RegionSpec& spec) {
  SPILE_TRY_VOID(create_file(injection, pid, spec));
  SPILE_TRY(RemoteMemory region, prepare_file(injection, spec));
  SPILE_TRY_VOID(map_in_target(injection, spec));
  SPILE_TRY_VOID(injection.close_descriptor());
  return region;
}

Result<RemoteMemory> map_private(Injection& injection, const RegionSpec& spec) {
  SPILE_TRY_VOID(map_in_target(injection, spec));
  if (spec.kept_by_fork) {
    // A hit is not to wait for two megabytes of zeroes. Kernels without huge pages refuse, which is
    // as good.
    SPILE_TRY([[maybe_unused]] const int64_t ignored,
              injection.call(SYS_madvise, {spec.address.value, spec.size_bytes, MADV_NOHUGEPAGE}));
    return RemoteMemory{spec, Mapping(), Fd()};
  }
  SPILE_TRY(const int64_t value,
            injection.call(SYS_madvise, {spec.address.value, spec.size_bytes, MADV_WIPEONFORK}));
  if (value < 0) {
    (void)injection.call(SYS_munmap, {spec.address.value, spec.size_bytes});
    return call_failed(value, "have memory wiped in forked children");
  }
  return RemoteMemory{spec, Mapping(), Fd()};
}

void unmap_all(Injection& injection, std::span<const RemoteMemory> regions) {
  if (injection.descriptor() != kNoDescriptor) (void)injection.close_descriptor();
  for (const RemoteMemory& region : regions) {
    unmap_pieces(injection, pieces_of(region.spec));
  }
}

}  // namespace

Result<std::vector<RemoteMemory>> map_shared(StoppedProcess& process,
                                             std::span<const RegionSpec> specs) {
  for (const RegionSpec& spec : specs) SPILE_TRY_VOID(check_spec(spec));
  SPILE_TRY(Injection injection, Injection::begin(process));
  std::vector<RemoteMemory> regions;
  for (const RegionSpec& spec : specs) {
    auto region = spec.kind == RegionSpec::Kind::kPrivate
                      ? map_private(injection, spec)
                      : map_file(injection, process.target().pid(), spec);
    if (!region) {
      if (region.error().code != ErrorCode::kTargetGone) unmap_all(injection, regions);
      return forward(region, "map shared memory into process {}", process.target().pid());
    }
    regions.push_back(std::move(*region));
  }
  SPILE_TRY_VOID(injection.end());
  return regions;
}

Result<void> allocate_pages(RemoteMemory& region) {
  if (!region.file) return {};
  SPILE_TRY_VOID(os::allocate(region.file, region.spec.size_bytes));
  region.file.reset();
  return {};
}

Result<void> unmap(StoppedProcess& process, std::span<const AddressRange> ranges) {
  SPILE_TRY([[maybe_unused]] const size_t cleared, clear_rseq_into(process, ranges));
  const auto inside = threads_at(process, ranges);
  if (!inside.empty()) {
    return fail(ErrorCode::kUnsafe, "thread {} executes at {}, inside what is to be unmapped",
                process.threads()[inside.front().thread].tid, inside.front().address);
  }
  SPILE_TRY(Injection injection, Injection::begin(process));
  for (const AddressRange& range : ranges) {
    SPILE_TRY(const int64_t value, injection.call(SYS_munmap, {range.start.value, range.size()}));
    if (value < 0)
      return call_failed(value, fmt::format("unmap {} bytes at {}", range.size(), range.start));
  }
  return injection.end();
}

namespace {

Result<void> call_sigaction(Injection& injection,
                            int signal,
                            TargetAddr action,
                            TargetAddr former) {
  SPILE_TRY(const int64_t value,
            injection.call(SYS_rt_sigaction, {static_cast<uint64_t>(signal), action.value,
                                              former.value, kSigsetBytes}));
  if (value < 0) return call_failed(value, fmt::format("rt_sigaction of {}", ::strsignal(signal)));
  return {};
}

}  // namespace

Result<std::vector<abi::KernelSigaction>> signal_actions(StoppedProcess& process,
                                                         std::span<const int> signals,
                                                         TargetAddr scratch) {
  SPILE_TRY(Injection injection, Injection::begin(process));
  std::vector<abi::KernelSigaction> actions;
  for (const int signal : signals) {
    SPILE_TRY_VOID(call_sigaction(injection, signal, TargetAddr(0), scratch));
    SPILE_TRY(actions.emplace_back(), process.memory().read_value<abi::KernelSigaction>(scratch));
  }
  SPILE_TRY_VOID(injection.end());
  return actions;
}

Result<void> set_signal_action(StoppedProcess& process, int signal, TargetAddr action) {
  SPILE_TRY(Injection injection, Injection::begin(process));
  SPILE_TRY_VOID(call_sigaction(injection, signal, action, TargetAddr(0)));
  return injection.end();
}

Result<void> synchronize_cores(StoppedProcess& process) {
  SPILE_TRY(Injection injection, Injection::begin(process));
  for (uint64_t command : {MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED_SYNC_CORE,
                           MEMBARRIER_CMD_PRIVATE_EXPEDITED_SYNC_CORE}) {
    SPILE_TRY(const int64_t value, injection.call(SYS_membarrier, {command, 0, 0}));
    if (value < 0) return call_failed(value, "membarrier in the target");
  }
  return injection.end();
}

std::vector<LeftoverStub> find_leftover_stubs(const StoppedProcess& process) {
  std::vector<LeftoverStub> found;
  auto maps = os::read_maps(process.threads().empty() ? 0 : process.threads().front().tid);
  if (!maps) return found;
  for (const StubPlace& place : find_stub_places(*maps, process.memory())) {
    if (place.leftover_bytes == 0) continue;
    found.push_back({place.address, place.leftover_bytes,
                     inside_stub(process, place.address, place.leftover_bytes)});
  }
  return found;
}

Result<size_t> clean_leftover_stubs(StoppedProcess& process) {
  size_t wiped = 0;
  for (const LeftoverStub& stub : find_leftover_stubs(process)) {
    if (stub.running) continue;
    SPILE_TRY_VOID(process.memory().write(stub.address, std::vector<uint8_t>(stub.size_bytes, 0)));
    ++wiped;
  }
  return wiped;
}

}  // namespace spile::target
