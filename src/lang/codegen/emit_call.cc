// Loops of programs for the kernel: the body is a function that the kernel calls round by round, so
// that its verifier looks at it a few times at most, and not at every round.
//
//   program    r3 = its frame; bpf_loop(rounds, f, r3) or bpf_for_each_map_elem(map, f, r3)
//   function   r6 := the program's frame, where the variables of all of the clause are;
//              r0 = 0: go on, 1: the loop ends
//
// A function has a frame of its own for what a statement needs meanwhile, and r7 to r9. The context
// is in the program's frame. exit() and return set a word there; behind each loop it is looked at.
//
// Source: the kernel's bpf_loop and bpf_for_each_map_elem in include/uapi/linux/bpf.h.
#include <set>

#include "lang/codegen/emitter.h"

namespace spile::lang::codegen {

using bpf::Helper;
using bundle::MapRole;

Place Emitter::home_place(int slot) const {
  if (!in_function()) return {{}, slot};
  return {Location{true, Place::kHome, 0}, slot};
}

Reg Emitter::context(Reg scratch) {
  if (!in_function()) return Reg::r6;
  code_.load(8, scratch, Place::kHome, context_slot_);
  return scratch;
}

namespace {

/// Rounds that all loops of one run may make together: loops in each other could hold a CPU for
/// hours, and nothing else ends a program of the kernel.
constexpr int32_t kMaxAllRounds = 1 << 20;
/// Where they are counted, behind the word of which nothing is known.
constexpr int kRoundsAt = 8;

/// What the statements of a block, at any depth, do with variables.
struct VariableUse {
  std::set<int> changed, own;

