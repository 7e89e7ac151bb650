// What the checker knows at one point of one path: registers, stack, and the records that are still
// held.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "bpf/scalar_range.h"

namespace spile::bpf {

enum class RegKind : uint8_t {
  kUninit,  ///< nothing was written, or different things on paths that met
  kScalar,
  kContext,
  kStack,
  kMap,  ///< the map itself: only for helpers
  kMapValue,
  kRecord,
};

/// A register or a stack slot that holds one.
struct RegState {
  RegKind kind = RegKind::kUninit;
  bool maybe_null = false;  ///< kMapValue, kRecord: 0 is possible until the program has looked
  int map = -1;             ///< kMap, kMapValue: index in CheckEnv::maps
  uint32_t size = 0;        ///< kMapValue, kRecord: bytes of the object
  /// Registers with the same id, not 0, hold the same value: what a comparison tells about one
  /// holds for all. For kRecord it names the reservation.
  uint32_t id = 0;
  /// kScalar: the number. Pointers: how many bytes after the start of the object (of the stack:
  /// after r10) it points.
  ScalarRange range;

  static RegState scalar(const ScalarRange& range) {
    return {.kind = RegKind::kScalar, .range = range};
  }
  static RegState constant(uint64_t value) { return scalar(ScalarRange::constant(value)); }
  static RegState pointer(RegKind kind) {
    return {.kind = kind, .range = ScalarRange::constant(0)};
  }

  bool is_pointer() const { return kind > RegKind::kScalar; }
  bool is_constant(uint64_t value) const {
    return kind == RegKind::kScalar && range.is_constant() && range.umin == value;
  }
  bool operator==(const RegState&) const = default;
};

/// "a scalar in [0, 7]", "a map value or null", "the stack at r10-16": for messages.
std::string describe(const RegState& reg);

/// Eight bytes of the stack. `spill` is what a whole register left here; bytes of a pointer are in
/// no other way initialised. Numbers whose bytes are constant are kept in `bytes` instead.
struct StackSlot {
  uint8_t init = 0;   ///< bit n: byte n is initialised
  uint8_t known = 0;  ///< bit n: byte n is the constant bytes[n]
  std::array<uint8_t, 8> bytes = {};
  RegState spill;  ///< kUninit: none

  bool holds_pointer() const { return spill.is_pointer(); }
  /// The eight bytes as one register; kUninit where some are not initialised.
  RegState as_register() const;
  bool operator==(const StackSlot&) const = default;
};

/// A ring record that was reserved and neither submitted nor discarded yet.
struct HeldRecord {
  uint32_t id = 0;
  uint32_t insn = 0;  ///< where it was reserved
};

struct CheckState {
  std::array<RegState, 11> regs;
  std::vector<StackSlot> stack;  ///< slot n is the bytes [-8n-8, -8n) of r10
  std::vector<HeldRecord> held;
  uint32_t next_id = 1;

  uint32_t new_id() { return next_id++; }
  /// Applies `change` to every register and spilled register.
  template <typename F>
  void for_each_reg(F change) {
    for (RegState& reg : regs) change(reg);
    for (StackSlot& slot : stack) {
      if (slot.spill.kind != RegKind::kUninit) change(slot.spill);
    }
  }
  /// Forgets registers that nobody reads (`live`: bit n for rn) and ids that name one register
  /// only, so that states that differ in nothing that matters become equal.
  void normalise(uint16_t live);
};

/// Every machine state that `inner` stands for is one that `outer` stands for.
bool contains(const CheckState& outer, const CheckState& inner);
/// How far numbers move that differ between the states: just enough, to the next threshold, or to
/// unknown.
enum class JoinMode : uint8_t { kExact, kWiden, kGiveUp };
/// A state that contains both; nothing where they hold different records.
std::optional<CheckState> join(const CheckState& old,
                               const CheckState& next,
                               JoinMode mode,
                               const Thresholds& thresholds);

}  // namespace spile::bpf
