// Written to be compared with the specification line by line, not to be fast.
// Source: RFC 9669 (BPF instruction set architecture), sections 4 and 5.
#include "bpf/interpreter.h"

#include <cstring>
#include <limits>

#include "bpf/encoding.h"

namespace spile::bpf {

namespace {

constexpr size_t kStackBytes = 512;

uint64_t extend(uint64_t value, int size_bytes, bool is_signed) {
  switch (size_bytes) {
    case 1:
      return is_signed ? static_cast<uint64_t>(static_cast<int8_t>(value))
                       : static_cast<uint8_t>(value);
    case 2:
      return is_signed ? static_cast<uint64_t>(static_cast<int16_t>(value))
                       : static_cast<uint16_t>(value);
    case 4:
      return is_signed ? static_cast<uint64_t>(static_cast<int32_t>(value))
                       : static_cast<uint32_t>(value);
    default: return value;
  }
}

/// Signed, of width T; x / 0 is 0, x % 0 is x, and the smallest number divided by -1 is itself.
template <typename T>
uint64_t divide_signed(uint64_t dst, uint64_t src, bool wants_remainder) {
  T a = static_cast<T>(dst), b = static_cast<T>(src);
  T quotient = 0, remainder = a;
  if (b == -1) {
    quotient = static_cast<T>(0 - static_cast<std::make_unsigned_t<T>>(a));
    remainder = 0;
  } else if (b != 0) {
    quotient = a / b;
    remainder = a % b;
  }
  return static_cast<uint64_t>(
      static_cast<std::make_unsigned_t<T>>(wants_remainder ? remainder : quotient));
}

/// U is uint32_t or uint64_t; what comes out is zero-extended.
template <typename U>
uint64_t alu(uint8_t op, bool is_signed, U dst, U src) {
  using S = std::make_signed_t<U>;
  constexpr U kShiftMask = sizeof(U) * 8 - 1;
  switch (op) {
    case kAdd: return static_cast<U>(dst + src);
    case kSub: return static_cast<U>(dst - src);
    case kMul: return static_cast<U>(dst * src);
    case kDiv:
      if (is_signed) return divide_signed<S>(dst, src, false);
      return src == 0 ? 0 : dst / src;
    case kMod:
      if (is_signed) return divide_signed<S>(dst, src, true);
      return src == 0 ? dst : dst % src;
    case kOr: return dst | src;
    case kAnd: return dst & src;
    case kXor: return dst ^ src;
    case kLsh: return static_cast<U>(dst << (src & kShiftMask));
    case kRsh: return dst >> (src & kShiftMask);
    case kArsh: return static_cast<U>(static_cast<S>(dst) >> (src & kShiftMask));
    case kNeg: return static_cast<U>(0 - dst);
    default: return src;  // kMov
  }
}

template <typename U>
bool compare(uint8_t op, U a, U b) {
  using S = std::make_signed_t<U>;
  auto sa = static_cast<S>(a), sb = static_cast<S>(b);
  switch (op) {
    case kJeq: return a == b;
    case kJne: return a != b;
    case kJset: return (a & b) != 0;
    case kJgt: return a > b;
    case kJge: return a >= b;
    case kJlt: return a < b;
    case kJle: return a <= b;
    case kJsgt: return sa > sb;
    case kJsge: return sa >= sb;
    case kJslt: return sa < sb;
    default: return sa <= sb;  // kJsle
  }
}

class Machine {
 public:
  Machine(const Program& program, uint64_t context, const RunEnv& env)
      : program_(program), env_(env) {
    regs_.fill(env.other_regs);
    regs_[1] = context;
    if (!env.stack.empty()) stack_ = env.stack;
    regs_[10] = reinterpret_cast<uint64_t>(stack_.data() + stack_.size());
  }

  Result<RunResult> run();

 private:
  Result<void> step(const Insn& insn);
  void alu_insn(const Insn& insn);
  void move(const Insn& insn);
  void swap(const Insn& insn);
  Result<void> load_immediate(const Insn& insn);
  Result<void> load(const Insn& insn);
  Result<void> store(const Insn& insn);
  Result<void> atomic(const Insn& insn);
  Result<void> jump(const Insn& insn);
  Result<void> call(const Insn& insn);
  Result<void> require_access(uint64_t address, uint64_t size, bool is_write) const;
  uint64_t operand(const Insn& insn) const;

  template <typename T>
  uint64_t atomic_of(const Insn& insn, uint64_t address);

