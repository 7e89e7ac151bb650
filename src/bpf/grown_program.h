// Test support: random programs that use everything (context, maps, records, loops, pointer
// arithmetic) and that the checker accepts, just barely.
//
// A program grows piece by piece; a piece that makes the checker refuse is dropped again, so that
// most pieces are at the edge of what is allowed.
#pragma once

#include <cstdint>
#include <iterator>
#include <random>
#include <vector>

#include "bpf/checker.h"
#include "bpf/encoding.h"
#include "bpf/insn.h"

namespace spile::bpf {

/// The maps of grown programs: a hash, an array and a ring.
inline const std::vector<MapInfo> kGrownMaps = {
    {MapKind::kHash, 8, 16, 4}, {MapKind::kArray, 4, 32, 4}, {MapKind::kRing, 0, 0, 4096}};
inline constexpr int kGrownRing = 2;
inline constexpr uint32_t kGrownContextBytes = 64;

class ProgramGrower {
 public:
  explicit ProgramGrower(uint64_t seed, bool with_loops = true, uint32_t states_kept = 8)
      : with_loops_(with_loops), random_(seed) {
    env_.limits.states_kept = states_kept;
    env_.context_size = kGrownContextBytes;
    env_.maps = kGrownMaps;
    emit(kClassAlu64 | kMov | kSrcX, 6, 1, 0, 0);
    emit(kClassAlu64 | kMov, 0, 0, 0, 1);
    bool has_stack = below(2) != 0;
    for (int slot = 1; has_stack && slot <= 6; ++slot)
      emit(kClassSt | kSizeDw | kModeMem, 10, 0, -8 * slot, slot);
  }

  Program grow(int pieces) {
    for (int i = 0; i < pieces; ++i) {
      size_t before = code_.size();
      piece();
      if (!check(finished(), env_)) code_.resize(before);
    }
    return finished();
  }
  const CheckEnv& env() const { return env_; }

 private:
  static constexpr uint8_t kAluOps[] = {kAdd, kSub, kMul, kDiv, kOr,  kAnd,
                                        kLsh, kRsh, kMod, kXor, kMov, kArsh};
  static constexpr uint8_t kJumpOps[] = {kJeq, kJne,  kJset, kJgt,  kJge, kJlt,
                                         kJle, kJsgt, kJsge, kJslt, kJsle};
  static constexpr int32_t kAtomicOps[] = {kAtomicAdd, kAtomicOr, kAtomicAnd,
                                           kAtomicXor, kXchg,     kCmpXchg};
  static constexpr uint8_t kSizes[] = {kSizeB, kSizeH, kSizeW, kSizeDw};

  uint64_t below(uint64_t bound) { return random_() % bound; }
  template <typename T, size_t N>
  T pick(const T (&from)[N]) {
    return from[below(N)];
  }
  int reg() { return static_cast<int>(below(11)); }
  int scratch() { return static_cast<int>(below(10)); }
  void emit(unsigned code, int dst, int src, int64_t off, int64_t imm) {
    code_.push_back({static_cast<uint8_t>(code), static_cast<uint8_t>(dst | src << 4),
                     static_cast<int16_t>(off), static_cast<int32_t>(imm)});
  }
  void call(Helper helper) { emit(kClassJmp | kCall, 0, 0, 0, static_cast<int32_t>(helper)); }
  void load_map(int dst, int map) {
    emit(kClassLd | kSizeDw | kModeImm, dst, kPseudoMapIdx, 0, map);
    emit(0, 0, 0, 0, 0);
  }

  Program finished() const {
    Program program = code_;
    program.push_back({kClassAlu64 | kMov | kSrcX, 0x80, 0, 0});  // r0 = r8
    program.push_back({kClassJmp | kExit, 0, 0, 0});
    Program without = code_;
    without.push_back({kClassAlu64 | kMov, 0, 0, 7});
    without.push_back({kClassJmp | kExit, 0, 0, 0});
    return check(program, env_) ? program : without;
  }

  int64_t small() {
    constexpr int64_t corners[] = {0,  1,  2,  4,  7,  8,  15,         16,
                                   31, 32, 63, 64, -1, -8, 0x7fffffff, -0x80000000ll};
    return pick(corners);
  }
  int64_t stack_offset() {
    return -8 * static_cast<int64_t>(1 + below(6)) + (below(4) == 0 ? small() % 8 : 0);
  }

