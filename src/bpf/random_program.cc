#include "bpf/random_program.h"

#include <bit>
#include <iterator>
#include <random>

#include "bpf/encoding.h"

namespace spile::bpf {

namespace {

constexpr int kStackSlots = 8;  // of eight bytes, all initialised at the start

constexpr uint8_t kAluOps[] = {kAdd, kSub, kMul, kDiv, kOr,  kAnd, kLsh,
                               kRsh, kNeg, kMod, kXor, kMov, kArsh};
constexpr uint8_t kJumpOps[] = {kJeq, kJne,  kJset, kJgt,  kJge, kJlt,
                                kJle, kJsgt, kJsge, kJslt, kJsle};
constexpr int32_t kAtomicOps[] = {kAtomicAdd, kAtomicOr, kAtomicAnd, kAtomicXor, kXchg, kCmpXchg};
constexpr uint8_t kSizes[] = {kSizeB, kSizeH, kSizeW, kSizeDw};
constexpr uint64_t kCorners[] = {0,
                                 1,
                                 2,
                                 0x7f,
                                 0x80,
                                 0xff,
                                 0x7fff,
                                 0x8000,
                                 0x7fffffff,
                                 0x80000000,
                                 0xffffffff,
                                 0x100000000,
                                 0x7fffffffffffffff,
                                 0x8000000000000000,
                                 0xffffffffffffffff};

class Generator {
 public:
  Generator(uint64_t seed, const RandomProgramOptions& options)
      : options_(options), random_(seed) {}

  Program make() {
    setup();
    block(options_.operations, 0);
    fold_into_r0();
    return std::move(code_);
  }

 private:
  // Not uniform_int_distribution: what that gives for a seed is the library's choice.
  uint64_t below(uint64_t bound) { return random_() % bound; }
  bool one_in(uint64_t n) { return below(n) == 0; }
  template <typename T, size_t N>
  T pick(const T (&from)[N]) {
    return from[below(N)];
  }

  uint64_t number() {
    switch (below(4)) {
      case 0: return pick(kCorners);
      case 1: return 0 - pick(kCorners);
      case 2: return random_() >> below(64);
      default: return random_();
    }
  }
  int any_reg() { return static_cast<int>(below(10)); }
  /// Counters of the loops we are in are not written: r9, r8.
  int free_reg() { return static_cast<int>(below(static_cast<uint64_t>(10 - loops_))); }

  void emit(unsigned code, int dst, int src, int64_t off, int64_t imm) {
    code_.push_back({static_cast<uint8_t>(code), static_cast<uint8_t>(dst | src << 4),
                     static_cast<int16_t>(off), static_cast<int32_t>(imm)});
  }

  void load_constant(int reg, uint64_t value) {
    emit(kClassLd | kSizeDw | kModeImm, reg, 0, 0, static_cast<int32_t>(value));
    emit(0, 0, 0, 0, static_cast<int32_t>(value >> 32));
  }

  void setup() {
    for (int reg = 0; reg < 10; ++reg) load_constant(reg, number());
    for (int slot = 1; slot <= kStackSlots; ++slot)
      emit(kClassStx | kSizeDw | kModeMem, 10, any_reg(), -8 * slot, 0);
  }

  /// Every register and slot has a say in the result.
  void fold_into_r0() {
    auto add = [&](int reg) {
      emit(kClassAlu64 | kMul, 0, 0, 0, 31);
      emit(kClassAlu64 | kAdd | kSrcX, 0, reg, 0, 0);
    };
    for (int reg = 1; reg < 10; ++reg) add(reg);
    for (int slot = 1; slot <= kStackSlots; ++slot) {
      emit(kClassLdx | kSizeDw | kModeMem, 1, 10, -8 * slot, 0);
      add(1);
    }
    emit(kClassJmp | kExit, 0, 0, 0, 0);
  }

  void alu() {
    unsigned cls = one_in(2) ? kClassAlu64 : kClassAlu;
    int bits = cls == kClassAlu64 ? 64 : 32;
    uint8_t op = pick(kAluOps);
    bool is_division = op == kDiv || op == kMod, is_shift = op == kLsh || op == kRsh || op == kArsh;
    int off = is_division && options_.cpu_v4 && one_in(2) ? kSignedOff : 0;
    if (op == kNeg) return emit(cls | op, free_reg(), 0, 0, 0);
    if (one_in(2)) {
      if (op == kMov && options_.cpu_v4 && one_in(2)) off = 8 << below(bits == 64 ? 3 : 2);
      return emit(cls | op | kSrcX, free_reg(), any_reg(), off, 0);
    }
    auto imm = static_cast<int32_t>(number());
    if (is_shift) imm = static_cast<int32_t>(below(static_cast<uint64_t>(bits)));
    if (is_division && imm == 0) imm = 3;
    emit(cls | op, free_reg(), 0, off, imm);
  }

