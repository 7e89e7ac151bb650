// eBPF registers live in the x86 registers of the kernel's own JIT: r1 ... r5 are then already
// where the C ABI wants a helper's arguments. r10 and the context need none: the frame has a fixed
// size, so both are rsp plus a constant.
//
//   rsp + frame + 8   HitFrame
//   rsp + frame       return address, or a hole where the body is inlined
//   rsp + budget      eBPF's stack, r10 = rsp + frame
//   rsp               budget, only if something jumps back
//
// r9, r10 and r11 of x86 are scratch: r9 for a far address, r10 and r11 inside one instruction's
// translation.
#include "user_engine/jit/translate.h"

#include <algorithm>
#include <bit>
#include <optional>
#include <vector>

#include "user_engine/jit/emitter.h"

namespace spile::jit {

using namespace bpf;
namespace x86 = asmjit::x86;
using asmjit::Imm;
using x86::CondCode;

namespace {

using Kind = Value::Kind;

const Gp kResult = x86::rax, kHigh = x86::rdx, kCount = x86::rcx;
const Gp kAddressScratch = x86::r9, kScratch1 = x86::r10, kScratch2 = x86::r11;
const Gp kRegisters[10] = {x86::rax, x86::rdi, x86::rsi, x86::rdx, x86::rcx,
                           x86::r8,  x86::rbx, x86::r13, x86::r14, x86::r15};
constexpr uint32_t kBudgetBytes = 8;
constexpr int32_t kReturnAddressBytes = 8;

Gp sized(const Gp& reg, int bytes) {
  switch (bytes) {
    case 1: return reg.r8();
    case 2: return reg.r16();
    case 4: return reg.r32();
    default: return reg.r64();
  }
}

/// The same for a memory operand.
Mem sized(Mem mem, int bytes) {
  mem.setSize(static_cast<uint32_t>(bytes));
  return mem;
}

CondCode condition_of(uint8_t op) {
  switch (op) {
    case kJeq: return CondCode::kE;
    case kJne: return CondCode::kNE;
    case kJset: return CondCode::kNZ;
    case kJgt: return CondCode::kUnsignedGT;
    case kJge: return CondCode::kUnsignedGE;
    case kJlt: return CondCode::kUnsignedLT;
    case kJle: return CondCode::kUnsignedLE;
    case kJsgt: return CondCode::kSignedGT;
    case kJsge: return CondCode::kSignedGE;
    case kJslt: return CondCode::kSignedLT;
    default: return CondCode::kSignedLE;
  }
}

class Translator {
 public:
  Translator(const Source& source, const JitEnv& env)
      : program_(source.program),
        shape_(source.shape),
        facts_(source.facts),
        liveness_(source.liveness),
        env_(env),
        emit_(env.base),
        labels_(program_.size()),
        kept_before_(program_.size() + 1) {
    for (size_t at = 0; at < program_.size(); ++at)
      kept_before_[at + 1] = kept_before_[at] + liveness_.kept[at];
  }

  Result<Body> run() {
    lay_out_frame();
    enter();
    for (size_t at = 0; at < program_.size(); ++at) {
      if (!facts_.reached[at]) continue;
      if (labels_[at].isValid()) emit_.bind(labels_[at]);
      if (liveness_.kept[at]) instruction(at);
      if (emit_.offset() > kMaxBodyBytes)
        return fail(ErrorCode::kInvalid, "more than {} bytes of code", kMaxBodyBytes);
    }
    back_edges();
    return leave();
  }

 private:
  // ---- frame
  // ----------------------------------------------------------------------------------------------------

  void lay_out_frame() {
    for (size_t at = 0; at < program_.size(); ++at) {
      int32_t target = shape_.edges[at].target;
      bool jumps = facts_.reached[at] && target >= 0 && facts_.decision[at] != Decision::kNotTaken;
      if (!jumps) continue;
      if (!labels_[target].isValid()) labels_[target] = emit_.new_label();
      if (shape_.jumps_back(at)) has_back_edges_ = true;
    }
    frame_ = liveness_.stack_bytes + (has_back_edges_ ? kBudgetBytes : 0);
    exit_ = emit_.new_label();
  }