  void alu() {
    unsigned cls = below(3) != 0 ? kClassAlu64 : kClassAlu;
    uint8_t op = pick(kAluOps);
    if (below(2) != 0) op = below(2) != 0 ? kAdd : kMov;
    if (below(10) == 0)
      return emit(kClassAlu | kEnd | (below(2) != 0 ? kSrcX : 0), scratch(), 0, 0, 16 << below(3));
    if (below(10) == 0)
      return emit(cls | kMov | kSrcX, scratch(), reg(), 8 << below(cls == kClassAlu ? 2 : 3), 0);
    if (below(2) != 0) return emit(cls | op | kSrcX, scratch(), reg(), 0, 0);
    emit(cls | op, scratch(), 0, 0, small());
  }
  void memory() {
    int base = below(3) == 0 ? reg() : 10;
    int64_t off = base == 10 ? stack_offset() : static_cast<int64_t>(below(40)) - 4;
    switch (below(4)) {
      case 0: return emit(kClassLdx | pick(kSizes) | kModeMem, scratch(), base, off, 0);
      case 1:
        return emit(kClassLdx | pick(kSizes) | (below(3) == 0 ? kModeMemSx : kModeMem), scratch(),
                    base, off, 0);
      case 2: return emit(kClassStx | pick(kSizes) | kModeMem, base, reg(), off, 0);
      default: return emit(kClassSt | pick(kSizes) | kModeMem, base, 0, off, small());
    }
  }
  void context() {
    emit(kClassLdx | pick(kSizes) | kModeMem, scratch(), 6, static_cast<int64_t>(below(9)) * 8, 0);
  }
  void atomic() {
    int32_t op = pick(kAtomicOps) | (below(2) != 0 ? kFetch : 0);
    emit(kClassStx | (below(2) != 0 ? kSizeDw : kSizeW) | kModeAtomic, below(2) != 0 ? 10 : reg(),
         scratch(), stack_offset(), op);
  }
  /// A bound: if reg op small goto over a few instructions.
  void branch() {
    unsigned cls = below(3) != 0 ? kClassJmp : kClassJmp32;
    size_t at = code_.size();
    bool with_reg = below(3) == 0;
    emit(cls | pick(kJumpOps) | (with_reg ? kSrcX : 0), scratch(), with_reg ? scratch() : 0, 0,
         with_reg ? 0 : small());
    for (uint64_t n = 1 + below(4); n > 0; --n) simple();
    if (below(3) == 0) {
      emit(kClassAlu64 | kMov, 0, 0, 0, 3);
      emit(kClassJmp | kExit, 0, 0, 0, 0);
    }
    code_[at].off = static_cast<int16_t>(code_.size() - at - 1);
  }
  void loop() {
    int64_t head = static_cast<int64_t>(code_.size());
    for (uint64_t n = 1 + below(4); n > 0; --n) simple();
    emit(kClassJmp | pick(kJumpOps), scratch(), 0, head - static_cast<int64_t>(code_.size()) - 1,
         small());
  }
  /// An index that was compared, itself or something made from it, and then used on whatever
  /// pointer is there.
  void index() {
    int x = 1 + static_cast<int>(below(5)), y = 1 + static_cast<int>(below(5));
    unsigned mode = below(3) == 0 ? kModeMemSx : kModeMem;
    emit(kClassLdx | pick(kSizes) | mode, x, 6, static_cast<int64_t>(below(8)) * 8, 0);
    if (below(2) != 0)
      emit(kClassLdx | kSizeDw | kModeMem, y, 6, static_cast<int64_t>(below(8)) * 8, 0);
    bool is_32bit = below(2) != 0;
    unsigned move = (is_32bit ? kClassAlu : kClassAlu64) | kMov | kSrcX;
    if (below(2) != 0) emit(move, y, x, below(3) != 0 ? 0 : 8 << below(is_32bit ? 2 : 3), 0);
    if (below(4) == 0) alu();
    size_t at = code_.size();
    uint8_t op = below(2) != 0 ? kJgt : pick(kJumpOps);
    emit((below(3) != 0 ? kClassJmp : kClassJmp32) | op, y, 0, 0, static_cast<int64_t>(below(40)));
    if (below(2) != 0)
      emit(kClassJmp | pick(kJumpOps), y, 0, 2, static_cast<int64_t>(below(40)) - 8);
    int base = below(3) != 0 ? 7 + static_cast<int>(below(3)) : 10;
    emit(kClassAlu64 | kMov | kSrcX, 0, base, 0, 0);
    emit(kClassAlu64 | kAdd | kSrcX, 0, x, 0, 0);
    uint8_t size = below(3) != 0 ? kSizeB : pick(kSizes);
    emit(kClassLdx | size | kModeMem, 5, 0, base == 10 ? -48 + static_cast<int64_t>(below(20)) : 0,
         0);
    code_[at].off = static_cast<int16_t>(code_.size() - at - 1);
    emit(kClassAlu64 | kMov, 0, 0, 0, 1);
  }
  void lookup() {
    int map = static_cast<int>(below(2));
    uint8_t key_size = map == 0 ? kSizeDw : kSizeW;
    if (below(2) != 0)
      emit(kClassSt | key_size | kModeMem, 10, 0, -8, static_cast<int64_t>(below(5)));
    if (below(2) != 0) emit(kClassStx | kSizeDw | kModeMem, 10, scratch(), -8, 0);
    emit(kClassAlu64 | kMov | kSrcX, 2, 10, 0, 0);
    emit(kClassAlu64 | kAdd, 2, 0, 0, -8);
    load_map(1, map);
    call(Helper::kMapLookupElem);
    if (below(4) == 0) return;
    emit(kClassJmp | kJne, 0, 0, 2, 0);
    emit(kClassAlu64 | kMov, 0, 0, 0, 5);
    emit(kClassJmp | kExit, 0, 0, 0, 0);
    if (below(2) != 0) emit(kClassAlu64 | kMov | kSrcX, 7 + static_cast<int>(below(3)), 0, 0, 0);
  }
  void update() {
    emit(kClassAlu64 | kMov | kSrcX, 2, 10, 0, 0);
    emit(kClassAlu64 | kAdd, 2, 0, 0, -8);
    emit(kClassAlu64 | kMov | kSrcX, 3, 10, 0, 0);
    emit(kClassAlu64 | kAdd, 3, 0, 0, stack_offset());
    emit(kClassAlu64 | kMov, 4, 0, 0, 0);
    load_map(1, static_cast<int>(below(2)));
    call(Helper::kMapUpdateElem);
  }
  void read() {
    emit(kClassAlu64 | kMov | kSrcX, 1, reg(), 0, 0);
    if (below(2) != 0) emit(kClassAlu64 | kMov | kSrcX, 1, 10, 0, 0);
    if (below(2) != 0) emit(kClassAlu64 | kAdd, 1, 0, 0, -static_cast<int64_t>(below(40)));
    emit(kClassAlu64 | kMov | kSrcX, 2, scratch(), 0, 0);
    if (below(2) != 0) emit(kClassAlu64 | kMov, 2, 0, 0, static_cast<int64_t>(below(40)));
    emit(kClassAlu64 | kMov | kSrcX, 3, 6, 0, 0);
    call(below(2) != 0 ? Helper::kProbeReadKernel : Helper::kProbeReadKernelStr);
  }
  void record() {
    load_map(1, kGrownRing);
    emit(kClassAlu64 | kMov, 2, 0, 0, 16 + static_cast<int64_t>(below(3)) * 8);
    emit(kClassAlu64 | kMov, 3, 0, 0, 0);
    call(Helper::kRingbufReserve);
    int home = 7 + static_cast<int>(below(3));
    emit(kClassAlu64 | kMov | kSrcX, home, 0, 0, 0);
    size_t at = code_.size();
    emit(kClassJmp | kJeq, home, 0, 0, 0);
    for (uint64_t n = below(5); n > 0; --n) simple();
    emit(kClassAlu64 | kMov | kSrcX, 1, home, 0, 0);
    emit(kClassAlu64 | kMov, 2, 0, 0, 0);
    call(below(2) != 0 ? Helper::kRingbufSubmit : Helper::kRingbufDiscard);
    code_[at].off = static_cast<int16_t>(code_.size() - at - 1);
  }

  void simple() {
    switch (below(8)) {
      case 0:
      case 1: return alu();
      case 2:
      case 3: return memory();
      case 4: return context();
      case 5: return emit(kClassAlu64 | kAnd, scratch(), 0, 0, small());
      case 6: return emit(kClassJmp | pick(kJumpOps), scratch(), 0, 0, small());
      default: return atomic();
    }
  }
  void piece() {
    switch (below(12)) {
      case 0: return lookup();
      case 1: return branch();
      case 2: return branch();
      case 3: return with_loops_ ? loop() : branch();
      case 4: return read();
      case 5: return record();
      case 6: return update();
      case 7: return index();
      case 8: return index();
      default: return simple();
    }
  }

  bool with_loops_;
  CheckEnv env_;
  std::mt19937_64 random_;
  Program code_;
};

}  // namespace spile::bpf
