#include "user_engine/jit/facts.h"

#include <cstring>
#include <deque>

namespace spile::jit {

using namespace bpf;

namespace {

using Kind = Value::Kind;
constexpr Value kAnything{Kind::kAny, 0};

constexpr Value constant(uint64_t number) {
  return {Kind::kConst, static_cast<int64_t>(number)};
}

Value merge(const Value& a, const Value& b) {
  if (a.kind == Kind::kUnset || a == b) return b;
  return b.kind == Kind::kUnset ? a : kAnything;
}

// ---- arithmetic on constants
// -----------------------------------------------------------------------------------

uint64_t sign_extend(uint64_t value, int bits) {
  int unused = 64 - bits;
  return static_cast<uint64_t>(static_cast<int64_t>(value << unused) >> unused);
}

/// Not set for what is left to the CPU: division and byte swaps.
std::optional<uint64_t> fold64(const Insn& insn, uint64_t a, uint64_t b) {
  switch (operation(insn)) {
    case kAdd: return a + b;
    case kSub: return a - b;
    case kMul: return a * b;
    case kOr: return a | b;
    case kAnd: return a & b;
    case kXor: return a ^ b;
    case kLsh: return a << (b & 63);
    case kRsh: return a >> (b & 63);
    case kArsh: return static_cast<uint64_t>(static_cast<int64_t>(a) >> (b & 63));
    case kNeg: return 0 - a;
    case kMov: return insn.off == 0 ? b : sign_extend(b, insn.off);
    default: return std::nullopt;
  }
}

std::optional<uint64_t> fold32(const Insn& insn, uint32_t a, uint32_t b) {
  switch (operation(insn)) {
    case kAdd: return a + b;
    case kSub: return a - b;
    case kMul: return a * b;
    case kOr: return a | b;
    case kAnd: return a & b;
    case kXor: return a ^ b;
    case kLsh: return a << (b & 31);
    case kRsh: return a >> (b & 31);
    case kArsh: return static_cast<uint32_t>(static_cast<int32_t>(a) >> (b & 31));
    case kNeg: return 0u - a;
    case kMov: return insn.off == 0 ? b : static_cast<uint32_t>(sign_extend(b, insn.off));
    default: return std::nullopt;
  }
}

template <typename Unsigned, typename Signed>
bool compare(uint8_t op, Unsigned a, Unsigned b) {
  auto sa = static_cast<Signed>(a), sb = static_cast<Signed>(b);
  switch (op) {
    case kJeq: return a == b;
    case kJne: return a != b;
    case kJgt: return a > b;
    case kJge: return a >= b;
    case kJlt: return a < b;
    case kJle: return a <= b;
    case kJset: return (a & b) != 0;
    case kJsgt: return sa > sb;
    case kJsge: return sa >= sb;
    case kJslt: return sa < sb;
    default: return sa <= sb;
  }
}

// ---- one instruction
// -------------------------------------------------------------------------------------------

Value source_value(const Insn& insn, const Registers& regs) {
  if (has_source_register(insn)) return regs[insn.src()];
  return constant(static_cast<uint64_t>(static_cast<int64_t>(insn.imm)));
}

Value moved_pointer(const Insn& insn, const Value& dst, const Value& src) {
  if (!is_alu64(insn)) return kAnything;
  if (operation(insn) == kMov) return insn.off == 0 ? src : kAnything;
  bool is_place = dst.kind == Kind::kStack || dst.kind == Kind::kContext;
  if (!is_place || !src.is_const()) return kAnything;
  if (operation(insn) == kAdd) return {dst.kind, dst.number + src.number};
  if (operation(insn) == kSub) return {dst.kind, dst.number - src.number};
  return kAnything;
}

Value alu_result(const Insn& insn, const Registers& regs) {
  const Value& dst = regs[insn.dst()];
  Value src = operation(insn) == kNeg ? constant(0) : source_value(insn, regs);
  bool needs_dst = operation(insn) != kMov;
  if (!src.is_const() || (needs_dst && !dst.is_const())) return moved_pointer(insn, dst, src);
  auto a = static_cast<uint64_t>(dst.number), b = static_cast<uint64_t>(src.number);
  auto folded = is_alu64(insn) ? fold64(insn, a, b)
                               : fold32(insn, static_cast<uint32_t>(a), static_cast<uint32_t>(b));
  return folded ? constant(*folded) : kAnything;
}

Decision decide(const Insn& insn, const Registers& regs) {
  const Value& dst = regs[insn.dst()];
  Value src = source_value(insn, regs);
  auto as_decision = [](bool taken) { return taken ? Decision::kTaken : Decision::kNotTaken; };
  bool wide = insn_class(insn) == kClassJmp;
  bool is_address =
      dst.kind == Kind::kNonNull || dst.kind == Kind::kStack || dst.kind == Kind::kContext;
  if (wide && is_address && src == constant(0)) {
    if (operation(insn) == kJeq) return Decision::kNotTaken;
    if (operation(insn) == kJne) return Decision::kTaken;
  }
  if (!dst.is_const() || !src.is_const()) return Decision::kOpen;
  auto a = static_cast<uint64_t>(dst.number), b = static_cast<uint64_t>(src.number);
  if (wide) return as_decision(compare<uint64_t, int64_t>(operation(insn), a, b));
  return as_decision(compare<uint32_t, int32_t>(operation(insn), static_cast<uint32_t>(a),
                                                static_cast<uint32_t>(b)));
}

// ---- calls
// -----------------------------------------------------------------------------------------------------

std::optional<uint32_t> constant_key(const bpf::CallFacts& call, const ArrayLayout& array) {
  if (!call.constant_key || call.constant_key->size() != sizeof(uint32_t)) return std::nullopt;
  uint32_t key;
  std::memcpy(&key, call.constant_key->data(), sizeof key);
  if (key >= array.max_entries) return std::nullopt;
  return key;
}

CallFacts plan_lookup(const bpf::CallFacts* call, const JitEnv& env) {
  if (call == nullptr || call->map < 0 || static_cast<size_t>(call->map) >= env.maps.size())
    return {};
  const std::optional<ArrayLayout>& array = env.maps[call->map].array;
  if (!array || !env.inline_lookups) return {};
  if (auto key = constant_key(*call, *array)) {
    return {array->cpu_stride == 0 ? CallPlan::kArrayAddress : CallPlan::kPerCpuAddress, &*array,
            *key};
  }
  return {CallPlan::kIndex, &*array, 0};
}

CallFacts plan_call(const Insn& insn, const bpf::CallFacts* call, const JitEnv& env) {
  switch (static_cast<Helper>(insn.imm)) {
    case Helper::kMapLookupElem: return plan_lookup(call, env);
    case Helper::kGetSmpProcessorId: return {.plan = CallPlan::kCpu};
    case Helper::kGetAttachCookie: return {.plan = CallPlan::kCookie};
    default: return {};
  }
}

Value call_result(const CallFacts& call) {
  switch (call.plan) {
    case CallPlan::kArrayAddress:
      return constant((call.array->storage + uint64_t{call.key} * call.array->value_stride).value);
    case CallPlan::kPerCpuAddress: return {Kind::kNonNull, 0};
    default: return kAnything;
  }
}

// ---- the walk
// --------------------------------------------------------------------------------------------------

class Walk {
 public:
  Walk(const Program& program, const Shape& shape, const Analysis& analysis, const JitEnv& env)
      : program_(program), shape_(shape), env_(env) {
    facts_.before.resize(program.size());
    facts_.reached.resize(program.size());
    facts_.decision.resize(program.size());
    facts_.result.resize(program.size());
    facts_.calls.resize(program.size());
    for (size_t at = 0; at < program.size(); ++at) {
      if (shape.is_head[at] && is_call(program[at])) {
        facts_.calls[at] = plan_call(program[at], analysis.call_at(static_cast<uint32_t>(at)), env);
      }
    }
  }