  void enter() {
    if (frame_ > 0)
      emit_.op(Inst::kIdLea, x86::rsp, x86::ptr(x86::rsp, -static_cast<int32_t>(frame_)));
    if (has_back_edges_)
      emit_.op(Inst::kIdMov, x86::dword_ptr(x86::rsp), Imm(static_cast<int32_t>(env_.budget)));
    bool wants_context_register = (liveness_.entry_registers & 1u << 1) != 0;
    if (wants_context_register) materialise(kRegisters[1], {Kind::kContext, 0});
  }

  Result<Body> leave() {
    emit_.bind(exit_);
    if (frame_ > 0)
      emit_.op(Inst::kIdLea, x86::rsp, x86::ptr(x86::rsp, static_cast<int32_t>(frame_)));
    Body body;
    body.code_bytes = static_cast<uint32_t>(emit_.offset());
    emit_.op(Inst::kIdRet);
    SPILE_TRY(body.bytes, emit_.finish());
    body.base = env_.base;
    body.relocations = emit_.relocations();
    body.reads = liveness_.context_reads;
    body.clobbers = emit_.clobbers();
    body.clobbers_flags = emit_.clobbers_flags();
    body.calls_helpers = calls_helpers_;
    body.stack_bytes = frame_ + helper_stack_;
    return body;
  }

  /// Out of line, one for each back edge: take one from the budget, go on or give up.
  void back_edges() {
    if (back_edges_.empty()) return;
    Label exhausted = emit_.new_label();
    for (const auto& [stub, target] : back_edges_) {
      emit_.bind(stub);
      emit_.op(Inst::kIdSub, x86::dword_ptr(x86::rsp), Imm(1));
      emit_.jump_if(CondCode::kUnsignedGE, labels_[target]);
      emit_.jump(exhausted);
    }
    emit_.bind(exhausted);
    if (env_.missed_counter.value != 0) {
      emit_.locked(Inst::kIdInc, sized(emit_.at(env_.missed_counter, kAddressScratch), 8));
    }
  }

  // ---- operands
  // ------------------------------------------------------------------------------------------------

  Mem relative(const Value& place) const {
    int32_t base =
        static_cast<int32_t>(frame_) + (place.kind == Kind::kContext ? kReturnAddressBytes : 0);
    return x86::ptr(x86::rsp, base + static_cast<int32_t>(place.number));
  }

  void materialise(const Gp& to, const Value& value) {
    if (value.is_const()) return emit_.load_constant(to, static_cast<uint64_t>(value.number));
    emit_.op(Inst::kIdLea, to, relative(value));
  }

  /// The x86 register that holds an eBPF register; r10 is made on the spot.
  Gp reg(int number, const Gp& scratch = kScratch2) {
    if (number < 10) return kRegisters[number];
    materialise(scratch, {Kind::kStack, 0});
    return scratch;
  }

  Mem place(size_t at, int bytes) {
    const Insn& insn = program_[at];
    auto known = facts_.known_place(program_, at);
    if (!known) return sized(x86::ptr(reg(base_register(insn), kAddressScratch), insn.off), bytes);
    if (!known->is_const()) return sized(relative(*known), bytes);
    return sized(emit_.at(TargetAddr(static_cast<uint64_t>(known->number)), kAddressScratch),
                 bytes);
  }

  /// The constant second operand of an ALU instruction or branch.
  std::optional<int32_t> immediate(size_t at) const {
    if (!has_source_register(program_[at])) return program_[at].imm;
    return facts_.constant_source(program_, at);
  }

  // ---- dispatch
  // ------------------------------------------------------------------------------------------------

  void instruction(size_t at) {
    const Insn& insn = program_[at];
    if (facts_.result[at].is_known())
      return materialise(reg(is_call(insn) ? 0 : insn.dst()), facts_.result[at]);
    if (is_alu(insn)) return alu(at, insn);
    if (is_load(insn)) return load(at, insn);
    if (is_store(insn)) return store(at, insn);
    if (is_atomic(insn)) return atomic(at, insn);
    if (is_call(insn)) return call(at, insn);
    if (is_exit(insn)) return leave_program(at);
    if (is_branch(insn)) return branch(at, insn);
    jump(at);
  }

  // ---- arithmetic
  // ----------------------------------------------------------------------------------------------

