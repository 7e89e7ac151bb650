#include "user_engine/patch/stack_depth.h"

namespace spile::patch {
namespace {

using x86::Kind;
using x86::Shape;

constexpr unsigned kAdd = 0, kSub = 5;  // ModRM.reg of 81 and 83

/// What is known at one place. `frame`: the depth that mov %rbp,%rsp brings back.
struct State {
  std::optional<int64_t> depth, frame;
  bool operator==(const State&) const = default;
};

State join(const State& a, const State& b) {
  return {a.depth == b.depth ? a.depth : std::nullopt, a.frame == b.frame ? a.frame : std::nullopt};
}

unsigned reg_of(const Shape& s) {
  return (s.modrm >> 3 & 7u) | (s.rex & 4u) << 1;
}
unsigned rm_of(const Shape& s) {
  return (s.modrm & 7u) | (s.rex & 1u) << 3;
}
bool is_register_form(const Shape& s) {
  return s.modrm_offset != 0 && (s.modrm >> 6) == 3;
}
/// disp(%reg), without an index: the base register.
std::optional<unsigned> plain_base(const Shape& s) {
  if (s.modrm_offset == 0 || is_register_form(s) || s.rip_relative) return std::nullopt;
  if ((s.modrm & 7) != 4) return rm_of(s);
  const bool no_index = (s.sib >> 3 & 7) == 4 && (s.rex & 2) == 0;
  if (!no_index) return std::nullopt;
  return (s.sib & 7u) | (s.rex & 1u) << 3;
}

bool is_push(const Shape& s) {
  const bool from_memory = s.opcode == 0xff && (s.modrm >> 3 & 7) == 6;
  return s.map == 0 && ((s.opcode >= 0x50 && s.opcode <= 0x57) || s.opcode == 0x68 ||
                        s.opcode == 0x6a || s.opcode == 0x9c || from_memory);
}
bool is_pop(const Shape& s) {
  return s.map == 0 &&
         ((s.opcode >= 0x58 && s.opcode <= 0x5f) || s.opcode == 0x8f || s.opcode == 0x9d);
}

class DepthSearch {
 public:
  DepthSearch(const CodeMap& map, const Sweep& code) : map_(map), code_(code) {
    states_.resize(code.insns.size());
    out_.before.resize(code.insns.size());
  }

  StackDepths run(bool starts_function) {
    if (code_.insns.empty()) return std::move(out_);
    reach(0, starts_function ? State{0, std::nullopt} : State{});
    settle();
    for (size_t i = 0; i < states_.size(); ++i) out_.before[i].from_entry = states_[i].has_value();
    // What is left is entered through tables, or by exceptions. The frame is then mostly that of
    // the indirect jumps.
    const State elsewhere = at_indirect_jumps();
    for (size_t i = 0; i < states_.size(); ++i) {
      if (states_[i]) continue;
      reach(i, elsewhere);
      settle();
    }
    for (size_t i = 0; i < states_.size(); ++i) out_.before[i].bytes = states_[i]->depth;
    return std::move(out_);
  }

 private:
  void reach(size_t i, const State& state) {
    const State merged = states_[i] ? join(*states_[i], state) : state;
    if (states_[i] == merged) return;
    states_[i] = merged;
    pending_.push_back(i);
  }

  void settle() {
    while (!pending_.empty()) {
      const size_t i = pending_.back();
      pending_.pop_back();
      const Shape& s = code_.insns[i].shape;
      const State after = step(i, *states_[i]);
      if (!s.ends_flow() && i + 1 < states_.size()) reach(i + 1, after);
      if (!s.is_direct_branch() || s.kind == Kind::kCall) continue;
      if (const auto target = index_of(s.branch_target(code_.address(code_.insns[i]))))
        reach(*target, after);
    }
  }

  std::optional<size_t> index_of(TargetAddr at) const {
    const SweptInsn* insn = code_.covering(at);
    if (insn == nullptr || code_.address(*insn) != at) return std::nullopt;
    return static_cast<size_t>(insn - code_.insns.data());
  }

  State at_indirect_jumps() const {
    std::optional<State> all;
    for (size_t i = 0; i < states_.size(); ++i) {
      if (!states_[i] || code_.insns[i].shape.kind != Kind::kJmpIndirect) continue;
      all = all ? join(*all, *states_[i]) : *states_[i];
    }
    return all.value_or(State{});
  }