  Result<Facts> run() {
    Registers entry;
    entry.fill(kAnything);
    if (env_.optimise) entry[1] = {Kind::kContext, 0};
    entry[10] = {Kind::kStack, 0};
    meet(0, entry);
    while (!queue_.empty()) {
      int32_t at = queue_.front();
      queue_.pop_front();
      queued_[at] = false;
      step(at);
    }
    for (size_t at = 0; at < program_.size(); ++at) {
      if (facts_.reached[at]) SPILE_TRY_VOID(check(at));
    }
    return std::move(facts_);
  }

 private:
  /// Values only ever move towards kAny, so an instruction is queued at most twice a register.
  void meet(int32_t at, const Registers& incoming) {
    Registers merged = facts_.before[at];
    for (size_t r = 0; r < merged.size(); ++r) merged[r] = merge(merged[r], incoming[r]);
    if (facts_.reached[at] && merged == facts_.before[at]) return;
    facts_.before[at] = merged;
    facts_.reached[at] = true;
    if (queued_[at]) return;
    queued_[at] = true;
    queue_.push_back(at);
  }

  void step(int32_t at) {
    const Insn& insn = program_[at];
    Registers regs = facts_.before[at];
    if (is_branch(insn)) facts_.decision[at] = decide(insn, regs);
    facts_.result[at] = {};
    apply(at, insn, regs);
    const Edges& edges = shape_.edges[at];
    if (edges.next >= 0 && facts_.decision[at] != Decision::kTaken) meet(edges.next, regs);
    if (edges.target >= 0 && facts_.decision[at] != Decision::kNotTaken) meet(edges.target, regs);
  }