  void alu(size_t at, const Insn& insn) {
    switch (operation(insn)) {
      case kAdd: return two_operands(Inst::kIdAdd, at, insn);
      case kSub: return two_operands(Inst::kIdSub, at, insn);
      case kOr: return two_operands(Inst::kIdOr, at, insn);
      case kAnd: return two_operands(Inst::kIdAnd, at, insn);
      case kXor: return two_operands(Inst::kIdXor, at, insn);
      case kMul: return multiply(at, insn);
      case kDiv:
      case kMod: return divide(at, insn);
      case kLsh: return shift(Inst::kIdShl, at, insn);
      case kRsh: return shift(Inst::kIdShr, at, insn);
      case kArsh: return shift(Inst::kIdSar, at, insn);
      case kNeg: return emit_.op(Inst::kIdNeg, dst(insn));
      case kMov: return move(insn);
      default: return byte_order(insn);
    }
  }

  static int width(const Insn& insn) { return is_alu64(insn) ? 8 : 4; }
  static Gp dst(const Insn& insn) { return sized(kRegisters[insn.dst()], width(insn)); }

  void two_operands(asmjit::InstId id, size_t at, const Insn& insn) {
    if (auto imm = immediate(at)) {
      emit_.op(id, dst(insn), Imm(*imm));
    } else {
      emit_.op(id, dst(insn), sized(reg(insn.src()), width(insn)));
    }
  }

  void multiply(size_t at, const Insn& insn) {
    if (auto imm = immediate(at)) {
      emit_.op(Inst::kIdImul, dst(insn), dst(insn), Imm(*imm));
    } else {
      emit_.op(Inst::kIdImul, dst(insn), sized(reg(insn.src()), width(insn)));
    }
  }

  void move(const Insn& insn) {
    if (!has_source_register(insn)) {
      uint64_t value = is_alu64(insn) ? static_cast<uint64_t>(int64_t{insn.imm})
                                      : static_cast<uint32_t>(insn.imm);
      return emit_.load_constant(kRegisters[insn.dst()], value);
    }
    Gp from = reg(insn.src());
    switch (insn.off) {
      case 8: return emit_.op(Inst::kIdMovsx, dst(insn), from.r8());
      case 16: return emit_.op(Inst::kIdMovsx, dst(insn), from.r16());
      case 32: return emit_.op(Inst::kIdMovsxd, dst(insn), from.r32());
      default: return emit_.op(Inst::kIdMov, dst(insn), sized(from, width(insn)));
    }
  }

  void byte_order(const Insn& insn) {
    Gp reg64 = kRegisters[insn.dst()];
    bool swaps = is_alu64(insn) || has_source_register(insn);  // unconditional, or to big endian
    switch (insn.imm) {
      case 16:
        if (swaps) emit_.op(Inst::kIdRol, reg64.r16(), Imm(8));
        return emit_.op(Inst::kIdMovzx, reg64.r32(), reg64.r16());
      case 32:
        return swaps ? emit_.op(Inst::kIdBswap, reg64.r32())
                     : emit_.op(Inst::kIdMov, reg64.r32(), reg64.r32());
      default: return swaps ? emit_.op(Inst::kIdBswap, reg64) : void();
    }
  }

  // ---- shifts: x86 wants the count in cl
  // -----------------------------------------------------------------------

  void shift(asmjit::InstId id, size_t at, const Insn& insn) {
    int bits = width(insn) * 8;
    if (auto imm = immediate(at)) return emit_.op(id, dst(insn), Imm(*imm & (bits - 1)));
    Gp target = dst(insn), count = reg(insn.src());
    if (count.id() == kCount.id()) return emit_.op(id, target, x86::cl);
    emit_.op(Inst::kIdMov, kScratch1, kCount);
    emit_.op(Inst::kIdMov, x86::ecx, count.r32());
    if (target.id() != kCount.id()) {
      emit_.op(id, target, x86::cl);
      return emit_.op(Inst::kIdMov, kCount, kScratch1);
    }
    emit_.op(id, sized(kScratch1, width(insn)), x86::cl);
    emit_.op(Inst::kIdMov, kCount, kScratch1);
  }

  // ---- division: x86 wants rdx:rax; eBPF wants x / 0 = 0, x % 0 = x, min / -1 = min
  // ----------------------------

