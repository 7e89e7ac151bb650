#include "user_engine/jit/liveness.h"

#include <algorithm>

#include "bpf/helpers.h"

namespace spile::jit {

using namespace bpf;

namespace {

using Kind = Value::Kind;

constexpr uint16_t reg_bit(int reg) {
  return static_cast<uint16_t>(1u << reg);
}

/// Bytes of eBPF's stack, as an offset from r10 - 512 and a length.
struct StackRange {
  size_t begin = 0, size = 0;
};

/// What one instruction takes and makes.
struct Effects {
  uint16_t uses = 0, kills = 0;  ///< registers
  std::vector<StackRange> stack_uses;
  bool uses_all_stack = false;
  StackRange stack_kill;   ///< a store of known place
  bool must_stay = false;  ///< has an effect beyond registers and stack
};

bool is_pure_helper(int32_t helper) {
  switch (static_cast<Helper>(helper)) {
    case Helper::kMapLookupElem:
    case Helper::kKtimeGetNs:
    case Helper::kKtimeGetBootNs:
    case Helper::kGetSmpProcessorId:
    case Helper::kGetCurrentPidTgid:
    case Helper::kGetCurrentUidGid:
    case Helper::kGetAttachCookie: return true;
    default: return false;
  }
}

bool is_pointer_argument(ArgType type) {
  return type == ArgType::kAddress || type == ArgType::kMapKey || type == ArgType::kMapKeyOut ||
         type == ArgType::kMapValue || type == ArgType::kReadMemory ||
         type == ArgType::kWriteMemory || type == ArgType::kRecord;
}

std::array<ArgType, 5> argument_types(const Insn& insn) {
  const HelperSignature* signature = find_helper(insn.imm);
  if (signature != nullptr) return signature->args;
  return {ArgType::kAddress, ArgType::kAddress, ArgType::kAddress, ArgType::kAddress,
          ArgType::kAddress};
}

/// The words of the HitFrame that a helper which takes the context reads or writes.
SlotMask context_slots(Helper helper, const std::array<ArgType, 5>& types) {
  if (std::ranges::find(types, ArgType::kContext) == types.end()) return 0;
  if (helper == Helper::kGetStackid) return kStackSlots;
  if (helper == Helper::kOverrideReturn) return kOverriddenSlot;
  return kAllSlots;
}

class Pass {
 public:
  Pass(const Program& program,
       const Shape& shape,
       const Analysis& analysis,
       const Facts& facts,
       const JitEnv& env)
      : program_(program), shape_(shape), analysis_(analysis), facts_(facts), env_(env) {}

  Liveness run() {
    out_.kept.resize(program_.size());
    out_.after.resize(program_.size());
    before_.resize(program_.size());
    // Liveness only grows, so this ends; programs without loops need two rounds.
    for (bool changed = true; changed;) changed = round();
    for (size_t at = 0; at < program_.size(); ++at) {
      if (out_.kept[at]) note_memory(at);
    }
    out_.entry_registers = before_[0].registers;
    out_.stack_bytes = std::min<uint32_t>((out_.stack_bytes + 7) / 8 * 8, kBpfStackBytes);
    return std::move(out_);
  }

 private:
  bool round() {
    bool changed = false;
    for (size_t i = program_.size(); i-- > 0;) {
      if (!facts_.reached[i]) continue;
      Live after = join(i);
      Effects effects = find_effects(i);
      bool keep = matters(effects, after) || !env_.optimise;
      Live before = keep ? flow_back(effects, after) : after;
      if (before == before_[i] && keep == out_.kept[i] && after == out_.after[i]) continue;
      before_[i] = before;
      out_.after[i] = after;
      out_.kept[i] = keep;
      changed = true;
    }
    return changed;
  }

  Live join(size_t at) const {
    Live live;
    const Edges& edges = shape_.edges[at];
    Decision decision = facts_.decision[at];
    for (int32_t to : {decision == Decision::kTaken ? -1 : edges.next,
                       decision == Decision::kNotTaken ? -1 : edges.target}) {
      if (to < 0) continue;
      live.registers |= before_[to].registers;
      live.stack |= before_[to].stack;
    }
    return live;
  }

