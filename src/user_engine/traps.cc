#include "user_engine/traps.h"

#include <signal.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <thread>

#include "abi/trap.h"
#include "os/process.h"
#include "user_engine/target/inject.h"

namespace spile::user_engine {

using target::AddressRange;
using target::StoppedProcess;
using target::Target;

namespace {

constexpr uint64_t kTrapBit = uint64_t{1} << (SIGTRAP - 1);
/// SIGKILL and SIGSTOP cannot be blocked.
constexpr uint64_t kNeverBlocked = uint64_t{1} << (SIGKILL - 1) | uint64_t{1} << (SIGSTOP - 1);
constexpr int kLooks = 4;
constexpr auto kBetweenLooks = std::chrono::milliseconds(2);

/// Where every signal is blocked, also those that programs cannot block through the C library, a
/// thread is in our handler, or in the C library's own code for a moment.
bool blocks_trap(const os::Status& status) {
  const bool is_moment = (status.blocked | kNeverBlocked) == ~uint64_t{0};
  return (status.blocked & kTrapBit) != 0 && !is_moment;
}

/// What holds for the process as a whole.
std::optional<std::string> refused_by(const os::Status& status) {
  if ((status.caught & kTrapBit) != 0) return "the program has a handler of its own for SIGTRAP";
  if ((status.ignored & kTrapBit) != 0)
    return "the program ignores SIGTRAP, and the kernel kills it then";
  if (status.innermost_tid == 1) return "it is the first process of its pid namespace";
  return std::nullopt;
}

std::optional<std::string> refused_by_thread(pid_t tid, const os::Status& status) {
  if (status.seccomp != 0) return "a seccomp filter may forbid the return from a signal handler";
  if (blocks_trap(status))
    return fmt::format("thread {} ({}) blocks SIGTRAP, and the kernel kills the process then", tid,
                       status.name);
  return std::nullopt;
}

std::optional<std::string> look_once(const Target& target) {
  auto tids = os::list_threads(target.pid());
  if (!tids) return std::nullopt;  // gone: whoever comes next says so
  for (pid_t tid : *tids) {
    auto status = os::read_status(tid);
    if (!status || status->state == 'Z' || status->state == 'X') continue;
    if (auto why = refused_by(*status)) return why;
    if (auto why = refused_by_thread(tid, *status)) return why;
  }
  return std::nullopt;
}

/// The header of a trap page at the start of a mapping.
std::optional<abi::TrapHeader> trap_header(const Target& target, const os::MapEntry& map) {
  auto header = target.memory().read_value<abi::TrapHeader>(map.start);
  if (!header || header->magic != abi::kTrapMagic || header->version != abi::kTrapVersion)
    return std::nullopt;
  const uint64_t bytes = abi::kTrapTableOffset + uint64_t{header->slots} * sizeof(abi::TrapEntry);
  if (header->slots > abi::kMaxTrapSlots || bytes > map.size()) return std::nullopt;
  return *header;
}

}  // namespace

std::optional<std::string> why_no_traps(const Target& target) {
  std::optional<std::string> why;
  for (int i = 0; i < kLooks; i++) {
    why = look_once(target);
    if (!why) return why;
    std::this_thread::sleep_for(kBetweenLooks);
  }
  return why;
}

Result<void> check_traps_possible(const StoppedProcess& process) {
  if (auto why = look_once(process.target())) return fail(ErrorCode::kBusy, "{}", *why);
  return {};
}

namespace {

/// A handler that runs with SIGTRAP blocked and calls what is probed would kill the process.
Result<void> check_handlers(StoppedProcess& process, TargetAddr scratch) {
  SPILE_TRY(auto status, os::read_status(process.threads().front().tid));
  std::vector<int> caught;
  for (int signal = 1; signal <= 64; signal++) {
    if ((status.caught >> (signal - 1) & 1) != 0) caught.push_back(signal);
  }
  SPILE_TRY(auto actions, target::signal_actions(process, caught, scratch));
  for (size_t i = 0; i < caught.size(); i++) {
    if ((actions[i].mask & kTrapBit) == 0) continue;
    return fail(ErrorCode::kBusy,
                "the handler of signal {} ({}) blocks SIGTRAP while it runs, and the kernel kills "
                "the process then",
                caught[i], ::strsignal(caught[i]));
  }
  return {};
}

}  // namespace

Result<void> take_sigtrap(StoppedProcess& process, TargetAddr page, TargetAddr scratch) {
  SPILE_TRY_VOID(check_traps_possible(process));
  SPILE_TRY_VOID(check_handlers(process, scratch));
  return target::set_signal_action(process, SIGTRAP, page + abi::kTrapActionOffset);
}

Result<void> give_back_sigtrap(StoppedProcess& process,
                               std::span<const AddressRange> code,
                               std::optional<TargetAddr> scratch) {
  if (process.threads().empty()) return {};
  auto status = os::read_status(process.threads().front().tid);
  if (!status || (status->caught & kTrapBit) == 0) return {};
  if (!scratch)
    return fail(ErrorCode::kInternal,
                "SIGTRAP has a handler, and there is no memory of ours to ask whose it is");
  constexpr int kSignals[] = {SIGTRAP};
  SPILE_TRY(auto now, target::signal_actions(process, kSignals, *scratch));
  const bool is_ours = std::ranges::any_of(
      code, [&](const AddressRange& range) { return range.contains(TargetAddr(now[0].handler)); });
  if (!is_ours) return {};
  const std::vector<uint8_t> zeroes(sizeof(abi::KernelSigaction));
  SPILE_TRY_VOID(process.memory().write(*scratch, zeroes));
  return target::set_signal_action(process, SIGTRAP, *scratch);
}

std::vector<size_t> threads_trapping(const StoppedProcess& process,
                                     const std::set<TargetAddr>& sites) {
  std::vector<size_t> found;
  for (size_t i = 0; i < process.threads().size() && !sites.empty(); i++) {
    const target::StoppedThread& thread = process.threads()[i];
    if (!thread.in_user_code() || !sites.contains(TargetAddr(thread.registers.rip - 1))) continue;
    auto status = os::read_status(thread.tid);
    if (!status || (status->pending & ~status->blocked & kTrapBit) != 0) found.push_back(i);
  }
  return found;
}

std::vector<ListedTrap> listed_traps(const Target& target, const std::vector<os::MapEntry>& maps) {
  std::vector<ListedTrap> sites;
  for (const os::MapEntry& map : target::our_mappings(maps)) {
    if (!map.exec || map.write || map.offset != 0) continue;
    auto header = trap_header(target, map);
    if (!header) continue;
    std::vector<uint8_t> table(header->slots * sizeof(abi::TrapEntry));
    if (!target.memory().read(map.start + abi::kTrapTableOffset, table)) continue;
    for (size_t at = 0; at < table.size(); at += sizeof(abi::TrapEntry)) {
      abi::TrapEntry entry;
      std::memcpy(&entry, &table[at], sizeof entry);
      if (entry.site != 0) sites.push_back({TargetAddr(entry.site), entry.original});
    }
  }
  return sites;
}

std::optional<std::string> TrapWatch::look(const Target& target) {
  auto tids = os::list_threads(target.pid());
  if (!tids) return std::nullopt;
  std::set<pid_t> blocking;
  for (pid_t tid : *tids) {
    auto status = os::read_status(tid);
    if (!status || !status->has_memory) continue;
    if ((status->caught & kTrapBit) == 0) return "the program has taken SIGTRAP's handler away";
    if (!blocks_trap(*status)) continue;
    if (blocking_.contains(tid)) return fmt::format("thread {} blocks SIGTRAP", tid);
    blocking.insert(tid);
  }
  blocking_ = std::move(blocking);
  return std::nullopt;
}

}  // namespace spile::user_engine