  void divide(size_t at, const Insn& insn) {
    if (insn.off == 0 && divide_by_power_of_two(at, insn)) return;
    Label done = emit_.new_label(), by_zero = emit_.new_label();
    Gp divisor = sized(kScratch2, width(insn));
    if (auto imm = immediate(at)) {
      emit_.op(Inst::kIdMov, divisor, Imm(*imm));
    } else {
      emit_.op(Inst::kIdMov, divisor, sized(reg(insn.src()), width(insn)));
    }
    emit_.op(Inst::kIdTest, divisor, divisor);
    emit_.jump_if(CondCode::kZ, by_zero);
    if (insn.off != 0) divide_by_minus_one(insn, divisor, done);
    divide_in_rax(insn, divisor);
    emit_.jump(done);
    emit_.bind(by_zero);
    if (operation(insn) == kDiv)
      emit_.op(Inst::kIdXor, dst(insn), dst(insn));
    else if (!is_alu64(insn))
      emit_.op(Inst::kIdMov, dst(insn), dst(insn));
    emit_.bind(done);
  }

  bool divide_by_power_of_two(size_t at, const Insn& insn) {
    auto imm = immediate(at);
    if (!imm || *imm <= 0 || !std::has_single_bit(static_cast<uint32_t>(*imm))) return false;
    if (operation(insn) == kMod) {
      emit_.op(Inst::kIdAnd, dst(insn), Imm(*imm - 1));
    } else {
      emit_.op(Inst::kIdShr, dst(insn), Imm(std::countr_zero(static_cast<uint32_t>(*imm))));
      if (*imm == 1 && !is_alu64(insn)) emit_.op(Inst::kIdMov, dst(insn), dst(insn));
    }
    return true;
  }

  /// The CPU traps on the smallest number / -1.
  void divide_by_minus_one(const Insn& insn, const Gp& divisor, const Label& done) {
    Label other = emit_.new_label();
    emit_.op(Inst::kIdCmp, divisor, Imm(-1));
    emit_.jump_if(CondCode::kNE, other);
    if (operation(insn) == kDiv)
      emit_.op(Inst::kIdNeg, dst(insn));
    else
      emit_.op(Inst::kIdXor, dst(insn), dst(insn));
    emit_.jump(done);
    emit_.bind(other);
  }

  void divide_in_rax(const Insn& insn, const Gp& divisor) {
    Gp target = kRegisters[insn.dst()];
    bool keep_rax = target.id() != kResult.id(), keep_rdx = target.id() != kHigh.id();
    if (keep_rax) emit_.op(Inst::kIdMov, kScratch1, kResult);
    if (keep_rdx) emit_.op(Inst::kIdMov, kAddressScratch, kHigh);
    if (keep_rax) emit_.op(Inst::kIdMov, kResult, target);
    bool wide = is_alu64(insn), is_signed = insn.off != 0;
    Gp rax = sized(kResult, width(insn)), rdx = sized(kHigh, width(insn));
    if (!is_signed)
      emit_.op(Inst::kIdXor, x86::edx, x86::edx);
    else
      emit_.op(wide ? Inst::kIdCqo : Inst::kIdCdq, rdx, rax);
    emit_.op(is_signed ? Inst::kIdIdiv : Inst::kIdDiv, rdx, rax, divisor);
    const Gp& result = operation(insn) == kDiv ? kResult : kHigh;
    if (target.id() != result.id()) emit_.op(Inst::kIdMov, target, result);
    if (keep_rax) emit_.op(Inst::kIdMov, kResult, kScratch1);
    if (keep_rdx) emit_.op(Inst::kIdMov, kHigh, kAddressScratch);
  }

  // ---- memory
  // --------------------------------------------------------------------------------------------------

  void load(size_t at, const Insn& insn) {
    int bytes = access_bytes(insn);
    Mem from = place(at, bytes);
    Gp to = kRegisters[insn.dst()];
    bool sign_extends = (insn.code & 0xe0) == kModeMemSx;
    if (sign_extends) return emit_.op(bytes == 4 ? Inst::kIdMovsxd : Inst::kIdMovsx, to, from);
    if (bytes < 4) return emit_.op(Inst::kIdMovzx, to.r32(), from);
    emit_.op(Inst::kIdMov, sized(to, bytes), from);
  }

  void store(size_t at, const Insn& insn) {
    int bytes = access_bytes(insn);
    Mem to = place(at, bytes);
    std::optional<int32_t> imm =
        insn_class(insn) == kClassSt ? insn.imm : facts_.constant_source(program_, at);
    if (imm) return emit_.op(Inst::kIdMov, to, Imm(truncated(*imm, bytes)));
    emit_.op(Inst::kIdMov, to, sized(reg(insn.src()), bytes));
  }

