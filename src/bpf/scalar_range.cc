#include "bpf/scalar_range.h"

#include <algorithm>
#include <bit>
#include <iterator>

#include "base/error.h"
#include "bpf/insn.h"

namespace spile::bpf {

namespace {

constexpr uint64_t kU64Max = std::numeric_limits<uint64_t>::max();
constexpr int64_t kS64Min = std::numeric_limits<int64_t>::min(),
                  kS64Max = std::numeric_limits<int64_t>::max();
constexpr uint64_t kSignBit = uint64_t{1} << 63;
constexpr uint64_t kU32Max = std::numeric_limits<uint32_t>::max();

constexpr uint64_t low_mask(int size_bits) {
  return size_bits == 64 ? kU64Max : (uint64_t{1} << size_bits) - 1;
}
uint64_t to_unsigned(int64_t value) {
  return static_cast<uint64_t>(value);
}
int64_t to_signed(uint64_t value) {
  return static_cast<int64_t>(value);
}

// ---- known bits
// ----------------------------------------------------------------------------------------------------

KnownBits known(uint64_t value) {
  return {value, 0};
}

/// The leading bits that all numbers from low to high share.
KnownBits bits_of_interval(uint64_t low, uint64_t high) {
  uint64_t differing = low ^ high;
  uint64_t mask = differing == 0 ? 0 : low_mask(64 - std::countl_zero(differing));
  return {low & ~mask, mask};
}

/// Carries can reach every bit where the smallest and the largest sum differ.
KnownBits add_bits(KnownBits a, KnownBits b) {
  uint64_t sum_of_masks = a.mask + b.mask, sum_of_values = a.value + b.value;
  uint64_t mask = ((sum_of_masks + sum_of_values) ^ sum_of_values) | a.mask | b.mask;
  return {sum_of_values & ~mask, mask};
}

KnownBits subtract_bits(KnownBits a, KnownBits b) {
  uint64_t difference = a.value - b.value;
  uint64_t mask = ((difference + a.mask) ^ (difference - b.mask)) | a.mask | b.mask;
  return {difference & ~mask, mask};
}

KnownBits and_bits(KnownBits a, KnownBits b) {
  uint64_t value = a.value & b.value;
  return {value, (a.value | a.mask) & (b.value | b.mask) & ~value};
}

KnownBits or_bits(KnownBits a, KnownBits b) {
  uint64_t value = a.value | b.value;
  return {value, (a.mask | b.mask) & ~value};
}

KnownBits xor_bits(KnownBits a, KnownBits b) {
  uint64_t mask = a.mask | b.mask;
  return {(a.value ^ b.value) & ~mask, mask};
}

/// Of a product only the zeros at the end are kept.
KnownBits multiply_bits(KnownBits a, KnownBits b) {
  int zeros = std::min(64, std::countr_zero(a.value | a.mask) + std::countr_zero(b.value | b.mask));
  return {0, zeros == 64 ? 0 : kU64Max << zeros};
}

KnownBits join_bits(KnownBits a, KnownBits b) {
  uint64_t mask = a.mask | b.mask | (a.value ^ b.value);
  return {a.value & ~mask, mask};
}

bool contradict(KnownBits a, KnownBits b) {
  return ((a.value ^ b.value) & ~a.mask & ~b.mask) != 0;
}

KnownBits intersect_bits(KnownBits a, KnownBits b) {
  uint64_t mask = a.mask & b.mask;
  return {(a.value | b.value) & ~mask, mask};
}

// ---- intervals
// -----------------------------------------------------------------------------------------------------

void learn_from_bits(ScalarRange& r) {
  r.umin = std::max(r.umin, r.bits.value);
  r.umax = std::min(r.umax, r.bits.value | r.bits.mask);
  r.smin = std::max(r.smin, to_signed(r.bits.value | (r.bits.mask & kSignBit)));
  r.smax = std::min(r.smax, to_signed(r.bits.value | (r.bits.mask & ~kSignBit)));
}

/// Where an interval does not cross the other order's wrap, it is an interval there too.
void learn_from_order(ScalarRange& r) {
  if (to_signed(r.umin) <= to_signed(r.umax)) {
    r.smin = std::max(r.smin, to_signed(r.umin));
    r.smax = std::min(r.smax, to_signed(r.umax));
  }
  if (to_unsigned(r.smin) <= to_unsigned(r.smax)) {
    r.umin = std::max(r.umin, to_unsigned(r.smin));
    r.umax = std::min(r.umax, to_unsigned(r.smax));
  }
}

bool is_empty(const ScalarRange& r) {
  return r.umin > r.umax || r.smin > r.smax;
}

/// Makes the three descriptions agree. False: no number fits all three.
bool tighten(ScalarRange& r) {
  for (int round = 0; round < 2; ++round) {
    learn_from_bits(r);
    if (is_empty(r)) return false;
    learn_from_order(r);
    if (is_empty(r)) return false;
    KnownBits shared = bits_of_interval(r.umin, r.umax);
    if (contradict(r.bits, shared)) return false;
    r.bits = intersect_bits(r.bits, shared);
  }
  learn_from_bits(r);
  return !is_empty(r);
}

/// For results of operations on non-empty ranges, which are never empty.
ScalarRange tightened(ScalarRange r) {
  return tighten(r) ? r : ScalarRange::unknown();
}

// ---- arithmetic
// ----------------------------------------------------------------------------------------------------

ScalarRange add(const ScalarRange& a, const ScalarRange& b) {
  ScalarRange r;
  uint64_t low = 0, high = 0;
  if (!__builtin_add_overflow(a.umin, b.umin, &low) &&
      !__builtin_add_overflow(a.umax, b.umax, &high)) {
    r.umin = low, r.umax = high;
  }
  int64_t slow = 0, shigh = 0;
  if (!__builtin_add_overflow(a.smin, b.smin, &slow) &&
      !__builtin_add_overflow(a.smax, b.smax, &shigh)) {
    r.smin = slow, r.smax = shigh;
  }
  r.bits = add_bits(a.bits, b.bits);
  return tightened(r);
}

ScalarRange subtract(const ScalarRange& a, const ScalarRange& b) {
  ScalarRange r;
  if (a.umin >= b.umax) r.umin = a.umin - b.umax, r.umax = a.umax - b.umin;
  int64_t slow = 0, shigh = 0;
  if (!__builtin_sub_overflow(a.smin, b.smax, &slow) &&
      !__builtin_sub_overflow(a.smax, b.smin, &shigh)) {
    r.smin = slow, r.smax = shigh;
  }
  r.bits = subtract_bits(a.bits, b.bits);
  return tightened(r);
}

ScalarRange multiply(const ScalarRange& a, const ScalarRange& b) {
  ScalarRange r;
  uint64_t high = 0;
  if (!__builtin_mul_overflow(a.umax, b.umax, &high)) r.umin = a.umin * b.umin, r.umax = high;
  int64_t corners[4];
  bool overflow = __builtin_mul_overflow(a.smin, b.smin, &corners[0]) ||
                  __builtin_mul_overflow(a.smin, b.smax, &corners[1]) ||
                  __builtin_mul_overflow(a.smax, b.smin, &corners[2]) ||
                  __builtin_mul_overflow(a.smax, b.smax, &corners[3]);
  if (!overflow)
    r.smin = *std::ranges::min_element(corners), r.smax = *std::ranges::max_element(corners);
  r.bits = multiply_bits(a.bits, b.bits);
  return tightened(r);
}

/// x / 0 is 0.
ScalarRange divide(const ScalarRange& a, const ScalarRange& b) {
  if (b.umin == 0) return ScalarRange::unsigned_between(0, a.umax);
  return ScalarRange::unsigned_between(a.umin / b.umax, a.umax / b.umin);
}

/// x % 0 is x.
ScalarRange modulo(const ScalarRange& a, const ScalarRange& b) {
  if (b.umax == 0 || a.umax < b.umin) return a;
  if (b.umin == 0) return ScalarRange::unsigned_between(0, a.umax);
  return ScalarRange::unsigned_between(0, std::min(a.umax, b.umax - 1));
}

ScalarRange bitwise(uint8_t op, const ScalarRange& a, const ScalarRange& b) {
  ScalarRange r;
  if (op == kAnd) {
    r.bits = and_bits(a.bits, b.bits);
    r.umax = std::min(a.umax, b.umax);
  } else if (op == kOr) {
    r.bits = or_bits(a.bits, b.bits);
    r.umin = std::max(a.umin, b.umin);
  } else {
    r.bits = xor_bits(a.bits, b.bits);
  }
  return tightened(r);
}

struct ShiftCount {
  int low = 0, high = 0;
};

/// What is left of the count after the machine has masked it with `bits - 1`.
ShiftCount shift_count(const ScalarRange& count, int size_bits) {
  if (count.is_constant()) {
    int n = static_cast<int>(count.umin & static_cast<uint64_t>(size_bits - 1));
    return {n, n};
  }
  if (count.umax < static_cast<uint64_t>(size_bits)) {
    return {static_cast<int>(count.umin), static_cast<int>(count.umax)};
  }
  return {0, size_bits - 1};
}

ScalarRange shift_left(const ScalarRange& a, ShiftCount n) {
  ScalarRange r;
  if (a.umax <= kU64Max >> n.high) r.umin = a.umin << n.low, r.umax = a.umax << n.high;
  if (n.low == n.high) {
    r.bits = {a.bits.value << n.low, a.bits.mask << n.low};
  } else {
    r.bits = {0, kU64Max << n.low};
  }
  return tightened(r);
}

ScalarRange shift_right(const ScalarRange& a, ShiftCount n) {
  ScalarRange r;
  r.umin = a.umin >> n.high, r.umax = a.umax >> n.low;
  if (n.low == n.high) r.bits = {a.bits.value >> n.low, a.bits.mask >> n.low};
  return tightened(r);
}

ScalarRange shift_right_signed(const ScalarRange& a, ShiftCount n) {
  ScalarRange r;
  r.smin = std::min(a.smin >> n.low, a.smin >> n.high);
  r.smax = std::max(a.smax >> n.low, a.smax >> n.high);
  if (n.low == n.high) {
    r.bits = {to_unsigned(to_signed(a.bits.value) >> n.low),
              to_unsigned(to_signed(a.bits.mask) >> n.low)};
    r.bits.value &= ~r.bits.mask;
  }
  return tightened(r);
}

int64_t divide_signed(int64_t a, int64_t b, int64_t smallest) {
  if (b == 0) return 0;
  return a == smallest && b == -1 ? smallest : a / b;
}
int64_t modulo_signed(int64_t a, int64_t b) {
  if (b == 0) return a;
  return b == -1 ? 0 : a % b;
}

/// Signed division is followed for constants only.
ScalarRange divide_or_modulo_signed(uint8_t op,
                                    int size_bits,
                                    const ScalarRange& a,
                                    const ScalarRange& b) {
  if (!a.is_constant() || !b.is_constant()) return ScalarRange::unknown();
  int64_t x = size_bits == 64 ? to_signed(a.umin) : static_cast<int32_t>(a.umin);
  int64_t y = size_bits == 64 ? to_signed(b.umin) : static_cast<int32_t>(b.umin);
  return ScalarRange::constant(
      to_unsigned(op == kDiv ? divide_signed(x, y, kS64Min) : modulo_signed(x, y)));
}

/// `a` and `b` are zero-extended where size_bits is 32; the caller truncates the result.
ScalarRange alu(
    uint8_t op, bool is_signed, int size_bits, const ScalarRange& a, const ScalarRange& b) {
  switch (op) {
    case kAdd: return add(a, b);
    case kSub: return subtract(a, b);
    case kMul: return multiply(a, b);
    case kDiv: return is_signed ? divide_or_modulo_signed(op, size_bits, a, b) : divide(a, b);
    case kMod: return is_signed ? divide_or_modulo_signed(op, size_bits, a, b) : modulo(a, b);
    case kOr:
    case kAnd:
    case kXor: return bitwise(op, a, b);
    case kLsh: return shift_left(a, shift_count(b, size_bits));
    case kRsh: return shift_right(a, shift_count(b, size_bits));
    case kArsh:
      return shift_right_signed(size_bits == 64 ? a : sign_extend(a, 32),
                                shift_count(b, size_bits));
    case kNeg: return subtract(ScalarRange::constant(0), a);
    case kMov: return b;
    default: SPILE_CHECK(false && "ALU operation");
  }
}

// ---- conditions
// ----------------------------------------------------------------------------------------------------

using Pair = std::pair<ScalarRange, ScalarRange>;

std::optional<Pair> tightened_pair(ScalarRange a, ScalarRange b) {
  if (!tighten(a) || !tighten(b)) return std::nullopt;
  return Pair{a, b};
}

std::optional<Pair> assume_equal(const ScalarRange& a, const ScalarRange& b) {
  std::optional<ScalarRange> both = intersect(a, b);
  if (!both) return std::nullopt;
  return Pair{*both, *both};
}

/// `a` without the constant c, where c is one of its ends. False: nothing is left.
bool exclude(ScalarRange& a, uint64_t c) {
  if (a.is_constant()) return a.umin != c;
  if (a.umin == c) ++a.umin;
  if (a.umax == c) --a.umax;
  if (a.smin == to_signed(c) && a.smin < a.smax) ++a.smin;
  if (a.smax == to_signed(c) && a.smin < a.smax) --a.smax;
  return true;
}

std::optional<Pair> assume_different(ScalarRange a, ScalarRange b) {
  if (b.is_constant() && !exclude(a, b.umin)) return std::nullopt;
  if (a.is_constant() && !exclude(b, a.umin)) return std::nullopt;
  return tightened_pair(a, b);
}

/// a < b (or_equal: a <= b), unsigned.
std::optional<Pair> assume_less(ScalarRange a, ScalarRange b, bool or_equal) {
  if (!or_equal && (b.umax == 0 || a.umin == kU64Max)) return std::nullopt;
  uint64_t gap = or_equal ? 0 : 1;
  a.umax = std::min(a.umax, b.umax - gap);
  b.umin = std::max(b.umin, a.umin + gap);
  return tightened_pair(a, b);
}

std::optional<Pair> assume_less_signed(ScalarRange a, ScalarRange b, bool or_equal) {
  if (!or_equal && (b.smax == kS64Min || a.smin == kS64Max)) return std::nullopt;
  int64_t gap = or_equal ? 0 : 1;
  a.smax = std::min(a.smax, b.smax - gap);
  b.smin = std::max(b.smin, a.smin + gap);
  return tightened_pair(a, b);
}

/// a & b is not 0.
std::optional<Pair> assume_common_bits(ScalarRange a, ScalarRange b) {
  uint64_t possible = (a.bits.value | a.bits.mask) & (b.bits.value | b.bits.mask);
  if (possible == 0) return std::nullopt;
  if (std::has_single_bit(possible)) {
    a.bits = {a.bits.value | possible, a.bits.mask & ~possible};
    b.bits = {b.bits.value | possible, b.bits.mask & ~possible};
  }
  return tightened_pair(a, b);
}

/// a & b is 0: each has zeros where the other surely has ones.
std::optional<Pair> assume_no_common_bits(ScalarRange a, ScalarRange b) {
  if ((a.bits.value & b.bits.value) != 0) return std::nullopt;
  uint64_t a_ones = a.bits.value;
  a.bits.mask &= ~b.bits.value;
  b.bits.mask &= ~a_ones;
  return tightened_pair(a, b);
}

std::optional<Pair> swapped(std::optional<Pair> pair) {
  if (pair) std::swap(pair->first, pair->second);
  return pair;
}

std::optional<Pair> assume64(uint8_t op, bool holds, const ScalarRange& a, const ScalarRange& b) {
  switch (op) {
    case kJeq: return holds ? assume_equal(a, b) : assume_different(a, b);
    case kJne: return holds ? assume_different(a, b) : assume_equal(a, b);
    case kJset: return holds ? assume_common_bits(a, b) : assume_no_common_bits(a, b);
    case kJlt: return holds ? assume_less(a, b, false) : swapped(assume_less(b, a, true));
    case kJle: return holds ? assume_less(a, b, true) : swapped(assume_less(b, a, false));
    case kJgt: return holds ? swapped(assume_less(b, a, false)) : assume_less(a, b, true);
    case kJge: return holds ? swapped(assume_less(b, a, true)) : assume_less(a, b, false);
    case kJslt:
      return holds ? assume_less_signed(a, b, false) : swapped(assume_less_signed(b, a, true));
    case kJsle:
      return holds ? assume_less_signed(a, b, true) : swapped(assume_less_signed(b, a, false));
    case kJsgt:
      return holds ? swapped(assume_less_signed(b, a, false)) : assume_less_signed(a, b, true);
    case kJsge:
      return holds ? swapped(assume_less_signed(b, a, true)) : assume_less_signed(a, b, false);
    default: SPILE_CHECK(false && "jump operation");
  }
}

bool is_signed_jump(uint8_t op) {
  return op == kJsgt || op == kJsge || op == kJslt || op == kJsle;
}

/// What a learned value of the low half, zero- or sign-extended, says about the whole.
std::optional<ScalarRange> learn_low_half(const ScalarRange& whole, const ScalarRange& low) {
  bool is_zero_extended = whole.umax <= kU32Max;
  bool is_sign_extended = whole.smin >= std::numeric_limits<int32_t>::min() &&
                          whole.smax <= std::numeric_limits<int32_t>::max();
  if (is_zero_extended) return intersect(whole, zero_extend(low, 32));
  if (is_sign_extended) return intersect(whole, sign_extend(low, 32));
  KnownBits bits = zero_extend(low, 32).bits;
  ScalarRange only_bits;
  only_bits.bits = {bits.value & kU32Max, bits.mask | ~kU32Max};
  if (!tighten(only_bits)) return std::nullopt;
  return intersect(whole, only_bits);
}

std::optional<Pair> assume32(uint8_t op, bool holds, const ScalarRange& a, const ScalarRange& b) {
  bool is_signed = is_signed_jump(op);
  auto low = [&](const ScalarRange& r) {
    return is_signed ? sign_extend(r, 32) : zero_extend(r, 32);
  };
  std::optional<Pair> halves = assume64(op, holds, low(a), low(b));
  if (!halves) return std::nullopt;
  std::optional<ScalarRange> x = learn_low_half(a, halves->first),
                             y = learn_low_half(b, halves->second);
  if (!x || !y) return std::nullopt;
  return Pair{*x, *y};
}

// ---- widening
// ------------------------------------------------------------------------------------------------------

/// The first threshold that is not below `bound`, or else `last`.
template <typename T>
T next_above(const std::vector<T>& thresholds, T bound, T last) {
  auto found = std::ranges::lower_bound(thresholds, bound);
  return found == thresholds.end() ? last : *found;
}

template <typename T>
T next_below(const std::vector<T>& thresholds, T bound, T last) {
  auto found = std::ranges::upper_bound(thresholds, bound);
  return found == thresholds.begin() ? last : *std::prev(found);
}

template <typename T>
void sort_unique(std::vector<T>& numbers) {
  std::ranges::sort(numbers);
  numbers.erase(std::ranges::unique(numbers).begin(), numbers.end());
}

}  // namespace

ScalarRange ScalarRange::constant(uint64_t value) {
  return {value, value, to_signed(value), to_signed(value), known(value)};
}

ScalarRange ScalarRange::unsigned_between(uint64_t low, uint64_t high) {
  ScalarRange r;
  r.umin = low, r.umax = high;
  return tightened(r);
}

ScalarRange ScalarRange::signed_between(int64_t low, int64_t high) {
  ScalarRange r;
  r.smin = low, r.smax = high;
  return tightened(r);
}

bool ScalarRange::contains(uint64_t value) const {
  return value >= umin && value <= umax && to_signed(value) >= smin && to_signed(value) <= smax &&
         (value & ~bits.mask) == bits.value;
}

bool ScalarRange::contains(const ScalarRange& other) const {
  return umin <= other.umin && other.umax <= umax && smin <= other.smin && other.smax <= smax &&
         (other.bits.mask & ~bits.mask) == 0 && (other.bits.value & ~bits.mask) == bits.value;
}

std::optional<ScalarRange> intersect(const ScalarRange& a, const ScalarRange& b) {
  if (contradict(a.bits, b.bits)) return std::nullopt;
  ScalarRange r;
  r.umin = std::max(a.umin, b.umin), r.umax = std::min(a.umax, b.umax);
  r.smin = std::max(a.smin, b.smin), r.smax = std::min(a.smax, b.smax);
  r.bits = intersect_bits(a.bits, b.bits);
  if (is_empty(r) || !tighten(r)) return std::nullopt;
  return r;
}

ScalarRange join(const ScalarRange& a, const ScalarRange& b) {
  return {std::min(a.umin, b.umin), std::max(a.umax, b.umax), std::min(a.smin, b.smin),
          std::max(a.smax, b.smax), join_bits(a.bits, b.bits)};
}

Thresholds Thresholds::around(std::vector<uint64_t> numbers) {
  numbers.insert(numbers.end(), {0, low_mask(8), low_mask(16), low_mask(31), kU32Max, kSignBit});
  Thresholds result;
  for (uint64_t number : numbers) {
    for (uint64_t near : {number - 1, number, number + 1}) {
      result.as_unsigned.push_back(near);
      result.as_signed.push_back(to_signed(near));
    }
  }
  sort_unique(result.as_unsigned);
  sort_unique(result.as_signed);
  return result;
}

ScalarRange widen(const ScalarRange& old, const ScalarRange& next, const Thresholds& thresholds) {
  ScalarRange r = join(old, next);
  if (r.umin < old.umin) r.umin = next_below(thresholds.as_unsigned, r.umin, uint64_t{0});
  if (r.umax > old.umax) r.umax = next_above(thresholds.as_unsigned, r.umax, kU64Max);
  if (r.smin < old.smin) r.smin = next_below(thresholds.as_signed, r.smin, kS64Min);
  if (r.smax > old.smax) r.smax = next_above(thresholds.as_signed, r.smax, kS64Max);
  // Bits above the lowest one that moved will move as well; those below are what alignment needs.
  uint64_t moved = r.bits.mask & ~old.bits.mask;
  if (moved != 0) r.bits.mask |= kU64Max << std::countr_zero(moved);
  r.bits.value &= ~r.bits.mask;
  return r;
}

ScalarRange alu64(uint8_t op, bool is_signed, const ScalarRange& a, const ScalarRange& b) {
  return alu(op, is_signed, 64, a, b);
}

ScalarRange alu32(uint8_t op, bool is_signed, const ScalarRange& a, const ScalarRange& b) {
  return zero_extend(alu(op, is_signed, 32, zero_extend(a, 32), zero_extend(b, 32)), 32);
}

ScalarRange zero_extend(const ScalarRange& a, int size_bits) {
  if (size_bits == 64) return a;
  uint64_t mask = low_mask(size_bits);
  ScalarRange r = ScalarRange::unsigned_between(0, mask);
  if ((a.umin & ~mask) == (a.umax & ~mask)) r.umin = a.umin & mask, r.umax = a.umax & mask;
  r.bits = {a.bits.value & mask, a.bits.mask & mask};
  return tightened(r);
}

ScalarRange sign_extend(const ScalarRange& a, int size_bits) {
  if (size_bits == 64) return a;
  auto limit = static_cast<int64_t>(low_mask(size_bits - 1));
  if (a.smin >= -limit - 1 && a.smax <= limit) return a;
  ScalarRange low = zero_extend(a, size_bits);
  ScalarRange modulus = ScalarRange::constant(low_mask(size_bits) + 1);
  if (low.smax <= limit) return low;
  if (low.smin > limit) return subtract(low, modulus);
  return ScalarRange::signed_between(-limit - 1, limit);
}

ScalarRange byte_swap(const ScalarRange& a, int size_bits) {
  auto swap = [&](uint64_t value) { return __builtin_bswap64(value) >> (64 - size_bits); };
  ScalarRange r = ScalarRange::unsigned_between(0, low_mask(size_bits));
  uint64_t mask = low_mask(size_bits);
  r.bits = {swap(a.bits.value & mask), swap(a.bits.mask & mask)};
  return tightened(r);
}

std::optional<Pair> assume(
    uint8_t op, bool is_32bit, bool holds, const ScalarRange& a, const ScalarRange& b) {
  return is_32bit ? assume32(op, holds, a, b) : assume64(op, holds, a, b);
}

}  // namespace spile::bpf
