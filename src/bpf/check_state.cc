#include "bpf/check_state.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <tuple>
#include <unordered_map>

namespace spile::bpf {

namespace {

// ---- ids
// -----------------------------------------------------------------------------------------------------------

/// What is known to be equal about a register: of scalars the value, of pointers whether they are
/// null.
struct Token {
  enum Kind : uint8_t { kNothing, kId, kConstant, kNotNull } kind = kNothing;
  uint64_t value = 0;
  constexpr auto operator<=>(const Token&) const = default;
};

Token token(const RegState& reg) {
  if (reg.id != 0) return {Token::kId, reg.id};
  if (reg.kind == RegKind::kScalar && reg.range.is_constant())
    return {Token::kConstant, reg.range.umin};
  if (reg.is_pointer() && !reg.maybe_null) return {Token::kNotNull, 0};
  return {};
}

/// Renames ids so that two states can be compared. contains() needs each of the outer state's ids
/// to mean one thing in the inner one; join() makes an id for each pair of things.
class IdPairs {
 public:
  /// False: `outer` was paired with something else before.
  bool pair_once(uint32_t outer, Token inner) {
    for (const auto& [id, meaning] : meanings_) {
      if (id == outer) return meaning == inner;
    }
    meanings_.emplace_back(outer, inner);
    return inner.kind != Token::kNothing;
  }

  uint32_t id_of(Token a, Token b, uint32_t& next_id) {
    for (const auto& [first, second, id] : joined_) {
      if (first == a && second == b) return id;
    }
    joined_.emplace_back(a, b, next_id);
    return next_id++;
  }

 private:
  std::vector<std::pair<uint32_t, Token>> meanings_;
  std::vector<std::tuple<Token, Token, uint32_t>> joined_;
};

// ---- contains
// ------------------------------------------------------------------------------------------------------

bool same_object(const RegState& a, const RegState& b) {
  return a.kind == b.kind && a.map == b.map && a.size == b.size;
}

bool contains_reg(const RegState& outer, const RegState& inner, IdPairs& ids) {
  if (outer.kind == RegKind::kUninit) return true;
  if (outer.kind == RegKind::kMapValue && outer.maybe_null && inner.is_constant(0)) {
    return ids.pair_once(outer.id, {Token::kConstant, 0});
  }
  if (!same_object(outer, inner) || (inner.maybe_null && !outer.maybe_null)) return false;
  if (!outer.range.contains(inner.range)) return false;
  return outer.id == 0 || ids.pair_once(outer.id, token(inner));
}

bool contains_slot(const StackSlot& outer, const StackSlot& inner, IdPairs& ids) {
  if (outer.spill.kind != RegKind::kUninit)
    return contains_reg(outer.spill, inner.as_register(), ids);
  if ((outer.init & ~inner.init) != 0 || (outer.known & ~inner.known) != 0) return false;
  for (unsigned i = 0; i < 8; ++i) {
    if ((outer.known >> i & 1) != 0 && outer.bytes[i] != inner.bytes[i]) return false;
  }
  return true;
}

const StackSlot& slot_or_empty(const CheckState& state, size_t index) {
  static const StackSlot empty;
  return index < state.stack.size() ? state.stack[index] : empty;
}

/// The same number of records, each of ours standing for one of theirs.
bool contains_held(const CheckState& outer, const CheckState& inner, IdPairs& ids) {
  if (outer.held.size() != inner.held.size()) return false;
  for (size_t i = 0; i < outer.held.size(); ++i) {
    if (!ids.pair_once(outer.held[i].id, {Token::kId, inner.held[i].id})) return false;
  }
  return true;
}

// ---- join
// ----------------------------------------------------------------------------------------------------------

struct Join {
  JoinMode mode;
  const Thresholds& thresholds;
  uint32_t next_id;
  IdPairs ids = {};

  ScalarRange range(const ScalarRange& old, const ScalarRange& next) const {
    if (old.contains(next)) return old;
    switch (mode) {
      case JoinMode::kExact: return join(old, next);
      case JoinMode::kWiden: return widen(old, next, thresholds);
      default: return ScalarRange::unknown();
    }
  }

  RegState scalars(const RegState& old, const RegState& next) {
    RegState result = RegState::scalar(range(old.range, next.range));
    if (old.id == 0 && next.id == 0) return result;
    Token a = token(old), b = token(next);
    if (a.kind != Token::kNothing && b.kind != Token::kNothing)
      result.id = ids.id_of(a, b, next_id);
    return result;
  }

  RegState pointers(const RegState& old, const RegState& next) {
    RegState result = old;
    result.maybe_null = old.maybe_null || next.maybe_null;
    result.range = range(old.range, next.range);
    bool needs_id = result.maybe_null || result.kind == RegKind::kRecord;
    result.id = needs_id ? ids.id_of(token(old), token(next), next_id) : 0;
    return result;
  }

  /// A value pointer on one path and 0 on the other.
  static RegState or_null(RegState pointer, uint32_t id) {
    pointer.maybe_null = true;
    pointer.id = id;
    return pointer;
  }

