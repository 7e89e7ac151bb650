// argN and duration at a return: what the entry of the very same call notes.
//
//   entry program    entries[{stack slot of the return address, process, probe}] = {argN ..., time}
//   return program   the same key: looks it up, takes it out, runs the clause
//
// The slot says which call it is: as long as a call is under way its slot belongs to it, whatever
// thread runs it. A call that ends without a return (an exception, longjmp) leaves its entry behind
// until the next call of the function at the same slot. Where the map is full at the entry, that is
// counted, and the return is not told; nor is that of a call whose entry came before the probes.
#include "lang/codegen/emitter.h"

namespace spile::lang::codegen {

using bpf::Helper;
using bundle::Counter;
using typed::ExprKind;

namespace {

constexpr uint32_t kKeyBytes = 16, kProcessAt = 8, kProbeAt = 12;
constexpr uint32_t kEntriesKept = 65536;
constexpr int32_t kReturnAddressBytes = 8;

}  // namespace

std::optional<Session> session_of(const typed::Clause& clause) {
  Session session;
  any_expr(clause.body, [&](const typed::Expr& expr) {
    if (expr.kind == ExprKind::kEntryArgument)
      session.arguments.insert(static_cast<uint32_t>(expr.offset));
    session.wants_time |= expr.kind == ExprKind::kDuration;
    return false;
  });
  if (session.arguments.empty() && !session.wants_time) return std::nullopt;
  return session;
}

bundle::MapSpec Session::spec() const {
  return {.kind = bundle::MapKind::kCalls,
          .key_size = kKeyBytes,
          .value_size = value_bytes(),
          .max_entries = kEntriesKept};
}

/// From 1: the key's second word is never 0, even where the process is not known.
int32_t Emitter::number_of(int probe) const {
  return draft_.cookie_of(probe) + 1;
}

/// `popped`: bytes that the stack pointer is above the slot.
int Emitter::session_key(int32_t popped) {
  int key = frame_.allocate(kKeyBytes);
  code_.load(8, Reg::r1, Reg::r6, bpf::x86_64_regs::kSp);
  if (popped != 0) code_.alu_imm(bpf::kAdd, Reg::r1, -popped);
  code_.store(8, Reg::r10, key, Reg::r1);
  builtin(typed::Builtin::kPid);
  code_.store(4, Reg::r10, key + static_cast<int>(kProcessAt), Reg::r0);
  if (clause_.probes.size() == 1) {
    store_imm({{}, key + static_cast<int>(kProbeAt)}, 4, number_of(clause_.probes.front()));
  } else {
    probe_number();
    code_.alu_imm(bpf::kAdd, Reg::r0, 1);
    code_.store(4, Reg::r10, key + static_cast<int>(kProbeAt), Reg::r0);
  }
  return key;
}

/// The time is read last, so that less of ours is in the difference.
Result<bpf::Program> Emitter::run_entry() {
  leave_ = code_.new_label();
  counter_key_ = frame_.allocate(8);
  code_.mov(Reg::r6, Reg::r1);
  filter_pids();
  int value = frame_.allocate(session_->value_bytes()), at = value;
  for (uint32_t offset : session_->arguments) {
    code_.load(8, Reg::r1, Reg::r6, static_cast<int>(offset));
    code_.store(8, Reg::r10, at, Reg::r1);
    at += 8;
  }
  int key = session_key(0);
  if (session_->wants_time) {
    code_.call(Helper::kKtimeGetNs);
    code_.store(8, Reg::r10, at, Reg::r0);
  }
  int map = draft_.entries(clause_, *session_);
  map_arguments(map, {{}, key});
  address_of({{}, value}, Reg::r3);
  code_.mov_imm(Reg::r4, bpf::kUpdateAny);
  code_.call(Helper::kMapUpdateElem);
  code_.jump_if_imm(bpf::kJeq, Reg::r0, 0, leave_);
  bump(Counter::kMapFull);
  code_.bind(leave_);
  code_.mov_imm(Reg::r0, 0);
  code_.exit();
  return std::move(code_).finish();
}

/// At the beginning of a return program: entry_slots_ are filled, or the program ends.
void Emitter::take_entry() {
  entry_slots_ = frame_.allocate(session_->value_bytes());
  const int time = entry_slots_ + static_cast<int>(8 * session_->arguments.size());
  if (session_->wants_time) {
    code_.call(Helper::kKtimeGetNs);
    code_.store(8, Reg::r10, time, Reg::r0);
  }
  FrameScope scope(frame_);
  int key = session_key(kReturnAddressBytes);
  int map = draft_.entries(clause_, *session_);
  lookup(map, {{}, key});
  code_.jump_if_imm(bpf::kJeq, Reg::r0, 0, leave_);
  int from = 0;
  for (size_t i = 0; i < session_->arguments.size(); ++i, from += 8) {
    code_.load(8, Reg::r1, Reg::r0, from);
    code_.store(8, Reg::r10, entry_slots_ + from, Reg::r1);
  }
  if (session_->wants_time) {
    code_.load(8, Reg::r2, Reg::r0, from);
    code_.load(8, Reg::r1, Reg::r10, time);
    code_.alu(bpf::kSub, Reg::r1, Reg::r2);
    code_.store(8, Reg::r10, time, Reg::r1);
  }
  map_arguments(map, {{}, key});
  code_.call(Helper::kMapDeleteElem);
}

int Emitter::entry_slot(const Expr& expr) const {
  const auto& arguments = session_->arguments;
  const auto it = expr.kind == ExprKind::kDuration ? arguments.end() : arguments.find(expr.offset);
  return entry_slots_ + 8 * static_cast<int>(std::distance(arguments.begin(), it));
}

}  // namespace spile::lang::codegen
