#include "lang/codegen/emitter.h"

#include <algorithm>

namespace spile::lang::codegen {

using bpf::Helper;
using typed::ExprKind;

namespace {

/// Whether the program needs r1 as it came. Leaving r6 alone spares the user engine a register to
/// save.
bool uses_context(const typed::Clause& clause) {
  if (clause.context.kind == bundle::ContextKind::kNone) return false;
  if (session_of(clause)) return true;
  return any_expr(clause.body, [](const typed::Expr& expr) {
    bool is_cookie =
        expr.builtin == typed::Builtin::kProbe || expr.builtin == typed::Builtin::kFunc;
    return expr.kind == ExprKind::kContext || expr.kind == ExprKind::kContextString ||
           expr.kind == ExprKind::kContextBytes || expr.kind == ExprKind::kContextDataLoc ||
           expr.kind == ExprKind::kStack || expr.kind == ExprKind::kOverride ||
           (expr.kind == ExprKind::kBuiltin && is_cookie);
  });
}

}  // namespace

bool Emitter::uses_task() const {
  return any_expr(clause_.body, [](const typed::Expr& expr) {
    return expr.kind == ExprKind::kBuiltin && expr.builtin == typed::Builtin::kCurtask;
  });
}

Emitter::Held::~Held() {
  if (emitter_ == nullptr || !location_.in_register) return;
  emitter_->taken_[static_cast<size_t>(location_.reg) - static_cast<size_t>(Reg::r7)] = false;
}

Emitter::Held Emitter::hold(Reg from) {
  Location location;
  for (size_t i = 0; i < taken_.size() && !location.in_register; ++i) {
    if (taken_[i]) continue;
    taken_[i] = true;
    location.in_register = true;
    location.reg = static_cast<Reg>(static_cast<size_t>(Reg::r7) + i);
  }
  if (!location.in_register) location.slot = frame_.allocate(8);
  put(location, from);
  return {*this, location};
}

void Emitter::get(const Location& location, Reg dst) {
  if (location.in_register) {
    code_.mov(dst, location.reg);
  } else {
    code_.load(8, dst, Reg::r10, location.slot);
  }
}

void Emitter::put(const Location& location, Reg src) {
  if (location.in_register) {
    code_.mov(location.reg, src);
  } else {
    code_.store(8, Reg::r10, location.slot, src);
  }
}

void Emitter::bump(bundle::Counter counter) {
  Label skip = code_.new_label();
  int map = draft_.counters();
  const Place key = home_place(counter_key_);
  store_imm(key, 4, static_cast<int32_t>(counter));
  map_arguments(map, key);
  code_.call(Helper::kMapLookupElem);
  code_.jump_if_imm(bpf::kJeq, Reg::r0, 0, skip);
  code_.mov_imm(Reg::r1, 1);
  code_.atomic(bpf::kAtomicAdd, Reg::r0, 0, Reg::r1);
  code_.bind(skip);
}

void Emitter::filter_pids() {
  using bundle::ProbeKind;
  const auto& pids = draft_.options().pid_filter;
  ProbeKind kind = clause_.context.probe;
  // The other counters and watchpoints are set up for these processes alone; an iterator is not
  // called by anybody.
  bool is_filtered = kind == ProbeKind::kKprobe || kind == ProbeKind::kKretprobe ||
                     kind == ProbeKind::kTracepoint || kind == ProbeKind::kProfile ||
                     kind == ProbeKind::kRawTracepoint || kind == ProbeKind::kFentry ||
                     kind == ProbeKind::kFexit;
  if (pids.empty() || !is_filtered) return;
  Label go = code_.new_label();
  builtin(typed::Builtin::kPid);
  for (pid_t pid : pids) code_.jump_if_imm(bpf::kJeq, Reg::r0, pid, go);
  code_.jump(leave_);
  code_.bind(go);
}

/// At the end the kernel calls an iterator's program once more, without an object. The object is
/// the context's second word, behind the iterator's own (struct bpf_iter__NAME).
void Emitter::skip_end_of_iteration() {
  constexpr int kObjectAt = 8;
  const bool has_object = clause_.context.probe == bundle::ProbeKind::kIter &&
                          clause_.context.size_bytes >= kObjectAt + 8;
  if (!has_object) return;
  code_.load(8, Reg::r2, Reg::r1, kObjectAt);
  code_.jump_if_imm(bpf::kJeq, Reg::r2, 0, leave_);
}

void Emitter::prologue() {
  leave_ = code_.new_label();
  counter_key_ = frame_.allocate(8);
  using bundle::ProbeKind;
  const ProbeKind kind = clause_.context.probe;
  const bool is_user =
      kind == ProbeKind::kUprobe || kind == ProbeKind::kUretprobe || kind == ProbeKind::kUsdt;
  reads_kernel_ = !is_user || uses_task();
  slots_.assign(clause_.variables.size(), 0);
  if (uses_context(clause_)) code_.mov(Reg::r6, Reg::r1);
  skip_end_of_iteration();
  filter_pids();
  has_loops_ = any_loop(clause_.body, kFewRounds);
  if (has_loops_) draft_.note_loops();
  if (calls_loops()) {
    leaving_ = frame_.allocate(8);
    store_imm({{}, leaving_}, 8, 0);
    make_opaque_zero();
    context_slot_ = frame_.allocate(8);
    if (uses_context(clause_)) store({{}, context_slot_}, 8, Reg::r6);
  }
  if (session_) take_entry();
  if (clause_.context.probe == ProbeKind::kTest) {
    result_slot_ = frame_.allocate(8);
    store_imm({{}, *result_slot_}, 8, 0);
  }
}

Result<bpf::Program> Emitter::run() {
  prologue();
  block(clause_.body);
  code_.bind(leave_);
  if (result_slot_) {
    code_.load(8, Reg::r0, Reg::r10, *result_slot_);
  } else {
    code_.mov_imm(Reg::r0, 0);
  }
  code_.exit();
  if (is_too_long()) return fail(ErrorCode::kUnsupported, "more than {} instructions", kMaxInsns);
  const uint32_t peak =
      functions_.empty() ? frame_.peak_bytes() : frame_.rounded_peak_bytes() + below_;
  if (peak > Frame::kLimitBytes) {
    return fail(ErrorCode::kInvalid, "{} bytes of stack are needed, eBPF has {}", peak,
                Frame::kLimitBytes);
  }
  return put_together();
}

std::vector<const typed::Expr*> Emitter::pointers(const std::vector<ExprPtr>& exprs, size_t from) {
  std::vector<const Expr*> result;
  for (size_t i = from; i < exprs.size(); ++i) result.push_back(exprs[i].get());
  return result;
}

}  // namespace spile::lang::codegen