  static bool matters(const Effects& effects, const Live& after) {
    if (effects.must_stay || (effects.kills & after.registers) != 0) return true;
    for (size_t i = 0; i < effects.stack_kill.size; ++i) {
      if (after.stack[effects.stack_kill.begin + i]) return true;
    }
    return false;
  }

  static Live flow_back(const Effects& effects, Live live) {
    live.registers = static_cast<uint16_t>((live.registers & ~effects.kills) | effects.uses);
    for (size_t i = 0; i < effects.stack_kill.size; ++i)
      live.stack.reset(effects.stack_kill.begin + i);
    for (const StackRange& range : effects.stack_uses) {
      for (size_t i = 0; i < range.size; ++i) live.stack.set(range.begin + i);
    }
    if (effects.uses_all_stack) live.stack.set();
    return live;
  }

  // ---- effects
  // -------------------------------------------------------------------------------------------------

  Effects find_effects(size_t at) const {
    const Insn& insn = program_[at];
    if (is_alu(insn) || is_lddw(insn)) return of_alu(at, insn);
    if (is_load(insn)) return of_load(at, insn);
    if (is_store(insn)) return of_store(at, insn);
    if (is_atomic(insn)) return of_atomic(at, insn);
    if (is_call(insn)) return of_call(at, insn);
    Effects effects{.must_stay = true};
    if (is_exit(insn) && env_.keep_result) effects.uses = reg_bit(0);
    if (is_branch(insn) && facts_.decision[at] == Decision::kOpen) {
      effects.uses = reg_bit(insn.dst()) | source_use(at, insn);
    }
    return effects;
  }

  uint16_t source_use(size_t at, const Insn& insn) const {
    bool takes_register = insn_class(insn) == kClassStx || has_source_register(insn);
    return takes_register && !facts_.constant_source(program_, at) ? reg_bit(insn.src()) : 0;
  }

  Effects of_alu(size_t at, const Insn& insn) const {
    Effects effects{.kills = reg_bit(insn.dst())};
    if (facts_.result[at].is_known()) return effects;
    bool one_operand = operation(insn) == kNeg || operation(insn) == kEnd;
    if (!one_operand) effects.uses = source_use(at, insn);
    if (operation(insn) != kMov) effects.uses |= reg_bit(insn.dst());
    return effects;
  }

  /// The base register and the stack bytes of an access that reads.
  void add_read(size_t at, const Insn& insn, Effects& effects) const {
    auto place = facts_.known_place(program_, at);
    if (!place) effects.uses |= reg_bit(base_register(insn));
    if (place && place->kind == Kind::kStack)
      effects.stack_uses.push_back(stack_range(*place, access_bytes(insn)));
    bool may_be_stack = memory(at) == Memory::kStack || memory(at) == Memory::kMixed;
    if (!place && may_be_stack) effects.uses_all_stack = true;
  }

  Effects of_load(size_t at, const Insn& insn) const {
    Effects effects{.kills = reg_bit(insn.dst())};
    add_read(at, insn, effects);
    return effects;
  }

  Effects of_store(size_t at, const Insn& insn) const {
    Effects effects;
    if (insn_class(insn) == kClassStx) effects.uses = source_use(at, insn);
    auto place = facts_.known_place(program_, at);
    if (!place) effects.uses |= reg_bit(insn.dst());
    if (place && place->kind == Kind::kStack)
      effects.stack_kill = stack_range(*place, access_bytes(insn));
    else
      effects.must_stay = true;
    return effects;
  }

  Effects of_atomic(size_t at, const Insn& insn) const {
    Effects effects{.uses = source_use(at, insn), .must_stay = true};
    add_read(at, insn, effects);
    if (insn.imm == kCmpXchg) effects.uses |= reg_bit(0);
    return effects;
  }