  static int64_t truncated(int32_t imm, int bytes) {
    if (bytes == 1) return static_cast<int8_t>(imm);
    if (bytes == 2) return static_cast<int16_t>(imm);
    return imm;
  }

  // ---- atomics
  // -------------------------------------------------------------------------------------------------

  void atomic(size_t at, const Insn& insn) {
    int bytes = access_bytes(insn);
    if (insn.imm == kCmpXchg) return compare_exchange(at, insn, bytes);
    bool fetches = (insn.imm & kFetch) != 0;
    if (fetches && insn.imm != kXchg && insn.imm != (kAtomicAdd | kFetch))
      return fetch_and_modify(at, insn, bytes);
    Mem where = place(at, bytes);
    if (insn.imm == kXchg) return emit_.op(Inst::kIdXchg, where, sized(reg(insn.src()), bytes));
    if (fetches) return emit_.locked(Inst::kIdXadd, where, sized(reg(insn.src()), bytes));
    if (auto imm = facts_.constant_source(program_, at))
      return emit_.locked(bitwise(insn.imm), where, Imm(*imm));
    emit_.locked(bitwise(insn.imm), where, sized(reg(insn.src()), bytes));
  }

  static asmjit::InstId bitwise(int32_t atomic_op) {
    switch (atomic_op & ~kFetch) {
      case kAtomicAdd: return Inst::kIdAdd;
      case kAtomicOr: return Inst::kIdOr;
      case kAtomicAnd: return Inst::kIdAnd;
      default: return Inst::kIdXor;
    }
  }

  void compare_exchange(size_t at, const Insn& insn, int bytes) {
    Mem where = place(at, bytes);
    emit_.locked(Inst::kIdCmpxchg, where, sized(reg(insn.src()), bytes), sized(kResult, bytes));
    if (bytes == 4)
      emit_.op(Inst::kIdMov, x86::eax, x86::eax);  // a success leaves the upper half alone
  }

  /// x86 has no fetching and, or, xor: a compare-exchange loop, as in the kernel's JIT. It repeats
  /// only when another CPU succeeded meanwhile.
  ///   mov %rax,%r11;  mov (m),%rax
  ///   again: mov %rax,%r10;  op src,%r10;  lock cmpxchg %r10,(m);  jne again
  ///   mov %rax,src;  mov %r11,%rax
  void fetch_and_modify(size_t at, const Insn& insn, int bytes) {
    Mem where = place(at, bytes);
    if (where.hasBaseReg() && where.baseId() == kResult.id()) where.setBase(kScratch2);
    Gp source = kRegisters[insn.src()];
    bool source_is_rax = source.id() == kResult.id();
    emit_.op(Inst::kIdMov, kScratch2, kResult);
    emit_.op(Inst::kIdMov, sized(kResult, bytes), where);
    Label again = emit_.new_label();
    emit_.bind(again);
    emit_.op(Inst::kIdMov, kScratch1, kResult);
    emit_.op(bitwise(insn.imm), kScratch1, source_is_rax ? kScratch2 : source);
    emit_.locked(Inst::kIdCmpxchg, where, sized(kScratch1, bytes), sized(kResult, bytes));
    emit_.jump_if(CondCode::kNE, again);
    if (source_is_rax) return;
    emit_.op(Inst::kIdMov, source, kResult);
    emit_.op(Inst::kIdMov, kResult, kScratch2);
  }

  // ---- calls
  // ---------------------------------------------------------------------------------------------------

  void call(size_t at, const Insn& insn) {
    const CallFacts& facts = facts_.calls[at];
    switch (facts.plan) {
      case CallPlan::kPerCpuAddress: return per_cpu_address(facts);
      case CallPlan::kIndex: return index(at, *facts.array);
      case CallPlan::kCpu: return emit_.load_cpu(kResult, env_.cpu, UINT32_MAX);
      case CallPlan::kCookie:
        return emit_.op(Inst::kIdMov, kResult,
                        relative({Kind::kContext, offsetof(abi::HitFrame, cookie)}));
      default: break;
    }
    const HelperCode& helper = env_.helpers.at(insn.imm);
    emit_.call_helper(helper.address);
    calls_helpers_ = true;
    helper_stack_ = std::max(helper_stack_, helper.stack_bytes);
  }