  RegState regs(const RegState& old, const RegState& next) {
    if (old.kind == RegKind::kScalar && next.kind == RegKind::kScalar) return scalars(old, next);
    if (old.kind == RegKind::kMapValue && next.is_constant(0)) return or_null(old, next_id++);
    if (next.kind == RegKind::kMapValue && old.is_constant(0)) return or_null(next, next_id++);
    if (!old.is_pointer() || !same_object(old, next)) return {};
    return pointers(old, next);
  }

  StackSlot slots(const StackSlot& old, const StackSlot& next) {
    StackSlot result;
    RegState spill;
    bool has_spill = old.spill.kind != RegKind::kUninit || next.spill.kind != RegKind::kUninit;
    if (has_spill) spill = regs(old.as_register(), next.as_register());
    if (spill.is_pointer()) {
      result.spill = spill;
      return result;
    }
    result.init = old.init & next.init;
    if (spill.kind == RegKind::kScalar) {
      result.spill = spill;
      return result;
    }
    for (unsigned i = 0; i < 8; ++i) {
      if ((old.known & next.known & (1u << i)) == 0 || old.bytes[i] != next.bytes[i]) continue;
      result.known |= static_cast<uint8_t>(1u << i);
      result.bytes[i] = old.bytes[i];
    }
    return result;
  }

  /// The records of one state are those of the other, in the order of their reservation. Where a
  /// program means another order, its registers get ids that are not held, and it is refused at the
  /// exit.
  bool held(CheckState& result, const CheckState& old, const CheckState& next) {
    if (old.held.size() != next.held.size()) return false;
    for (size_t i = 0; i < old.held.size(); ++i) {
      uint32_t id = ids.id_of({Token::kId, old.held[i].id}, {Token::kId, next.held[i].id}, next_id);
      result.held.push_back({id, old.held[i].insn});
    }
    return true;
  }
};

}  // namespace

std::string describe(const RegState& reg) {
  std::string null = reg.maybe_null ? " or null" : "";
  std::string offset = reg.range.is_constant()
                           ? fmt::format("{:+}", static_cast<int64_t>(reg.range.umin))
                           : fmt::format("+[{}, {}]", reg.range.smin, reg.range.smax);
  switch (reg.kind) {
    case RegKind::kUninit: return "not initialised (or not the same on all paths)";
    case RegKind::kScalar:
      if (reg.range.is_constant())
        return fmt::format("the number {}", static_cast<int64_t>(reg.range.umin));
      if (reg.range.is_unknown()) return "a number";
      if (reg.range.smin >= 0)
        return fmt::format("a number in [{}, {}]", reg.range.umin, reg.range.umax);
      return fmt::format("a number in [{}, {}]", reg.range.smin, reg.range.smax);
    case RegKind::kContext: return fmt::format("the context{}", offset);
    case RegKind::kStack: return fmt::format("the stack at r10{}", offset);
    case RegKind::kMap: return fmt::format("map {}", reg.map);
    case RegKind::kMapValue: return fmt::format("a value of map {}{}{}", reg.map, offset, null);
    case RegKind::kRecord: return fmt::format("a record of {} bytes{}{}", reg.size, offset, null);
  }
  return "?";
}

RegState StackSlot::as_register() const {
  if (spill.kind != RegKind::kUninit) return spill;
  if (init != 0xff) return {};
  if (known != 0xff) return RegState::scalar(ScalarRange::unknown());
  uint64_t value = 0;
  std::memcpy(&value, bytes.data(), sizeof value);
  return RegState::constant(value);
}

void CheckState::normalise(uint16_t live) {
  for (size_t i = 0; i < 10; ++i) {
    if ((live >> i & 1) == 0) regs[i] = {};
  }
  std::unordered_map<uint32_t, int> uses;
  for_each_reg([&](RegState& reg) {
    if (reg.kind == RegKind::kScalar && reg.range.is_constant()) reg.id = 0;
    if (reg.id != 0) ++uses[reg.id];
  });
  for_each_reg([&](RegState& reg) {
    if (reg.kind == RegKind::kScalar && reg.id != 0 && uses[reg.id] == 1) reg.id = 0;
  });
}

bool contains(const CheckState& outer, const CheckState& inner) {
  IdPairs ids;
  if (!contains_held(outer, inner, ids)) return false;
  for (size_t i = 0; i < outer.regs.size(); ++i) {
    if (!contains_reg(outer.regs[i], inner.regs[i], ids)) return false;
  }
  for (size_t i = 0; i < outer.stack.size(); ++i) {
    if (!contains_slot(outer.stack[i], slot_or_empty(inner, i), ids)) return false;
  }
  return true;
}

std::optional<CheckState> join(const CheckState& old,
                               const CheckState& next,
                               JoinMode mode,
                               const Thresholds& thresholds) {
  Join join{.mode = mode, .thresholds = thresholds, .next_id = std::max(old.next_id, next.next_id)};
  CheckState result;
  if (!join.held(result, old, next)) return std::nullopt;
  for (size_t i = 0; i < result.regs.size(); ++i)
    result.regs[i] = join.regs(old.regs[i], next.regs[i]);
  result.stack.resize(std::min(old.stack.size(), next.stack.size()));
  for (size_t i = 0; i < result.stack.size(); ++i)
    result.stack[i] = join.slots(old.stack[i], next.stack[i]);
  result.next_id = join.next_id;
  return result;
}

}  // namespace spile::bpf