  State step(size_t i, State state) {
    const Shape& s = code_.insns[i].shape;
    const TargetAddr at = code_.address(code_.insns[i]);
    if (s.kind == Kind::kCall)  // call +0 only pushes: position-independent code of old
      return s.branch_target(at) == at + s.length ? moved(state, 8) : state;
    if (s.kind == Kind::kCallIndirect || s.kind == Kind::kRet) return state;
    if (is_push(s)) return moved(state, s.operand16 ? 2 : 8);
    if (is_pop(s)) return pop(s, state);
    if (s.map == 0 && s.opcode == 0xc9) return leave(state);
    return other(s, at, state);
  }

  static State moved(State state, int64_t bytes) {
    if (state.depth) *state.depth += bytes;
    return state;
  }

  State pop(const Shape& s, State state) {
    const unsigned reg = s.opcode == 0x8f ? rm_of(s) : (s.opcode & 7u) | (s.rex & 1u) << 3;
    const bool is_register = s.opcode < 0x60 || (s.opcode == 0x8f && is_register_form(s));
    if (is_register && reg == x86::kRsp) return {};
    if (is_register && reg == x86::kRbp) state.frame.reset();
    return moved(state, s.operand16 ? -2 : -8);
  }

  static State leave(const State& state) {
    if (!state.frame) return {};
    return {*state.frame - 8, std::nullopt};
  }

  State other(const Shape& s, TargetAddr at, State state) {
    const auto insn = x86::decode(map_.text_from(at));
    if (!insn) return {};
    if ((insn->writes >> x86::kRbp & 1) != 0) state.frame = new_frame(s, state);
    if ((insn->writes >> x86::kRsp & 1) == 0) return state;
    state.depth = new_depth(s, at, state);
    return state;
  }

  /// mov %rsp,%rbp and lea disp(%rsp),%rbp.
  static std::optional<int64_t> new_frame(const Shape& s, const State& state) {
    if (s.map != 0 || !state.depth) return std::nullopt;
    const bool from_rsp = is_register_form(s) &&
                          ((s.opcode == 0x89 && reg_of(s) == x86::kRsp && rm_of(s) == x86::kRbp) ||
                           (s.opcode == 0x8b && rm_of(s) == x86::kRsp && reg_of(s) == x86::kRbp));
    if (from_rsp) return state.depth;
    const bool lea = s.opcode == 0x8d && reg_of(s) == x86::kRbp && plain_base(s) == x86::kRsp;
    return lea ? std::optional(*state.depth - s.disp) : std::nullopt;
  }

  std::optional<int64_t> new_depth(const Shape& s, TargetAddr at, const State& state) {
    if (s.map != 0) return std::nullopt;
    const bool by_constant = (s.opcode == 0x81 || s.opcode == 0x83) && is_register_form(s);
    const unsigned operation = s.modrm >> 3 & 7u;
    if (by_constant && (operation == kAdd || operation == kSub)) {
      if (!state.depth) return std::nullopt;
      return operation == kSub ? *state.depth + s.imm : *state.depth - s.imm;
    }
    if (s.opcode == 0x8d) return after_lea(s, state);
    if (s.opcode == 0x89 || s.opcode == 0x8b) return after_mov(s, at, state);
    return std::nullopt;
  }

  static std::optional<int64_t> after_lea(const Shape& s, const State& state) {
    const auto base = plain_base(s);
    const auto& from = base == x86::kRsp   ? state.depth
                       : base == x86::kRbp ? state.frame
                                           : std::nullopt;
    return from ? std::optional(*from - s.disp) : std::nullopt;
  }

  std::optional<int64_t> after_mov(const Shape& s, TargetAddr at, const State& state) {
    if (!is_register_form(s)) {
      // Out of its own frame a function takes what it has saved there: arrays of variable size.
      const auto base = plain_base(s);
      const bool own_frame =
          (base == x86::kRbp && state.frame) || (base == x86::kRsp && state.depth);
      if (!own_frame && !out_.switches_stack) out_.switches_stack = at;
      return std::nullopt;
    }
    const unsigned from = s.opcode == 0x89 ? reg_of(s) : rm_of(s);
    return from == x86::kRbp ? state.frame : std::nullopt;
  }

  const CodeMap& map_;
  const Sweep& code_;
  std::vector<std::optional<State>> states_;
  std::vector<size_t> pending_;
  StackDepths out_;
};

}  // namespace

StackDepths find_stack_depths(const CodeMap& map, const Sweep& code, bool starts_function) {
  return DepthSearch(map, code).run(starts_function);
}

}  // namespace spile::patch