  void of(const typed::Block& block) {
    own.insert(block.variables.begin(), block.variables.end());
    for (const typed::Stmt& stmt : block.statements) {
      if (stmt.kind == typed::StmtKind::kSetVariable) changed.insert(stmt.variable);
      if (stmt.expr != nullptr) of(*stmt.expr);
      for (const typed::ExprPtr& key : stmt.keys) of(*key);
      of(stmt.body);
      of(stmt.other);
    }
  }
  void of(const typed::Expr& expr) {
    if (expr.kind == typed::ExprKind::kModifyVariable) changed.insert(expr.variable);
    if (expr.block != nullptr) of(*expr.block);
    for (const typed::ExprPtr& arg : expr.args) of(*arg);
  }
};

}  // namespace

/// A word of which only we know that it is 0: a random number has 32 bits, and verifiers do not
/// know that.
void Emitter::make_opaque_zero() {
  opaque_ = frame_.allocate(16);
  code_.call(Helper::kGetPrandomU32);
  code_.alu_imm(bpf::kRsh, Reg::r0, 32);
  code_.mov(Reg::r1, Reg::r0);
  code_.alu_imm(bpf::kLsh, Reg::r1, 32);
  code_.alu(bpf::kOr, Reg::r0, Reg::r1);
  code_.store(8, Reg::r10, opaque_, Reg::r0);
  // A count from a constant would be another one in each round.
  code_.store(8, Reg::r10, opaque_ + kRoundsAt, Reg::r0);
}

/// The verifier looks at a body again as long as it knows something new: from `$i++` it would know
/// another constant in each round. So it is made to forget the numbers that the loop changes.
/// Clobbers r0 and r5.
void Emitter::forget_changed(const typed::Stmt& loop) {
  VariableUse use;
  use.of(loop.body);
  if (loop.expr != nullptr) use.of(*loop.expr);
  for (const int index : use.changed) {
    if (use.own.contains(index) || !clause_.variables[static_cast<size_t>(index)].type.is_number())
      continue;
    const Place place = variable(index);
    code_.load(8, Reg::r0, base_of(place, Reg::r0), place.offset);
    code_.load(8, Reg::r5, Place::kHome, opaque_);
    code_.alu(bpf::kXor, Reg::r0, Reg::r5);
    store(place, 8, Reg::r0);
  }
}

/// Returns its number. `home`: in which register it gets the program's frame; `body` may read the
/// others that it gets, and falls through to the next round.
int Emitter::function(const typed::Stmt& loop, Reg home, const std::function<void()>& body) {
  Code code = std::exchange(code_, Code());
  Frame frame = std::exchange(frame_, Frame());
  Frame* const outer_home = home_frame_;
  if (outer_home == nullptr) home_frame_ = &frame;
  const auto taken = std::exchange(taken_, {});
  std::vector<Loop> loops = std::exchange(loops_, {});
  const uint32_t below = std::exchange(below_, 0);
  const Label leave = std::exchange(leave_, code_.new_label());
  const Label next = code_.new_label(), stop = code_.new_label();
  loops_.push_back({next, stop});
  code_.mov(Place::kHome, home);
  const Label go = code_.new_label();
  code_.load(8, Reg::r0, Place::kHome, opaque_ + kRoundsAt);
  code_.alu_imm(bpf::kAdd, Reg::r0, 1);
  code_.store(8, Place::kHome, opaque_ + kRoundsAt, Reg::r0);
  code_.jump_if_imm(bpf::kJle, Reg::r0, kMaxAllRounds, go);
  bump(bundle::Counter::kLoopCut);
  code_.jump(leave_);
  code_.bind(go);
  forget_changed(loop);
  body();
  code_.bind(next);
  code_.mov_imm(Reg::r0, 0);
  code_.exit();
  code_.bind(leave_);
  store_imm(home_place(leaving_), 8, 1);
  code_.bind(stop);
  code_.mov_imm(Reg::r0, 1);
  code_.exit();
  auto finished = std::move(code_).finish();
  if (!finished && !fault_) fault_ = finished.error();
  functions_.push_back(finished ? std::move(*finished) : bpf::Program{});
  below_ = std::max(below, frame_.rounded_peak_bytes() + below_);
  leave_ = leave;
  loops_ = std::move(loops);
  taken_ = taken;
  home_frame_ = outer_home;
  frame_ = frame;
  code_ = std::move(code);
  return static_cast<int>(functions_.size()) - 1;
}

/// r1 is set.
void Emitter::call(Helper helper, int function) {
  code_.load_function(Reg::r2, function);
  code_.mov(Reg::r3, in_function() ? Place::kHome : Reg::r10);
  code_.mov_imm(Reg::r4, 0);
  code_.call(helper);
  const Place leaving = home_place(leaving_);
  code_.load(8, Reg::r1, base_of(leaving, Reg::r1), leaving.offset);
  code_.jump_if_imm(bpf::kJne, Reg::r1, 0, leave_);
}

/// The loop wants a round more than it may make.
void Emitter::refuse_round(Reg round) {
  Label go = code_.new_label();
  code_.jump_if_imm(bpf::kJne, round, kMaxOpenRounds, go);
  bump(bundle::Counter::kLoopCut);
  code_.jump(loops_.back().on_break);
  code_.bind(go);
}

void Emitter::call_while(const typed::Stmt& stmt) {
  const int body = function(stmt, Reg::r2, [&] {
    const int round = frame_.allocate(8);
    code_.store(8, Reg::r10, round, Reg::r1);
    branch(*stmt.expr, false, loops_.back().on_break);
    code_.load(8, Reg::r1, Reg::r10, round);
    refuse_round(Reg::r1);
    block(stmt.body);
  });
  code_.mov_imm(Reg::r1, kMaxOpenRounds + 1);
  call(Helper::kLoop, body);
}

void Emitter::call_range(const typed::Stmt& stmt) {
  FrameScope scope(frame_), home_scope(home());
  Label some = code_.new_label(), fits = code_.new_label(), done = code_.new_label();
  const int first = home().allocate(8);
  const int body = function(stmt, Reg::r2, [&] {
    refuse_round(Reg::r1);
    FrameScope variables(home());
    slots_[stmt.variable] = home().allocate(8);
    const Place begin = home_place(first);
    code_.load(8, Reg::r0, base_of(begin, Reg::r0), begin.offset);
    code_.alu(bpf::kAdd, Reg::r0, Reg::r1);
    store(variable(stmt.variable), 8, Reg::r0);
    declare(stmt.body, stmt.variable);
    statements(stmt.body);
  });
  const Place begin = home_place(first);
  if (stmt.keys.empty()) {
    code_.load_imm64(Reg::r0, static_cast<uint64_t>(stmt.first));
    store(begin, 8, Reg::r0);
    code_.load_imm64(Reg::r1, static_cast<uint64_t>(stmt.last) - static_cast<uint64_t>(stmt.first));
    return call(Helper::kLoop, body);
  }
  value(*stmt.keys[0]);
  store(begin, 8, Reg::r0);
  value(*stmt.keys[1]);
  code_.load(8, Reg::r2, base_of(begin, Reg::r2), begin.offset);
  code_.mov(Reg::r1, Reg::r0);
  code_.jump_if(bpf::kJsgt, Reg::r1, Reg::r2, some);
  code_.jump(done);
  code_.bind(some);
  code_.alu(bpf::kSub, Reg::r1, Reg::r2);
  code_.jump_if_imm(bpf::kJle, Reg::r1, kMaxOpenRounds, fits);
  code_.mov_imm(Reg::r1, kMaxOpenRounds + 1);
  code_.bind(fits);
  call(Helper::kLoop, body);
  code_.bind(done);
}

/// The function gets the map, the key, the value and the frame.
void Emitter::call_for_map(const typed::Stmt& stmt) {
  const typed::Map& map = script_map(stmt.map);
  const uint32_t key_bytes = storage_bytes(map.key);
  FrameScope home_scope(home());
  const int body = function(stmt, Reg::r4, [&] {
    FrameScope variables(home());
    if (stmt.variable >= 0) {
      const bool is_value = map.role == MapRole::kValue;
      slots_[stmt.variable] =
          home().allocate(key_bytes + (is_value ? storage_bytes(map.value) : 8));
      const Place element = variable(stmt.variable);
      copy({Location{true, Reg::r2, 0}, 0}, map.key, element, map.key, Fill::kPadded);
      if (is_value) {
        copy({Location{true, Reg::r3, 0}, 0}, map.value, element.at(key_bytes), map.value,
             Fill::kPadded);
      } else {
        aggregate_at(stmt.map, element, static_cast<uint64_t>(stmt.first));
        store(element.at(key_bytes), 8, Reg::r0);
      }
    }
    declare(stmt.body, stmt.variable);
    statements(stmt.body);
  });
  code_.load_map(Reg::r1, stmt.map);
  call(Helper::kForEachMapElem, body);
}

/// The program, then its functions; what loads the address of one holds how far away it is.
Result<bpf::Program> Emitter::put_together() {
  if (fault_) return std::unexpected(*fault_);
  SPILE_TRY(bpf::Program program, std::move(code_).finish());
  for (const bpf::Program& function : functions_) {
    starts_.push_back(static_cast<uint32_t>(program.size()));
    program.insert(program.end(), function.begin(), function.end());
  }
  if (program.size() > kMaxInsns)
    return fail(ErrorCode::kUnsupported, "more than {} instructions", kMaxInsns);
  constexpr uint8_t kLoadImm64 = bpf::kClassLd | bpf::kSizeDw | bpf::kModeImm;
  for (size_t at = 0; at < program.size(); ++at) {
    bpf::Insn& insn = program[at];
    if (insn.code == kLoadImm64 && insn.src() == bpf::kPseudoFunc)
      insn.imm = static_cast<int32_t>(starts_[static_cast<size_t>(insn.imm)]) -
                 static_cast<int32_t>(at) - 1;
  }
  return program;
}

}  // namespace spile::lang::codegen
