#include "user_engine/target/threads_inside.h"

#include <algorithm>
#include <cstring>
#include <optional>

namespace spile::target {
namespace {

constexpr uint64_t kRedZone = 128;
constexpr size_t kChunk = 64 << 10;

const AddressRange* range_of(std::span<const AddressRange> ranges, TargetAddr a) {
  for (const AddressRange& range : ranges) {
    if (range.contains(a)) return &range;
  }
  return nullptr;
}

/// The mapped part of the stack that holds `sp`; nullopt when `sp` points nowhere.
std::optional<AddressRange> stack_of(const std::vector<os::MapEntry>& maps, TargetAddr sp) {
  for (const os::MapEntry& map : maps) {
    if (map.contains(sp)) return AddressRange{sp, map.end};
  }
  return std::nullopt;
}

/// A stack pointer may stand at the very end of a mapping (empty stack) with the red zone below it.
std::optional<AddressRange> range_to_scan(const std::vector<os::MapEntry>& maps, uint64_t rsp) {
  auto stack = stack_of(maps, TargetAddr(rsp & ~7ull));
  const TargetAddr lowest((rsp - kRedZone) & ~7ull);
  auto below = stack_of(maps, lowest);
  if (below) below->end = stack ? stack->end : below->end;
  return below ? below : stack;
}

void scan_words(size_t thread, TargetAddr at, std::span<const uint8_t> bytes,
                const std::function<bool(TargetAddr)>& points_there, StackScan& scan) {
  for (size_t i = 0; i + 8 <= bytes.size(); i += 8) {
    uint64_t word;
    std::memcpy(&word, bytes.data() + i, sizeof word);
    if (!points_there(TargetAddr(word))) continue;
    scan.found.push_back({thread, ThreadInside::How::kStackWord, TargetAddr(word), at + i});
  }
}

/// False when not all of it could be read.
bool scan_range(const os::ProcessMemory& memory, size_t thread, AddressRange range,
                const std::function<bool(TargetAddr)>& points_there, StackScan& scan) {
  std::vector<uint8_t> bytes(kChunk);
  for (TargetAddr at = range.start; at < range.end; at += kChunk) {
    std::span<uint8_t> chunk(bytes.data(), std::min<uint64_t>(kChunk, static_cast<uint64_t>(range.end - at)));
    const size_t got = memory.read_some(at, chunk);
    scan_words(thread, at, chunk.first(got & ~size_t{7}), points_there, scan);
    if (got < chunk.size()) return false;
  }
  return true;
}

bool touches(const RseqState& state, std::span<const AddressRange> ranges) {
  return state.descriptor != 0 && (range_of(ranges, TargetAddr(state.descriptor)) != nullptr ||
                                   (state.length != 0 && range_of(ranges, TargetAddr(state.start)) != nullptr) ||
                                   (state.length != 0 && range_of(ranges, TargetAddr(state.abort)) != nullptr));
}

}  // namespace

std::vector<ThreadInside> threads_at(const StoppedProcess& process, std::span<const AddressRange> ranges) {
  std::vector<ThreadInside> found;
  for (size_t i = 0; i < process.threads().size(); ++i) {
    const StoppedThread& thread = process.threads()[i];
    const TargetAddr rip(thread.registers.rip);
    if (range_of(ranges, rip) != nullptr) {
      found.push_back({i, ThreadInside::How::kRip, rip, {}});
    } else if (thread.will_restart() && range_of(ranges, rip - 2) != nullptr) {
      found.push_back({i, ThreadInside::How::kRestart, rip - 2, {}});
    }
  }
  return found;
}

StackScan scan_stacks(const StoppedProcess& process, const std::function<bool(TargetAddr)>& points_there,
                      uint64_t limit_bytes) {
  StackScan scan;
  auto maps = os::read_maps(process.threads().empty() ? 0 : process.threads().front().tid);
  for (size_t i = 0; i < process.threads().size(); ++i) {
    auto range = maps ? range_to_scan(*maps, process.threads()[i].registers.rsp) : std::nullopt;
    if (!range) {
      scan.incomplete.push_back(i);
      continue;
    }
    const bool whole = range->size() <= limit_bytes;
    if (!whole) range->end = range->start + limit_bytes;
    if (!scan_range(process.memory(), i, *range, points_there, scan) || !whole) scan.incomplete.push_back(i);
  }
  return scan;
}

StackScan scan_stacks(const StoppedProcess& process, std::span<const AddressRange> ranges, uint64_t limit_bytes) {
  return scan_stacks(process, [&](TargetAddr a) { return range_of(ranges, a) != nullptr; }, limit_bytes);
}

Result<size_t> clear_rseq_into(StoppedProcess& process, std::span<const AddressRange> ranges) {
  size_t cleared = 0;
  for (size_t i = 0; i < process.threads().size(); ++i) {
    auto state = process.rseq(i);
    if (!state) {
      if (state.error().code == ErrorCode::kTargetGone) return forward(state);
      continue;  // before Linux 5.13 nobody could have used our sequences either
    }
    if (!touches(*state, ranges)) continue;
    os::Registers registers = process.threads()[i].registers;
    if (state->inside(registers.rip)) {
      registers.rip = state->abort;
      SPILE_TRY_VOID(process.set_registers(i, registers));
    }
    SPILE_TRY_VOID(process.clear_rseq(i, *state));
    ++cleared;
  }
  return cleared;
}

}  // namespace spile::target
