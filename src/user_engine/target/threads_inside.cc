#include "user_engine/target/threads_inside.h"

namespace spile::target {
namespace {

const AddressRange* range_of(std::span<const AddressRange> ranges, TargetAddr a) {
  for (const AddressRange& range : ranges) {
    if (range.contains(a)) return &range;
  }
  return nullptr;
}

bool touches(const RseqState& state, std::span<const AddressRange> ranges) {
  return state.descriptor != 0 &&
         (range_of(ranges, TargetAddr(state.descriptor)) != nullptr ||
          (state.length != 0 && range_of(ranges, TargetAddr(state.start)) != nullptr) ||
          (state.length != 0 && range_of(ranges, TargetAddr(state.abort)) != nullptr));
}

}  // namespace

std::vector<ThreadInside> threads_at(const StoppedProcess& process,
                                     std::span<const AddressRange> ranges) {
  std::vector<ThreadInside> found;
  for (size_t i = 0; i < process.threads().size(); ++i) {
    const StoppedThread& thread = process.threads()[i];
    const TargetAddr rip(thread.registers.rip);
    if (range_of(ranges, rip) != nullptr) {
      found.push_back({i, ThreadInside::How::kRip, rip});
    } else if (thread.will_restart() && range_of(ranges, rip - 2) != nullptr) {
      found.push_back({i, ThreadInside::How::kRestart, rip - 2});
    }
  }
  return found;
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
