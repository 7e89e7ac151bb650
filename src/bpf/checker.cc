// The walk over all paths. The rules for memory are in check_memory.cc, for calls in check_call.cc;
// what a state is and how two of them meet in check_state.cc; what is known about numbers in
// scalar_range.cc.
//
// Where paths meet (CfgNode::is_merge) the states that were walked from there are kept. A new one
// that an old one contains is dropped: whatever it could do has been looked at. Up to
// CheckLimits::states_kept are walked apart, so that what a program learned on one path (a
// constant, a record it holds) stays known; the next is joined with the last, and at loop heads
// widened, so that the number of walks from each place is bounded whatever the program does.
#include "bpf/checker.h"

#include <algorithm>
#include <limits>

#include "bpf/cfg.h"
#include "bpf/check_call.h"
#include "bpf/check_facts.h"
#include "bpf/check_memory.h"
#include "bpf/check_state.h"
#include "bpf/encoding.h"

namespace spile::bpf {

namespace {

/// Where states cannot be joined (they hold different records) more are kept, up to this.
constexpr size_t kMaxStates = 64;
/// Once so many states are kept in all, each place keeps only one: bounds memory to some 100 MB.
constexpr size_t kManyStates = 8192;
/// After so many joins at one place numbers that still change are given up.
constexpr int kMaxJoins = 64;
/// How far a pointer may be from its object (the kernel's BPF_MAX_VAR_OFF).
constexpr int64_t kMaxPointerOffset = int64_t{1} << 29;

struct KeptState {
  CheckState state;
  int joins = 0;
};

/// The numbers that the program compares with or starts from.
std::vector<uint64_t> constants(const Program& program, const Cfg& cfg) {
  std::vector<uint64_t> numbers;
  if (cfg.back_edges.empty()) return numbers;
  for (const Insn& insn : program) {
    bool is_move = is_alu(insn) && insn_op(insn) == kMov;
    if ((is_move || is_conditional_jump(insn)) && !uses_src_reg(insn)) {
      numbers.push_back(static_cast<uint64_t>(int64_t{insn.imm}));
    }
  }
  return numbers;
}

class Walk {
 public:
  Walk(const Program& program, const CheckEnv& env, const Cfg& cfg, FactCollector& facts)
      : program_(program),
        env_(env),
        cfg_(cfg),
        facts_(facts),
        memory_(env, facts),
        calls_(env, facts, memory_),
        thresholds_(Thresholds::around(constants(program, cfg))) {}

  Result<void> run();

 private:
  struct Point {
    uint32_t at = 0;
    CheckState state;
  };

  Result<void> walk_from(Point point);
  Result<bool> arrive(Point& point);
  Result<bool> keep(uint32_t at, std::vector<KeptState>& kept, CheckState& state);
  /// True: `point` is at the next instruction. False: the path ended.
  Result<bool> step(Point& point);
  Result<bool> step_jump(Point& point, const Insn& insn);
  Result<bool> go(Point& point, uint32_t to);

  Result<void> load_immediate(CheckState& state, uint32_t at, const Insn& insn);
  Result<void> alu(CheckState& state, uint32_t at, const Insn& insn);
  Result<void> move(CheckState& state, uint32_t at, const Insn& insn);
  Result<void> pointer_arithmetic(CheckState& state,
                                  uint32_t at,
                                  const Insn& insn,
                                  const RegState& operand);
  Result<bool> conditional(Point& point, const Insn& insn);
  Result<bool> pointer_conditional(Point& point, const Insn& insn, const RegState& right);
  Result<bool> branch(
      Point& point, bool can_jump, CheckState taken, bool can_fall, CheckState not_taken);
  Result<void> exit(const CheckState& state, uint32_t at);

  Result<void> require_writable(uint32_t at, const Insn& insn) const;
  RegState operand(const CheckState& state, const Insn& insn) const;