  const Program& program_;
  const RunEnv& env_;
  alignas(16) std::array<uint8_t, kStackBytes> own_stack_ = {};
  std::span<uint8_t> stack_ = own_stack_;
  std::array<uint64_t, 16> regs_ = {};  // 11 exist; 16 can be encoded
  size_t pc_ = 0;
  bool done_ = false;
};

Result<RunResult> Machine::run() {
  uint64_t insns = 0;
  while (!done_) {
    if (pc_ >= program_.size())
      return fail(ErrorCode::kUnsafe, "insn {}: outside the program", pc_);
    if (insns == env_.insn_budget)
      return fail(ErrorCode::kInvalid, "insn {}: budget of {} used up", pc_, insns);
    ++insns;
    SPILE_TRY_VOID(check_encoding(program_, pc_));
    SPILE_TRY_VOID(step(program_[pc_]));
    ++pc_;
  }
  return RunResult{regs_[0], insns};
}

Result<void> Machine::step(const Insn& insn) {
  switch (insn_class(insn)) {
    case kClassLd: return load_immediate(insn);
    case kClassLdx: return load(insn);
    case kClassSt: return store(insn);
    case kClassStx: return is_atomic(insn) ? atomic(insn) : store(insn);
    case kClassJmp:
    case kClassJmp32: return jump(insn);
    default: alu_insn(insn); return {};
  }
}

uint64_t Machine::operand(const Insn& insn) const {
  return uses_src_reg(insn) ? regs_[insn.src()] : static_cast<uint64_t>(int64_t{insn.imm});
}

void Machine::swap(const Insn& insn) {
  uint64_t value = regs_[insn.dst()];
  bool swaps = insn_class(insn) == kClassAlu64 || uses_src_reg(insn);
  if (swaps) value = __builtin_bswap64(value) >> (64 - insn.imm);
  regs_[insn.dst()] = extend(value, insn.imm / 8, false);
}

void Machine::move(const Insn& insn) {
  uint64_t value = operand(insn);
  if (insn.off != 0) value = extend(value, insn.off / 8, true);
  bool is_wide = insn_class(insn) == kClassAlu64;
  regs_[insn.dst()] = is_wide ? value : static_cast<uint32_t>(value);
}

void Machine::alu_insn(const Insn& insn) {
  uint8_t op = insn_op(insn);
  if (op == kEnd) return swap(insn);
  if (op == kMov) return move(insn);
  uint64_t& dst = regs_[insn.dst()];
  uint64_t src = operand(insn);
  bool is_signed = insn.off == kSignedOff;
  if (insn_class(insn) == kClassAlu64) {
    dst = alu<uint64_t>(op, is_signed, dst, src);
  } else {
    dst = alu<uint32_t>(op, is_signed, static_cast<uint32_t>(dst), static_cast<uint32_t>(src));
  }
}

Result<void> Machine::load_immediate(const Insn& insn) {
  uint64_t& dst = regs_[insn.dst()];
  if (insn.src() == kPseudoNone) {
    dst = static_cast<uint64_t>(static_cast<uint32_t>(program_[pc_ + 1].imm)) << 32 |
          static_cast<uint32_t>(insn.imm);
  } else {
    if (insn.imm < 0 || static_cast<size_t>(insn.imm) >= env_.maps.size()) {
      return fail(ErrorCode::kUnsafe, "insn {}: there is no map {}", pc_, insn.imm);
    }
    dst = env_.maps[static_cast<size_t>(insn.imm)];
  }
  ++pc_;
  return {};
}

Result<void> Machine::require_access(uint64_t address, uint64_t size, bool is_write) const {
  if (env_.ranges == nullptr) return {};
  auto is_inside = [&](uint64_t begin, uint64_t range_size) {
    return address >= begin && size <= range_size && address - begin <= range_size - size;
  };
  if (is_inside(reinterpret_cast<uint64_t>(stack_.data()), stack_.size())) return {};
  for (const MemoryRange& range : *env_.ranges) {
    if (is_inside(range.begin, range.size_bytes) && (range.writable || !is_write)) return {};
  }
  return fail(ErrorCode::kUnsafe,
              "insn {}: {} {} bytes at {:#x}, which is outside the allowed memory", pc_,
              is_write ? "writes" : "reads", size, address);
}

Result<void> Machine::load(const Insn& insn) {
  uint64_t address = regs_[insn.src()] + static_cast<uint64_t>(int64_t{insn.off});
  int size = access_size(insn);
  SPILE_TRY_VOID(require_access(address, static_cast<uint64_t>(size), false));
  uint64_t value = 0;
  std::memcpy(&value, reinterpret_cast<const void*>(address), static_cast<size_t>(size));
  regs_[insn.dst()] = extend(value, size, insn_mode(insn) == kModeMemSx);
  return {};
}

Result<void> Machine::store(const Insn& insn) {
  uint64_t address = regs_[insn.dst()] + static_cast<uint64_t>(int64_t{insn.off});
  auto size = static_cast<size_t>(access_size(insn));
  SPILE_TRY_VOID(require_access(address, size, true));
  uint64_t value =
      insn_class(insn) == kClassSt ? static_cast<uint64_t>(int64_t{insn.imm}) : regs_[insn.src()];
  std::memcpy(reinterpret_cast<void*>(address), &value, size);
  return {};
}

/// Really atomic: maps may be shared with other threads. Returns what was there before.
template <typename T>
uint64_t Machine::atomic_of(const Insn& insn, uint64_t address) {
  T* at = reinterpret_cast<T*>(address);
  T value = static_cast<T>(regs_[insn.src()]);
  switch (insn.imm) {
    case kXchg: return __atomic_exchange_n(at, value, __ATOMIC_SEQ_CST);
    case kCmpXchg: {
      T expected = static_cast<T>(regs_[0]);
      __atomic_compare_exchange_n(at, &expected, value, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
      return expected;
    }
    default: break;
  }
  switch (insn.imm & ~kFetch) {
    case kAtomicAdd: return __atomic_fetch_add(at, value, __ATOMIC_SEQ_CST);
    case kAtomicOr: return __atomic_fetch_or(at, value, __ATOMIC_SEQ_CST);
    case kAtomicAnd: return __atomic_fetch_and(at, value, __ATOMIC_SEQ_CST);
    default: return __atomic_fetch_xor(at, value, __ATOMIC_SEQ_CST);
  }
}

Result<void> Machine::atomic(const Insn& insn) {
  uint64_t address = regs_[insn.dst()] + static_cast<uint64_t>(int64_t{insn.off});
  auto size = static_cast<uint64_t>(access_size(insn));
  SPILE_TRY_VOID(require_access(address, size, true));
  if (address % size != 0)
    return fail(ErrorCode::kUnsafe, "insn {}: atomic on {:#x}: not aligned", pc_, address);
  uint64_t before =
      size == 8 ? atomic_of<uint64_t>(insn, address) : atomic_of<uint32_t>(insn, address);
  if (insn.imm == kCmpXchg) {
    regs_[0] = before;
  } else if ((insn.imm & kFetch) != 0) {
    regs_[insn.src()] = before;
  }
  return {};
}

Result<void> Machine::call(const Insn& insn) {
  const HelperTable::Function* function =
      env_.helpers != nullptr ? env_.helpers->find(insn.imm) : nullptr;
  if (function == nullptr) {
    return fail(ErrorCode::kUnsupported, "insn {}: nobody provides helper {}", pc_, insn.imm);
  }
  regs_[0] = (*function)(regs_[1], regs_[2], regs_[3], regs_[4], regs_[5]);
  return {};
}

Result<void> Machine::jump(const Insn& insn) {
  if (is_call(insn)) return call(insn);
  if (is_exit(insn)) {
    done_ = true;
    return {};
  }
  if (is_conditional_jump(insn)) {
    uint64_t a = regs_[insn.dst()], b = operand(insn);
    bool is_wide = insn_class(insn) == kClassJmp;
    bool holds = is_wide ? compare<uint64_t>(insn_op(insn), a, b)
                         : compare<uint32_t>(insn_op(insn), static_cast<uint32_t>(a),
                                             static_cast<uint32_t>(b));
    if (!holds) return {};
  }
  // run() adds one; a target before the program wraps to a huge index, which it refuses.
  pc_ = static_cast<size_t>(*jump_target(program_, pc_) - 1);
  return {};
}

}  // namespace

const HelperTable::Function* HelperTable::find(int32_t id) const {
  auto found = functions_.find(id);
  return found == functions_.end() ? nullptr : &found->second;
}

Result<RunResult> run(const Program& program, uint64_t context, const RunEnv& env) {
  return Machine(program, context, env).run();
}

}  // namespace spile::bpf
