#include "bpf/check_memory.h"

#include <algorithm>
#include <cstring>

#include "bpf/encoding.h"

namespace spile::bpf {

namespace {

/// No object is larger: offsets beyond this are wrong, and sums below it do not overflow.
constexpr int64_t kMaxOffset = int64_t{1} << 30;

Memory memory_kind(RegKind kind) {
  switch (kind) {
    case RegKind::kContext: return Memory::kContext;
    case RegKind::kStack: return Memory::kStack;
    case RegKind::kMapValue: return Memory::kMapValue;
    default: return Memory::kRecord;
  }
}

// Byte `offset` of the stack (-1 is the one just below r10) is byte byte_of() of slot slot_of().
size_t slot_of(int64_t offset) {
  return static_cast<size_t>((-offset - 1) / 8);
}
unsigned byte_of(int64_t offset) {
  return static_cast<unsigned>(offset & 7);
}

StackSlot& slot_at(CheckState& state, int64_t offset) {
  size_t index = slot_of(offset);
  if (index >= state.stack.size()) state.stack.resize(index + 1);
  return state.stack[index];
}

const StackSlot* find_slot(const CheckState& state, int64_t offset) {
  size_t index = slot_of(offset);
  return index < state.stack.size() ? &state.stack[index] : nullptr;
}

void set_byte(StackSlot& slot, unsigned byte, std::optional<uint8_t> value) {
  auto bit = static_cast<uint8_t>(1u << byte);
  slot.spill = {};  // the other bytes of a number stay initialised, those of a pointer never were
  slot.init |= bit;
  slot.known = static_cast<uint8_t>(value ? slot.known | bit : slot.known & ~bit);
  slot.bytes[byte] = value.value_or(0);
}

uint64_t constant_of(const StackSlot& slot, unsigned first_byte, uint32_t size) {
  uint64_t value = 0;
  std::memcpy(&value, slot.bytes.data() + first_byte, size);
  return value;
}

bool all_known(const StackSlot& slot, unsigned first_byte, uint32_t size) {
  auto wanted = static_cast<uint8_t>(((1u << size) - 1) << first_byte);
  return (slot.known & wanted) == wanted;
}

RegState number_of_size(uint32_t size) {
  return RegState::scalar(zero_extend(ScalarRange::unknown(), static_cast<int>(size) * 8));
}

}  // namespace

std::unexpected<Error> register_error(uint32_t insn,
                                      int reg,
                                      const RegState& state,
                                      std::string_view expected) {
  return fail(ErrorCode::kUnsafe, "insn {}: r{} is {}, expected {}", insn, reg, describe(state),
              expected);
}

// ---- where does it point?
// ------------------------------------------------------------------------------------------

Result<void> MemoryRules::require_memory(const CheckState& state, uint32_t at, int reg) {
  const RegState& base = state.regs[static_cast<size_t>(reg)];
  if (!base.is_pointer() || base.kind == RegKind::kMap)
    return register_error(at, reg, base, "a pointer to memory");
  if (base.maybe_null) return register_error(at, reg, base, "a pointer that was compared with 0");
  if (base.range.smin < -kMaxOffset || base.range.smax > kMaxOffset) {
    return register_error(at, reg, base, "a pointer with a bounded offset");
  }
  return {};
}

Result<void> MemoryRules::require_inside(const RegState& base,
                                         uint32_t at,
                                         int reg,
                                         const Span& span) const {
  bool is_stack = base.kind == RegKind::kStack;
  int64_t begin = is_stack ? -static_cast<int64_t>(env_.limits.max_stack_bytes) : 0;
  int64_t end = is_stack ? 0 : base.size;
  // No bytes at r10 itself are outside as well, as in the kernel.
  int64_t size = is_stack ? std::max(span.size, 1u) : span.size;
  if (span.low >= begin && span.high + size <= end) return {};
  return fail(ErrorCode::kUnsafe,
              "insn {}: r{} is {}: {} bytes from offset {} on are not inside [{}, {})", at, reg,
              describe(base), span.size, span.low < begin ? span.low : span.high, begin, end);
}

Result<MemoryRules::Span> MemoryRules::resolve_context(const RegState& base,
                                                       uint32_t at,
                                                       int reg,
                                                       Span span) {
  if (!base.range.is_constant() || base.range.umin != 0) {
    return register_error(at, reg, base,
                          "the context as it came, with the offset in the instruction");
  }
  if (span.low < env_.context_first_byte || span.low + span.size > env_.context_size) {
    return fail(ErrorCode::kUnsafe,
                "insn {}: bytes [{}, {}) of the context, where [{}, {}) can be used", at, span.low,
                span.low + span.size, env_.context_first_byte, env_.context_size);
  }
  if (span.low % span.size != 0) {
    return fail(ErrorCode::kUnsafe, "insn {}: {} bytes at offset {} of the context are not aligned",
                at, span.size, span.low);
  }
  return span;
}

Result<MemoryRules::Span> MemoryRules::resolve(
    const CheckState& state, uint32_t at, int reg, int64_t off, uint32_t size) {
  SPILE_TRY_VOID(require_memory(state, at, reg));
  const RegState& base = state.regs[static_cast<size_t>(reg)];
  Span span{base.kind, base.range.smin + off, base.range.smax + off, size};
  if (base.kind == RegKind::kContext) return resolve_context(base, at, reg, span);
  SPILE_TRY_VOID(require_inside(base, at, reg, span));
  if (base.kind == RegKind::kStack) facts_.stack(static_cast<uint32_t>(-span.low));
  return span;
}

Result<void> MemoryRules::require_alignment(
    const RegState& base, uint32_t at, int reg, int64_t off, uint32_t size) {
  ScalarRange first =
      alu64(kAdd, false, base.range, ScalarRange::constant(static_cast<uint64_t>(off)));
  if (first.is_aligned(size)) return {};
  return fail(ErrorCode::kUnsafe, "insn {}: r{} is {}: {} bytes at {:+} from there are not aligned",
              at, reg, describe(base), size, off);
}

// ---- the stack
// -----------------------------------------------------------------------------------------------------

Result<void> MemoryRules::require_stack_readable(const CheckState& state,
                                                 uint32_t at,
                                                 const Span& span) {
  for (int64_t offset = span.low; offset < span.high + span.size; ++offset) {
    const StackSlot* slot = find_slot(state, offset);
    if (slot != nullptr && slot->holds_pointer()) {
      return fail(ErrorCode::kUnsafe,
                  "insn {}: reads byte r10{:+} of the stack, which is part of {}", at, offset,
                  describe(slot->spill));
    }
    if (slot == nullptr || (slot->init >> byte_of(offset) & 1) == 0) {
      return fail(ErrorCode::kUnsafe,
                  "insn {}: reads byte r10{:+} of the stack, which is not initialised", at, offset);
    }
  }
  return {};
}

/// Numbers that nothing is known about are written to every byte of the span, or else to some of
/// them.
Result<void> MemoryRules::write_unknown(CheckState& state,
                                        uint32_t at,
                                        const Span& span,
                                        bool to_every_byte) {
  for (int64_t offset = span.low; offset < span.high + span.size; ++offset) {
    StackSlot& slot = slot_at(state, offset);
    unsigned byte = byte_of(offset);
    if (to_every_byte) {
      set_byte(slot, byte, std::nullopt);
      continue;
    }
    if (slot.holds_pointer()) {
      return fail(ErrorCode::kUnsafe,
                  "insn {}: could overwrite byte r10{:+} of the stack, which is part of {}", at,
                  offset, describe(slot.spill));
    }
    slot.spill = {};
    slot.known &= static_cast<uint8_t>(~(1u << byte));
  }
  return {};
}

Result<RegState> MemoryRules::load_stack(const CheckState& state, uint32_t at, const Span& span) {
  const StackSlot* slot = find_slot(state, span.low);
  bool is_whole_slot = span.is_exact() && span.size == 8;
  if (is_whole_slot && slot != nullptr && slot->spill.kind != RegKind::kUninit) return slot->spill;
  SPILE_TRY_VOID(require_stack_readable(state, at, span));
  if (!span.is_exact()) return number_of_size(span.size);
  unsigned byte = byte_of(span.low);
  if (all_known(*slot, byte, span.size))
    return RegState::constant(constant_of(*slot, byte, span.size));
  if (slot->spill.kind == RegKind::kScalar && byte == 0) {
    return RegState::scalar(zero_extend(slot->spill.range, static_cast<int>(span.size) * 8));
  }
  return number_of_size(span.size);
}

/// `value` is stored whole where it fills a slot. It then gets an id, so that what is later learned
/// about the register holds for the slot too.
Result<void> MemoryRules::store_stack(CheckState& state,
                                      uint32_t at,
                                      const Span& span,
                                      RegState& value) {
  if (!span.is_exact()) return write_unknown(state, at, span, false);
  StackSlot& slot = slot_at(state, span.low);
  if (value.is_pointer()) {
    slot = {.spill = value};
    return {};
  }
  if (value.range.is_constant()) {
    for (uint32_t i = 0; i < span.size; ++i) {
      set_byte(slot, byte_of(span.low) + i, static_cast<uint8_t>(value.range.umin >> (8 * i)));
    }
    return {};
  }
  if (span.size < 8) return write_unknown(state, at, span, true);
  if (value.id == 0) value.id = state.new_id();
  slot = {.init = 0xff, .spill = value};
  return {};
}

// ---- instructions
// --------------------------------------------------------------------------------------------------

Result<RegState> MemoryRules::load(CheckState& state, uint32_t at, const Insn& insn) {
  auto size = static_cast<uint32_t>(access_size(insn));
  SPILE_TRY(Span span, resolve(state, at, insn.src(), insn.off, size));
  facts_.memory(at, memory_kind(span.kind));
  RegState value = number_of_size(size);
  if (span.kind == RegKind::kContext) facts_.context_read(static_cast<uint32_t>(span.low), size);
  if (span.kind == RegKind::kStack) {
    SPILE_TRY_VOID(require_alignment(state.regs[insn.src()], at, insn.src(), insn.off, size));
    SPILE_TRY(value, load_stack(state, at, span));
  }
  if (insn_mode(insn) == kModeMemSx)
    value = RegState::scalar(sign_extend(value.range, static_cast<int>(size) * 8));
  return value;
}

Result<void> MemoryRules::store_value(CheckState& state,
                                      uint32_t at,
                                      const Insn& insn,
                                      RegState& value) {
  auto size = static_cast<uint32_t>(access_size(insn));
  SPILE_TRY(Span span, resolve(state, at, insn.dst(), insn.off, size));
  facts_.memory(at, memory_kind(span.kind));
  if (span.kind == RegKind::kContext && !env_.context_writable) {
    return fail(ErrorCode::kUnsafe, "insn {}: writes to the context, which is read-only", at);
  }
  bool is_stack = span.kind == RegKind::kStack;
  if (value.is_pointer() && !(is_stack && size == 8 && span.is_exact())) {
    return fail(ErrorCode::kUnsafe,
                "insn {}: stores {}, expected a number (pointers can be kept in 8 bytes of stack)",
                at, describe(value));
  }
  if (!is_stack) return {};
  SPILE_TRY_VOID(require_alignment(state.regs[insn.dst()], at, insn.dst(), insn.off, size));
  return store_stack(state, at, span, value);
}

Result<void> MemoryRules::store(CheckState& state, uint32_t at, const Insn& insn) {
  if (insn_class(insn) == kClassSt) {
    RegState value = RegState::constant(static_cast<uint64_t>(int64_t{insn.imm}));
    return store_value(state, at, insn, value);
  }
  RegState& value = state.regs[insn.src()];
  if (value.kind == RegKind::kUninit)
    return register_error(at, insn.src(), value, "a value to store");
  return store_value(state, at, insn, value);
}

Result<void> MemoryRules::atomic(CheckState& state, uint32_t at, const Insn& insn) {
  auto size = static_cast<uint32_t>(access_size(insn));
  SPILE_TRY(Span span, resolve(state, at, insn.dst(), insn.off, size));
  facts_.memory(at, memory_kind(span.kind));
  if (span.kind == RegKind::kContext)
    return fail(ErrorCode::kUnsafe, "insn {}: atomic on the context", at);
  SPILE_TRY_VOID(require_alignment(state.regs[insn.dst()], at, insn.dst(), insn.off, size));
  if (state.regs[insn.src()].kind != RegKind::kScalar) {
    return register_error(at, insn.src(), state.regs[insn.src()], "a number");
  }
  if (insn.imm == kCmpXchg && state.regs[0].kind != RegKind::kScalar) {
    return register_error(at, 0, state.regs[0], "the number to compare with");
  }
  if (span.kind == RegKind::kStack) {
    SPILE_TRY_VOID(require_stack_readable(state, at, span));
    SPILE_TRY_VOID(write_unknown(state, at, span, span.is_exact()));
  }
  if ((insn.imm & kFetch) == 0) return {};
  int result = insn.imm == kCmpXchg ? 0 : insn.src();
  state.regs[static_cast<size_t>(result)] = number_of_size(size);
  return {};
}

// ---- helpers
// -------------------------------------------------------------------------------------------------------

Result<void> MemoryRules::helper_reads(CheckState& state, uint32_t at, int reg, uint32_t size) {
  SPILE_TRY_VOID(require_memory(state, at, reg));
  const RegState& base = state.regs[static_cast<size_t>(reg)];
  if (base.kind == RegKind::kContext)
    return register_error(at, reg, base, "the stack, a map value or a record");
  SPILE_TRY(Span span, resolve(state, at, reg, 0, size));
  return span.kind == RegKind::kStack ? require_stack_readable(state, at, span) : Result<void>{};
}

Result<void> MemoryRules::helper_writes(
    CheckState& state, uint32_t at, int reg, uint32_t size, bool is_exact) {
  SPILE_TRY_VOID(require_memory(state, at, reg));
  const RegState& base = state.regs[static_cast<size_t>(reg)];
  if (base.kind == RegKind::kContext)
    return register_error(at, reg, base, "the stack, a map value or a record");
  SPILE_TRY(Span span, resolve(state, at, reg, 0, size));
  if (span.kind != RegKind::kStack) return {};
  return write_unknown(state, at, span, is_exact && span.is_exact());
}

std::optional<std::vector<uint8_t>> MemoryRules::constant_bytes(const CheckState& state,
                                                                int reg,
                                                                uint32_t size) {
  const RegState& base = state.regs[static_cast<size_t>(reg)];
  if (base.kind != RegKind::kStack || !base.range.is_constant()) return std::nullopt;
  std::vector<uint8_t> bytes;
  for (uint32_t i = 0; i < size; ++i) {
    auto offset = static_cast<int64_t>(base.range.umin) + i;
    const StackSlot* slot = find_slot(state, offset);
    if (slot == nullptr || (slot->known >> byte_of(offset) & 1) == 0) return std::nullopt;
    bytes.push_back(slot->bytes[byte_of(offset)]);
  }
  return bytes;
}

}  // namespace spile::bpf