  void apply(int32_t at, const Insn& insn, Registers& regs) {
    if (is_alu(insn)) {
      set(at, regs, insn.dst(), alu_result(insn, regs));
    } else if (is_lddw(insn)) {
      set(at, regs, insn.dst(), loaded(at, insn));
    } else if (is_load(insn)) {
      regs[insn.dst()] = kAnything;
    } else if (is_atomic(insn)) {
      if (insn.imm == kCmpXchg)
        regs[0] = kAnything;
      else if ((insn.imm & kFetch) != 0)
        regs[insn.src()] = kAnything;
    } else if (is_call(insn)) {
      for (int r = 1; r <= 5; ++r) regs[r] = kAnything;
      set(at, regs, 0, call_result(facts_.calls[at]));
    }
  }

  void set(int32_t at, Registers& regs, int dst, const Value& value) {
    bool is_load = is_lddw(program_[at]) || is_call(program_[at]);
    if (value.is_known() && (env_.optimise || is_load)) facts_.result[at] = value;
    regs[dst] = env_.optimise ? value : kAnything;
  }

  Value loaded(int32_t at, const Insn& insn) const {
    if (insn.src() == kPseudoMapIdx) {
      bool known = insn.imm >= 0 && static_cast<size_t>(insn.imm) < env_.maps.size();
      return known ? constant(env_.maps[insn.imm].descriptor.value) : kAnything;
    }
    uint64_t high = static_cast<uint32_t>(program_[at + 1].imm);
    return constant(high << 32 | static_cast<uint32_t>(insn.imm));
  }

  Result<void> check(size_t at) const {
    const Insn& insn = program_[at];
    if (is_lddw(insn)) return check_lddw(at, insn);
    if (is_call(insn) && facts_.calls[at].plan == CallPlan::kHelper &&
        !env_.helpers.contains(insn.imm)) {
      return fail(ErrorCode::kInvalid, "insn {}: helper {} is not there", at, insn.imm);
    }
    bool is_access = is_load(insn) || is_store(insn) || is_atomic(insn);
    return is_access ? check_access(at, insn) : Result<void>{};
  }

  Result<void> check_lddw(size_t at, const Insn& insn) const {
    if (insn.src() != kPseudoNone && insn.src() != kPseudoMapIdx) {
      return fail(ErrorCode::kInvalid, "insn {}: a 64-bit load of kind {} means nothing here", at,
                  insn.src());
    }
    if (!facts_.result[at].is_known())
      return fail(ErrorCode::kInvalid, "insn {}: no map {}", at, insn.imm);
    return {};
  }

  /// The checker proved this already; here it is nearly free for the places that are fixed.
  Result<void> check_access(size_t at, const Insn& insn) const {
    auto place = facts_.known_place(program_, at);
    if (!place || place->kind == Kind::kConst) return {};
    bool on_stack = place->kind == Kind::kStack;
    int64_t low = on_stack ? -int64_t{kBpfStackBytes} : 0;
    int64_t high = on_stack ? 0 : static_cast<int64_t>(offsetof(abi::HitFrame, at_entry));
    if (place->number < low || place->number + access_bytes(insn) > high) {
      return fail(ErrorCode::kInvalid, "insn {}: an access outside the {}", at,
                  on_stack ? "stack" : "context");
    }
    if (!on_stack && !is_load(insn)) {
      return fail(ErrorCode::kUnsupported, "insn {}: writing the context is not built yet", at);
    }
    return {};
  }

  const Program& program_;
  const Shape& shape_;
  const JitEnv& env_;
  Facts facts_;
  std::deque<int32_t> queue_;
  std::vector<bool> queued_ = std::vector<bool>(program_.size());
};

}  // namespace

int base_register(const Insn& insn) {
  return is_load(insn) ? insn.src() : insn.dst();
}

std::optional<int32_t> Facts::constant_source(const Program& program, size_t at) const {
  const Insn& insn = program[at];
  if (is_atomic(insn) && (insn.imm & kFetch) != 0) return std::nullopt;
  bool computes = is_alu(insn) || is_branch(insn);
  bool takes_register = insn_class(insn) == kClassStx || (computes && has_source_register(insn));
  bool is_byte_swap = is_alu(insn) && operation(insn) == kEnd;
  if (!takes_register || is_byte_swap) return std::nullopt;
  const Value& value = before[at][insn.src()];
  if (!value.is_const()) return std::nullopt;
  bool wide = insn_class(insn) == kClassStx ? access_bytes(insn) == 8
                                            : is_alu64(insn) || insn_class(insn) == kClassJmp;
  auto low = static_cast<int32_t>(value.number);
  if (wide && low != value.number) return std::nullopt;
  return low;
}

std::optional<Value> Facts::known_place(const Program& program, size_t at) const {
  const Insn& insn = program[at];
  Value value = before[at][base_register(insn)];
  if (!value.is_known()) return std::nullopt;
  value.number += insn.off;
  return value;
}

Result<Facts> find_facts(const Program& program,
                         const Shape& shape,
                         const Analysis& analysis,
                         const JitEnv& env) {
  return Walk(program, shape, analysis, env).run();
}

}  // namespace spile::jit