  void per_cpu_address(const CallFacts& facts) {
    const ArrayLayout& array = *facts.array;
    emit_.load_cpu(kResult, env_.cpu, array.cpu_mask);
    emit_.multiply(kResult, array.cpu_stride);
    emit_.load_constant(kScratch2,
                        (array.storage + uint64_t{facts.key} * array.value_stride).value);
    emit_.op(Inst::kIdAdd, kResult, kScratch2);
  }

  /// rax = key < max_entries ? address of its value : 0
  void index(size_t at, const ArrayLayout& array) {
    Label done = emit_.new_label(), outside = emit_.new_label();
    const Value& key = facts_.before[at][2];
    Mem where = key.kind == Kind::kStack ? relative(key) : x86::ptr(kRegisters[2]);
    emit_.op(Inst::kIdMov, x86::eax, sized(where, 4));
    emit_.op(Inst::kIdCmp, x86::eax, Imm(static_cast<int32_t>(array.max_entries)));
    emit_.jump_if(CondCode::kUnsignedGE, outside);
    emit_.multiply(kResult, array.value_stride);
    if (array.cpu_stride != 0) {
      emit_.load_cpu(kScratch2, env_.cpu, array.cpu_mask);
      emit_.multiply(kScratch2, array.cpu_stride);
      emit_.op(Inst::kIdAdd, kResult, kScratch2);
    }
    emit_.load_constant(kScratch2, array.storage.value);
    emit_.op(Inst::kIdAdd, kResult, kScratch2);
    emit_.jump(done);
    emit_.bind(outside);
    emit_.op(Inst::kIdXor, x86::eax, x86::eax);
    emit_.bind(done);
  }

  // ---- jumps
  // ---------------------------------------------------------------------------------------------------

  void leave_program(size_t at) {
    bool falls_into_exit = !has_back_edges_ && nothing_between(at, program_.size());
    if (!falls_into_exit) emit_.jump(exit_);
  }

  /// Where a jump goes: straight there, or past the budget if it goes backwards.
  Label destination(size_t at) {
    int32_t target = shape_.edges[at].target;
    if (!shape_.jumps_back(at)) return labels_[target];
    back_edges_.push_back({emit_.new_label(), target});
    return back_edges_.back().stub;
  }

  void jump(size_t at) {
    if (!shape_.jumps_back(at) && nothing_between(at, shape_.edges[at].target)) return;
    emit_.jump(destination(at));
  }

  /// No kept instruction after `from` and before `to`.
  bool nothing_between(size_t from, size_t to) const {
    return kept_before_[to] == kept_before_[from + 1];
  }

  void branch(size_t at, const Insn& insn) {
    if (facts_.decision[at] == Decision::kNotTaken) return;
    if (facts_.decision[at] == Decision::kTaken) return jump(at);
    if (!shape_.jumps_back(at) && nothing_between(at, shape_.edges[at].target)) return;
    int bytes = insn_class(insn) == kClassJmp ? 8 : 4;
    Gp left = sized(reg(insn.dst(), kScratch1), bytes);
    asmjit::InstId id = operation(insn) == kJset ? Inst::kIdTest : Inst::kIdCmp;
    if (auto imm = immediate(at)) {
      emit_.op(id, left, Imm(*imm));
    } else {
      emit_.op(id, left, sized(reg(insn.src(), kScratch2), bytes));
    }
    emit_.jump_if(condition_of(operation(insn)), destination(at));
  }

  struct BackEdge {
    Label stub;
    int32_t target;
  };

  const Program& program_;
  const Shape& shape_;
  const Facts& facts_;
  const Liveness& liveness_;
  const JitEnv& env_;
  Emitter emit_;
  std::vector<Label> labels_;          ///< by instruction, for those that are jumped to
  std::vector<uint32_t> kept_before_;  ///< kept instructions before each
  std::vector<BackEdge> back_edges_;
  Label exit_;
  uint32_t frame_ = 0;
  uint32_t helper_stack_ = 0;
  bool has_back_edges_ = false;
  bool calls_helpers_ = false;
};

}  // namespace

Result<Body> translate(const Source& source, const JitEnv& env) {
  return Translator(source, env).run();
}

}  // namespace spile::jit
