// What the checker knows about a number: a set of 64-bit values that contains it.
//
// Three descriptions are kept at once, each knowing what the others cannot: an unsigned interval, a
// signed interval, and the bits that are known (the kernel calls this a tnum). tighten() lets each
// learn from the others. Every operation here is sound: where a is in A and b in B, a op b is in
// op(A, B). scalar_range_test.cc tries it.
//
// Source: kernel/bpf/verifier.c, kernel/bpf/tnum.c; H. Vishwanathan et al., "Sound, Precise, and
// Fast Abstract Interpretation with Tristate Numbers" (CGO 2022), for the known bits of sums and
// differences.
#pragma once

#include <cstdint>
#include <limits>
#include <optional>
#include <utility>
#include <vector>

namespace spile::bpf {

/// Bit n is known to be that of `value` where bit n of `mask` is 0; value & mask == 0.
struct KnownBits {
  uint64_t value = 0;
  uint64_t mask = std::numeric_limits<uint64_t>::max();
  constexpr bool operator==(const KnownBits&) const = default;
};

struct ScalarRange {
  uint64_t umin = 0, umax = std::numeric_limits<uint64_t>::max();
  int64_t smin = std::numeric_limits<int64_t>::min(), smax = std::numeric_limits<int64_t>::max();
  KnownBits bits;

  static ScalarRange unknown() { return {}; }
  static ScalarRange constant(uint64_t value);
  static ScalarRange unsigned_between(uint64_t low, uint64_t high);
  static ScalarRange signed_between(int64_t low, int64_t high);

  bool is_constant() const { return umin == umax; }
  bool is_unknown() const { return *this == unknown(); }
  bool contains(uint64_t value) const;
  /// Every value of `other` is one of ours, as far as the descriptions tell.
  bool contains(const ScalarRange& other) const;
  /// Every value is a multiple of `alignment`, a power of two.
  bool is_aligned(uint64_t alignment) const {
    return ((bits.value | bits.mask) & (alignment - 1)) == 0;
  }
  constexpr bool operator==(const ScalarRange&) const = default;
};

/// The values that could be in both; nothing where there is none.
std::optional<ScalarRange> intersect(const ScalarRange& a, const ScalarRange& b);
/// The smallest range around both.
ScalarRange join(const ScalarRange& a, const ScalarRange& b);

/// Where bounds that move stop first: the constants of a program, above all what its loops compare
/// with. Sorted.
struct Thresholds {
  std::vector<uint64_t> as_unsigned;
  std::vector<int64_t> as_signed;

  /// `numbers` and their neighbours, and the limits of the C types.
  static Thresholds around(std::vector<uint64_t> numbers);
};
/// A range around both, where a bound of `old` that `next` moved goes to the next threshold: after
/// a few widenings nothing moves.
ScalarRange widen(const ScalarRange& old, const ScalarRange& next, const Thresholds& thresholds);

/// `op` is kAdd ... kArsh, with kDiv and kMod unsigned unless `is_signed`.
ScalarRange alu64(uint8_t op, bool is_signed, const ScalarRange& a, const ScalarRange& b);
/// The same on the low 32 bits; the result is zero-extended.
ScalarRange alu32(uint8_t op, bool is_signed, const ScalarRange& a, const ScalarRange& b);
/// The low `size_bits` (8, 16, 32 or 64), zero-extended or sign-extended.
ScalarRange zero_extend(const ScalarRange& a, int size_bits);
ScalarRange sign_extend(const ScalarRange& a, int size_bits);
/// The low `size_bits` (16, 32, 64) with their bytes in the other order.
ScalarRange byte_swap(const ScalarRange& a, int size_bits);

/// Both operands where `a op b` holds (`op` is kJeq ... kJsle) or where it does not; nothing where
/// it cannot be.
std::optional<std::pair<ScalarRange, ScalarRange>> assume(
    uint8_t op, bool is_32bit, bool holds, const ScalarRange& a, const ScalarRange& b);

}  // namespace spile::bpf