  const Program& program_;
  const CheckEnv& env_;
  const Cfg& cfg_;
  FactCollector& facts_;
  MemoryRules memory_;
  CallRules calls_;
  const Thresholds thresholds_;
  std::vector<Point> work_;
  std::vector<std::vector<KeptState>> kept_{program_.size()};
  size_t kept_in_all_ = 0;
  uint64_t steps_ = 0;
};

// ---- paths
// ---------------------------------------------------------------------------------------------------------

Result<void> Walk::run() {
  Point entry;
  entry.state.regs[1] = RegState::pointer(RegKind::kContext);
  entry.state.regs[10] = RegState::pointer(RegKind::kStack);
  work_.push_back(std::move(entry));
  while (!work_.empty()) {
    Point point = std::move(work_.back());
    work_.pop_back();
    SPILE_TRY_VOID(walk_from(std::move(point)));
  }
  return {};
}

Result<void> Walk::walk_from(Point point) {
  while (true) {
    if (++steps_ > env_.limits.max_steps) {
      return fail(ErrorCode::kUnsupported,
                  "insn {}: the program is too complex to check in {} steps", point.at,
                  env_.limits.max_steps);
    }
    SPILE_TRY(bool is_new, arrive(point));
    if (!is_new) return {};
    facts_.reached(point.at);
    SPILE_TRY(bool goes_on, step(point));
    if (!goes_on) return {};
  }
}

/// False: nothing new can happen from here.
Result<bool> Walk::arrive(Point& point) {
  const CfgNode& node = cfg_.nodes[point.at];
  if (!node.is_merge) return true;
  point.state.normalise(node.live_in);
  std::vector<KeptState>& kept = kept_[point.at];
  bool is_known =
      std::ranges::any_of(kept, [&](const KeptState& k) { return contains(k.state, point.state); });
  if (is_known) return false;
  return keep(point.at, kept, point.state);
}

/// Keeps `state` apart, or joins it with one that is kept and goes on with the joined one.
Result<bool> Walk::keep(uint32_t at, std::vector<KeptState>& kept, CheckState& state) {
  size_t limit = kept_in_all_ < kManyStates ? std::max(env_.limits.states_kept, 1u) : 1;
  if (kept.size() >= limit) {
    for (size_t i = kept.size(); i-- > 0;) {
      KeptState& old = kept[i];
      JoinMode mode = old.joins >= kMaxJoins        ? JoinMode::kGiveUp
                      : cfg_.nodes[at].is_loop_head ? JoinMode::kWiden
                                                    : JoinMode::kExact;
      std::optional<CheckState> joined = join(old.state, state, mode, thresholds_);
      if (!joined) continue;
      joined->normalise(cfg_.nodes[at].live_in);
      old = {*joined, old.joins + 1};
      state = std::move(*joined);
      return true;
    }
  }
  if (kept.size() >= kMaxStates) {
    return fail(ErrorCode::kUnsupported,
                "insn {}: too many paths meet here that hold different records", at);
  }
  kept.push_back({state, 0});
  ++kept_in_all_;
  return true;
}

Result<bool> Walk::go(Point& point, uint32_t to) {
  if (to <= point.at && !point.state.held.empty()) {
    return fail(ErrorCode::kUnsafe,
                "insn {}: jumps back while the record that insn {} reserved is held", point.at,
                point.state.held.front().insn);
  }
  point.at = to;
  return true;
}

Result<bool> Walk::step(Point& point) {
  const Insn& insn = program_[point.at];
  uint32_t at = point.at;
  CheckState& state = point.state;
  switch (insn_class(insn)) {
    case kClassLd: SPILE_TRY_VOID(load_immediate(state, at, insn)); return go(point, at + 2);
    case kClassLdx: {
      SPILE_TRY_VOID(require_writable(at, insn));
      SPILE_TRY(RegState value, memory_.load(state, at, insn));
      state.regs[insn.dst()] = value;
      break;
    }
    case kClassSt: SPILE_TRY_VOID(memory_.store(state, at, insn)); break;
    case kClassStx:
      if (is_atomic(insn)) {
        SPILE_TRY_VOID(memory_.atomic(state, at, insn));
      } else {
        SPILE_TRY_VOID(memory_.store(state, at, insn));
      }
      break;
    case kClassAlu:
    case kClassAlu64: SPILE_TRY_VOID(alu(state, at, insn)); break;
    default: return step_jump(point, insn);
  }
  return go(point, at + 1);
}

Result<bool> Walk::step_jump(Point& point, const Insn& insn) {
  if (is_goto(insn)) return go(point, static_cast<uint32_t>(*jump_target(program_, point.at)));
  if (is_exit(insn)) {
    SPILE_TRY_VOID(exit(point.state, point.at));
    return false;
  }
  if (is_call(insn)) {
    SPILE_TRY_VOID(calls_.call(point.state, point.at, insn));
    return go(point, point.at + 1);
  }
  return conditional(point, insn);
}

Result<void> Walk::exit(const CheckState& state, uint32_t at) {
  if (!state.held.empty()) {
    return fail(ErrorCode::kUnsafe, "insn {}: exits while the record that insn {} reserved is held",
                at, state.held.front().insn);
  }
  if (state.regs[0].kind != RegKind::kScalar)
    return register_error(at, 0, state.regs[0], "a number at the exit");
  return {};
}

// ---- registers
// -----------------------------------------------------------------------------------------------------

Result<void> Walk::require_writable(uint32_t at, const Insn& insn) const {
  if (insn.dst() != 10) return {};
  return fail(ErrorCode::kUnsafe, "insn {}: writes to r10, which is read-only", at);
}

RegState Walk::operand(const CheckState& state, const Insn& insn) const {
  if (uses_src_reg(insn)) return state.regs[insn.src()];
  return RegState::constant(static_cast<uint64_t>(int64_t{insn.imm}));
}

Result<void> Walk::load_immediate(CheckState& state, uint32_t at, const Insn& insn) {
  SPILE_TRY_VOID(require_writable(at, insn));
  RegState& dst = state.regs[insn.dst()];
  if (insn.src() == kPseudoNone) {
    uint64_t high = static_cast<uint32_t>(program_[at + 1].imm);
    dst = RegState::constant(high << 32 | static_cast<uint32_t>(insn.imm));
    return {};
  }
  if (insn.imm < 0 || static_cast<size_t>(insn.imm) >= env_.maps.size()) {
    return fail(ErrorCode::kUnsafe, "insn {}: there is no map {}, only {} maps", at, insn.imm,
                env_.maps.size());
  }
  dst = RegState::pointer(RegKind::kMap);
  dst.map = insn.imm;
  return {};
}

/// A whole copy says that both are equal, which a later comparison of one uses for the other.
Result<void> Walk::move(CheckState& state, uint32_t at, const Insn& insn) {
  bool is_32bit = insn_class(insn) == kClassAlu;
  RegState& dst = state.regs[insn.dst()];
  if (!uses_src_reg(insn)) {
    ScalarRange value = ScalarRange::constant(static_cast<uint64_t>(int64_t{insn.imm}));
    dst = RegState::scalar(is_32bit ? zero_extend(value, 32) : value);
    return {};
  }
  RegState& src = state.regs[insn.src()];
  if (src.kind == RegKind::kUninit) return register_error(at, insn.src(), src, "a value");
  bool is_partial = is_32bit || insn.off != 0;
  if (src.is_pointer() && is_partial) return register_error(at, insn.src(), src, "a number");
  bool keeps_value =
      insn.off == 0 && (!is_32bit || src.range.umax <= std::numeric_limits<uint32_t>::max());
  if (keeps_value || src.is_pointer()) {
    if (src.kind == RegKind::kScalar && src.id == 0 && !src.range.is_constant())
      src.id = state.new_id();
    dst = src;
    return {};
  }
  ScalarRange value = insn.off != 0 ? sign_extend(src.range, insn.off) : src.range;
  dst = RegState::scalar(is_32bit ? zero_extend(value, 32) : value);
  return {};
}

Result<void> Walk::pointer_arithmetic(CheckState& state,
                                      uint32_t at,
                                      const Insn& insn,
                                      const RegState& right) {
  RegState& dst = state.regs[insn.dst()];
  bool is_add = insn_op(insn) == kAdd, is_sub = insn_op(insn) == kSub;
  if (insn_class(insn) != kClassAlu64 || (!is_add && !is_sub) || (is_sub && right.is_pointer())) {
    return dst.is_pointer() ? register_error(at, insn.dst(), dst, "a number")
                            : register_error(at, insn.src(), right, "a number");
  }
  if (dst.is_pointer() && right.is_pointer())
    return register_error(at, insn.src(), right, "a number");
  const RegState& pointer = dst.is_pointer() ? dst : right;
  const RegState& number = dst.is_pointer() ? right : dst;
  int pointer_reg = dst.is_pointer() ? insn.dst() : insn.src();
  if (pointer.kind == RegKind::kMap)
    return register_error(at, pointer_reg, pointer, "a pointer to memory");
  if (pointer.maybe_null)
    return register_error(at, pointer_reg, pointer, "a pointer that was compared with 0");
  RegState result = pointer;
  result.range = alu64(insn_op(insn), false, pointer.range, number.range);
  if (result.range.smin < -kMaxPointerOffset || result.range.smax > kMaxPointerOffset) {
    return fail(ErrorCode::kUnsafe,
                "insn {}: {} with {} added or subtracted is too far from its object", at,
                describe(pointer), describe(number));
  }
  dst = result;
  return {};
}

Result<void> Walk::alu(CheckState& state, uint32_t at, const Insn& insn) {
  SPILE_TRY_VOID(require_writable(at, insn));
  uint8_t op = insn_op(insn);
  if (op == kMov) return move(state, at, insn);
  bool is_32bit = insn_class(insn) == kClassAlu;
  bool is_unary = op == kNeg || op == kEnd;
  RegState& dst = state.regs[insn.dst()];
  if (dst.kind == RegKind::kUninit) return register_error(at, insn.dst(), dst, "a value");
  if (is_unary && dst.is_pointer()) return register_error(at, insn.dst(), dst, "a number");
  if (op == kEnd) {
    bool swaps = !is_32bit || uses_src_reg(insn);
    dst =
        RegState::scalar(swaps ? byte_swap(dst.range, insn.imm) : zero_extend(dst.range, insn.imm));
    return {};
  }
  RegState right = is_unary ? RegState::constant(0) : operand(state, insn);
  if (right.kind == RegKind::kUninit) return register_error(at, insn.src(), right, "a value");
  if (dst.is_pointer() || right.is_pointer()) return pointer_arithmetic(state, at, insn, right);
  bool is_own = uses_src_reg(insn) && insn.src() == insn.dst();
  if (is_own && (op == kSub || op == kXor)) {
    dst = RegState::constant(0);
    return {};
  }
  bool is_signed = insn.off == kSignedOff;
  dst = RegState::scalar(is_32bit ? alu32(op, is_signed, dst.range, right.range)
                                  : alu64(op, is_signed, dst.range, right.range));
  return {};
}

// ---- conditions
// ----------------------------------------------------------------------------------------------------

/// What was learned about a number holds for every register that has the same.
void learn(CheckState& state, uint8_t reg, const ScalarRange& range) {
  uint32_t id = state.regs[reg].id;
  state.regs[reg].range = range;
  if (id == 0) return;
  state.for_each_reg([&](RegState& other) {
    if (other.kind == RegKind::kScalar && other.id == id) other.range = range;
  });
}

/// The pointers that came from one lookup or reservation are all null, or none is.
void learn_null(CheckState& state, uint32_t id, bool is_null) {
  state.for_each_reg([&](RegState& reg) {
    if (!reg.maybe_null || reg.id != id) return;
    if (is_null) {
      reg = RegState::constant(0);
    } else {
      reg.maybe_null = false;
      if (reg.kind == RegKind::kMapValue) reg.id = 0;
    }
  });
  if (is_null) std::erase_if(state.held, [&](const HeldRecord& record) { return record.id == id; });
}

Result<bool> Walk::branch(
    Point& point, bool can_jump, CheckState taken, bool can_fall, CheckState not_taken) {
  auto target = static_cast<uint32_t>(*jump_target(program_, point.at));
  if (can_jump) {
    Point other{point.at, std::move(taken)};
    SPILE_TRY_VOID(go(other, target));
    work_.push_back(std::move(other));
  }
  if (!can_fall) return false;
  point.state = std::move(not_taken);
  return go(point, point.at + 1);
}

/// Only == and != with 0 are defined for pointers.
Result<bool> Walk::pointer_conditional(Point& point, const Insn& insn, const RegState& right) {
  const RegState left = point.state.regs[insn.dst()];
  uint8_t op = insn_op(insn);
  bool is_null_test =
      insn_class(insn) == kClassJmp && (op == kJeq || op == kJne) && right.is_constant(0);
  if (!is_null_test) {
    return left.is_pointer()
               ? register_error(point.at, insn.dst(), left, "a number (or == or != with 0)")
               : register_error(point.at, insn.src(), right, "a number");
  }
  bool jumps_if_null = op == kJeq;
  if (!left.maybe_null) {
    // As in the kernel, which takes only map values for surely not null: the other side must be
    // right as well.
    bool may_be_taken_for_null = left.kind != RegKind::kMapValue;
    return branch(point, !jumps_if_null || may_be_taken_for_null, point.state,
                  jumps_if_null || may_be_taken_for_null, point.state);
  }
  CheckState null = point.state, valid = point.state;
  learn_null(null, left.id, true);
  learn_null(valid, left.id, false);
  if (jumps_if_null) return branch(point, true, std::move(null), true, std::move(valid));
  return branch(point, true, std::move(valid), true, std::move(null));
}

Result<bool> Walk::conditional(Point& point, const Insn& insn) {
  const RegState left = point.state.regs[insn.dst()], right = operand(point.state, insn);
  if (left.kind == RegKind::kUninit) return register_error(point.at, insn.dst(), left, "a value");
  if (right.kind == RegKind::kUninit) return register_error(point.at, insn.src(), right, "a value");
  if (left.is_pointer() || right.is_pointer()) return pointer_conditional(point, insn, right);
  bool is_32bit = insn_class(insn) == kClassJmp32;
  CheckState sides[2];
  bool possible[2] = {};
  for (bool holds : {false, true}) {
    auto learned = assume(insn_op(insn), is_32bit, holds, left.range, right.range);
    possible[holds] = learned.has_value();
    if (!learned) continue;
    sides[holds] = point.state;
    learn(sides[holds], insn.dst(), learned->first);
    if (uses_src_reg(insn)) learn(sides[holds], insn.src(), learned->second);
  }
  return branch(point, possible[true], std::move(sides[true]), possible[false],
                std::move(sides[false]));
}

}  // namespace

Result<Analysis> check(const Program& program, const CheckEnv& env) {
  SPILE_TRY(Cfg cfg, build_cfg(program, env.limits.max_insns));
  if (cfg.longest_path > env.limits.insn_budget) {
    return fail(ErrorCode::kUnsupported,
                "the program can run {} instructions, at most {} are allowed", cfg.longest_path,
                env.limits.insn_budget);
  }
  FactCollector facts(program.size());
  Walk walk(program, env, cfg, facts);
  SPILE_TRY_VOID(walk.run());
  return facts.finish(program, cfg);
}

}  // namespace spile::bpf
