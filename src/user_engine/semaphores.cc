#include "user_engine/semaphores.h"

#include <algorithm>
#include <cstring>
#include <set>

#include "elf/file.h"
#include "elf/usdt_notes.h"

namespace spile::user_engine {

using abi::SemaphoreEntry;
using abi::SemaphoreState;

namespace {

template <typename T>
Result<void> put(const os::ProcessMemory& memory, TargetAddr at, T value) {
  return memory.write(at, {reinterpret_cast<const uint8_t*>(&value), sizeof value});
}

/// The state goes last, so that it speaks of values that are there.
void set_entry(SemaphoreEntry& entry, SemaphoreState state, uint16_t before, uint16_t after) {
  entry.before = before;
  entry.after = after;
  __atomic_store_n(reinterpret_cast<uint32_t*>(&entry.state), static_cast<uint32_t>(state),
                   __ATOMIC_RELEASE);
}

/// The same through the target's memory: state and values lie in one word pair, written at once.
Result<void> note(const os::ProcessMemory& memory,
                  std::optional<TargetAddr> journal,
                  size_t index,
                  SemaphoreState state,
                  uint16_t before,
                  uint16_t after) {
  if (!journal) return {};
  struct Word {
    SemaphoreState state;
    uint16_t before, after;
  };
  static_assert(offsetof(SemaphoreEntry, state) + sizeof(Word) == sizeof(SemaphoreEntry));
  return put(memory,
             *journal + offsetof(abi::Journal, semaphores) + index * sizeof(SemaphoreEntry) +
                 offsetof(SemaphoreEntry, state),
             Word{state, before, after});
}

Semaphore copy_of(const SemaphoreEntry& entry) {
  return {TargetAddr(entry.address), TargetAddr(entry.site), entry.state, entry.before,
          entry.after};
}

/// The counters that the notes of a module's file name, as addresses of the target.
std::set<TargetAddr> counters_of(const target::Module& module) {
  std::set<TargetAddr> counters;
  auto file = elf::File::open(module.host_path);
  if (!file) return counters;
  auto notes = elf::read_usdt_notes(*file);
  if (!notes) return counters;
  for (const elf::UsdtNote& n : *notes) {
    if (n.semaphore.value != 0) counters.insert(module.bias.to_target(n.semaphore));
  }
  return counters;
}

}  // namespace

Result<void> check_semaphores(std::span<const Semaphore> semaphores, const target::Target& target) {
  if (semaphores.size() > abi::kMaxSemaphores)
    return fail(ErrorCode::kUnsupported,
                "static tracepoints with {} counters (semaphores) at once, where {} can be kept "
                "account of: name fewer",
                semaphores.size(), abi::kMaxSemaphores);
  for (const Semaphore& semaphore : semaphores) {
    if (!target.memory().read_value<uint16_t>(semaphore.address))
      return fail(ErrorCode::kCorrupt,
                  "process {} has no memory at {}, where a note says a semaphore is", target.pid(),
                  semaphore.address);
  }
  return {};
}

void list_semaphores(std::span<const Semaphore> semaphores, abi::Journal& journal, uint32_t first) {
  SPILE_CHECK(first + semaphores.size() <= abi::kMaxSemaphores);
  for (size_t i = 0; i < semaphores.size(); i++)
    journal.semaphores[first + i] = {semaphores[i].address.value, semaphores[i].site.value,
                                     SemaphoreState::kListed, 0, 0};
  journal.semaphore_count = first + static_cast<uint32_t>(semaphores.size());
}

Result<void> raise_semaphores(const os::ProcessMemory& memory,
                              abi::Journal& journal,
                              uint32_t first) {
  for (uint32_t i = first; i < std::min(journal.semaphore_count, abi::kMaxSemaphores); i++) {
    SemaphoreEntry& entry = journal.semaphores[i];
    auto now = memory.read_value<uint16_t>(TargetAddr(entry.address));
    if (!now) return forward(now, "read the semaphore at {:#x}", entry.address);
    if (*now == UINT16_MAX)
      return fail(ErrorCode::kUnsupported, "the semaphore at {:#x} stands at its limit",
                  entry.address);
    auto raised = static_cast<uint16_t>(*now + 1);
    set_entry(entry, SemaphoreState::kRaising, *now, raised);
    auto written = put(memory, TargetAddr(entry.address), raised);
    if (!written) return forward(written, "raise the semaphore at {:#x}", entry.address);
    set_entry(entry, SemaphoreState::kRaised, *now, raised);
  }
  return {};
}

std::optional<uint16_t> lowered_value(const Semaphore& semaphore, uint16_t now) {
  bool is_ours = false;
  switch (semaphore.state) {
    case SemaphoreState::kListed:
    case SemaphoreState::kLowered: break;
    case SemaphoreState::kRaising: is_ours = now == semaphore.after; break;
    case SemaphoreState::kRaised: is_ours = true; break;
    case SemaphoreState::kLowering: is_ours = now == semaphore.before; break;
  }
  if (!is_ours || now == 0) return std::nullopt;
  return static_cast<uint16_t>(now - 1);
}

Result<void> lower_semaphores(const os::ProcessMemory& memory,
                              std::span<const Semaphore> semaphores,
                              std::optional<TargetAddr> journal,
                              const std::function<bool(TargetAddr)>& is_patched) {
  for (size_t i = 0; i < semaphores.size(); i++) {
    const Semaphore& semaphore = semaphores[i];
    if (!is_patched(semaphore.site)) continue;
    auto now = memory.read_value<uint16_t>(semaphore.address);
    auto lowered = now ? lowered_value(semaphore, *now) : std::nullopt;
    if (!lowered) continue;
    SPILE_TRY_VOID(note(memory, journal, i, SemaphoreState::kLowering, *now, *lowered));
    auto written = put(memory, semaphore.address, *lowered);
    if (!written) return forward(written, "lower the semaphore at {}", semaphore.address);
    SPILE_TRY_VOID(note(memory, journal, i, SemaphoreState::kLowered, *now, *lowered));
  }
  return {};
}

std::vector<Semaphore> listed_semaphores(const abi::Journal& journal) {
  std::vector<Semaphore> semaphores;
  for (uint32_t i = 0; i < std::min(journal.semaphore_count, abi::kMaxSemaphores); i++)
    semaphores.push_back(copy_of(journal.semaphores[i]));
  return semaphores;
}

std::vector<Semaphore> believed_semaphores(const target::Target& target,
                                           const abi::Journal& journal) {
  std::vector<Semaphore> listed = listed_semaphores(journal);
  if (listed.empty()) return listed;
  std::set<TargetAddr> counters;
  if (auto modules = target.modules()) {
    for (const target::Module& module : *modules) counters.merge(counters_of(module));
  }
  // Their places in the list are their places in the journal.
  for (Semaphore& semaphore : listed) {
    if (!counters.contains(semaphore.address)) semaphore.state = SemaphoreState::kLowered;
  }
  return listed;
}

}  // namespace spile::user_engine