  Effects of_call(size_t at, const Insn& insn) const {
    Effects effects{.kills = 0x3f};
    switch (facts_.calls[at].plan) {
      case CallPlan::kIndex: add_key_read(at, effects); return effects;
      case CallPlan::kHelper: break;
      default: return effects;
    }
    effects.must_stay = !is_pure_helper(insn.imm);
    auto types = argument_types(insn);
    for (int i = 0; i < 5; ++i) {
      if (types[i] == ArgType::kNone) continue;
      effects.uses |= reg_bit(i + 1);
      bool reads = is_pointer_argument(types[i]) && types[i] != ArgType::kWriteMemory;
      Kind kind = facts_.before[at][i + 1].kind;
      if (reads && kind != Kind::kConst && kind != Kind::kNonNull) effects.uses_all_stack = true;
    }
    return effects;
  }

  void add_key_read(size_t at, Effects& effects) const {
    const Value& key = facts_.before[at][2];
    if (key.kind == Kind::kStack) {
      effects.stack_uses.push_back(stack_range(key, sizeof(uint32_t)));
    } else {
      effects.uses |= reg_bit(2);
      effects.uses_all_stack = true;
    }
  }

  Memory memory(size_t at) const { return analysis_.insns[at].memory; }

  static StackRange stack_range(const Value& place, int bytes) {
    auto begin =
        static_cast<size_t>(std::clamp<int64_t>(place.number + kBpfStackBytes, 0, kBpfStackBytes));
    return {begin, std::min<size_t>(bytes, kBpfStackBytes - begin)};
  }

  // ---- how much stack and context the kept instructions touch
  // --------------------------------------------------

  void note_memory(size_t at) {
    const Insn& insn = program_[at];
    if (facts_.result[at].is_known()) note_address(facts_.result[at]);
    if (is_call(insn)) note_call(at, insn);
    if (!is_load(insn) && !is_store(insn) && !is_atomic(insn)) return;
    auto place = facts_.known_place(program_, at);
    if (!place) {
      note_unknown_place(memory(at));
    } else if (place->kind == Kind::kStack) {
      note_address(*place);
    } else if (place->kind == Kind::kContext) {
      note_context(place->number, access_bytes(insn));
    }
  }

  void need_stack(uint32_t bytes) { out_.stack_bytes = std::max(out_.stack_bytes, bytes); }

  /// A stack address that is used, or made for something else to use: it or anything above it.
  void note_address(const Value& value) {
    if (value.kind != Kind::kStack || value.number >= 0) return;
    need_stack(static_cast<uint32_t>(std::min<int64_t>(-value.number, kBpfStackBytes)));
  }

  void note_context(int64_t offset, int bytes) {
    for (int64_t word = offset / 8; word <= (offset + bytes - 1) / 8; ++word)
      out_.context_reads |= SlotMask{1} << word;
  }

  void note_unknown_place(Memory memory) {
    if (memory == Memory::kStack || memory == Memory::kMixed) need_stack(analysis_.stack_bytes);
    if (memory == Memory::kContext || memory == Memory::kMixed) out_.context_reads |= kAllSlots;
  }

  void note_call(size_t at, const Insn& insn) {
    const CallPlan plan = facts_.calls[at].plan;
    if (plan == CallPlan::kCookie) out_.context_reads |= kCookieSlot;
    if (plan == CallPlan::kIndex) note_address(facts_.before[at][2]);
    if (plan != CallPlan::kHelper) return;
    auto types = argument_types(insn);
    for (int i = 0; i < 5; ++i) {
      if (is_pointer_argument(types[i])) note_pointer_argument(facts_.before[at][i + 1]);
    }
    out_.context_reads |= context_slots(static_cast<Helper>(insn.imm), types);
    if (analysis_.context_escapes) out_.context_reads |= kAllSlots;
  }

  void note_pointer_argument(const Value& value) {
    note_address(value);
    if (value.kind == Kind::kAny) need_stack(analysis_.stack_bytes);
    if (value.kind == Kind::kContext) out_.context_reads |= kAllSlots;
  }

  const Program& program_;
  const Shape& shape_;
  const Analysis& analysis_;
  const Facts& facts_;
  const JitEnv& env_;
  Liveness out_;
  std::vector<Live> before_;
};

}  // namespace

Liveness find_liveness(const Program& program,
                       const Shape& shape,
                       const Analysis& analysis,
                       const Facts& facts,
                       const JitEnv& env) {
  return Pass(program, shape, analysis, facts, env).run();
}

}  // namespace spile::jit