  void swap() {
    int bits = 16 << below(3);
    if (options_.cpu_v4 && one_in(3)) return emit(kClassAlu64 | kEnd, free_reg(), 0, 0, bits);
    emit(kClassAlu | kEnd | (one_in(2) ? kSrcX : kSrcK), free_reg(), 0, 0, bits);
  }

  int64_t stack_offset(int size) {
    auto places = static_cast<uint64_t>(kStackSlots * 8 / size);
    return -kStackSlots * 8 + static_cast<int64_t>(below(places)) * size;
  }

  void memory() {
    uint8_t size = pick(kSizes);
    int bytes = access_size({.code = size});
    int64_t off = stack_offset(bytes);
    bool is_signed = options_.cpu_v4 && bytes < 8 && one_in(3);
    switch (below(3)) {
      case 0:
        return emit(kClassLdx | size | (is_signed ? kModeMemSx : kModeMem), free_reg(), 10, off, 0);
      case 1: return emit(kClassStx | size | kModeMem, 10, any_reg(), off, 0);
      default: return emit(kClassSt | size | kModeMem, 10, 0, off, static_cast<int32_t>(number()));
    }
  }

  void atomic() {
    uint8_t size = one_in(2) ? kSizeDw : kSizeW;
    int32_t operation = pick(kAtomicOps);
    if (operation == kCmpXchg && !options_.narrow_cmpxchg) size = kSizeDw;
    if (one_in(2)) operation |= kFetch;
    int src = (operation & kFetch) != 0 ? free_reg() : any_reg();
    emit(kClassStx | size | kModeAtomic, 10, src, stack_offset(access_size({.code = size})),
         operation);
  }

  /// Emits a jump whose distance is not known yet.
  size_t open_jump(bool is_conditional) {
    size_t at = code_.size();
    if (!is_conditional) {
      emit(options_.cpu_v4 && one_in(2) ? kClassJmp32 | kJa : kClassJmp | kJa, 0, 0, 0, 0);
    } else if (unsigned cls = one_in(2) ? kClassJmp : kClassJmp32; one_in(2)) {
      emit(cls | pick(kJumpOps) | kSrcX, any_reg(), any_reg(), 0, 0);
    } else {
      emit(cls | pick(kJumpOps), any_reg(), 0, 0, static_cast<int32_t>(number()));
    }
    return at;
  }

  void close_jump(size_t at) {
    auto distance = static_cast<int32_t>(code_.size() - at - 1);
    bool is_long = code_[at].code == (kClassJmp32 | kJa);
    if (is_long) {
      code_[at].imm = distance;
    } else {
      code_[at].off = static_cast<int16_t>(distance);
    }
  }

  void branch(int operations, int depth) {
    size_t over = open_jump(true);
    block(operations, depth + 1);
    if (one_in(2)) return close_jump(over);
    size_t end = open_jump(false);
    close_jump(over);
    block(operations, depth + 1);
    close_jump(end);
  }

  void loop(int operations, int depth) {
    int counter = 9 - loops_++;
    emit(kClassAlu64 | kMov, counter, 0, 0, static_cast<int64_t>(1 + below(4)));
    auto head = static_cast<int64_t>(code_.size());
    block(operations, depth + 1);
    emit(kClassAlu64 | kSub, counter, 0, 0, 1);
    emit(kClassJmp | kJne, counter, 0, head - static_cast<int64_t>(code_.size()) - 1, 0);
    --loops_;
  }

  void block(int operations, int depth) {
    while (operations > 0) {
      int inner = 1 + static_cast<int>(below(8));
      bool may_nest = depth < 3 && inner < operations;
      if (options_.forward_jumps && may_nest && one_in(6)) {
        branch(inner, depth);
        operations -= inner;
      } else if (options_.loops && may_nest && loops_ < 2 && one_in(15)) {
        loop(inner, depth);
        operations -= inner;
      } else {
        single();
        --operations;
      }
    }
  }

  void single() {
    uint64_t choice = below(12);
    if (choice < 3 && options_.memory) return memory();
    if (choice == 3 && options_.atomics) return atomic();
    if (choice == 4) return swap();
    if (choice == 5) return load_constant(free_reg(), number());
    alu();
  }

  const RandomProgramOptions& options_;
  std::mt19937_64 random_;
  Program code_;
  int loops_ = 0;
};

}  // namespace

Program random_program(uint64_t seed, const RandomProgramOptions& options) {
  return Generator(seed, options).make();
}

}  // namespace spile::bpf
