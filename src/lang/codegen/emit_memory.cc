// Strings, buffers and tuples: written where they are wanted.
#include <algorithm>
#include <cstring>

#include "lang/codegen/emitter.h"

namespace spile::lang::codegen {

using bpf::Helper;
using typed::ExprKind;

Reg Emitter::base_of(const Place& place, Reg scratch) {
  if (!place.base) return Reg::r10;
  if (place.base->in_register) return place.base->reg;
  get(*place.base, scratch);
  return scratch;
}

void Emitter::address_of(const Place& place, Reg dst) {
  code_.mov(dst, base_of(place, dst));
  if (place.offset != 0) code_.alu_imm(bpf::kAdd, dst, place.offset);
}

void Emitter::store(const Place& place, uint32_t size, Reg src) {
  code_.store(size, base_of(place, Reg::r5), place.offset, src);
}

void Emitter::store_imm(const Place& place, uint32_t size, int32_t imm) {
  code_.store_imm(size, base_of(place, Reg::r5), place.offset, imm);
}

void Emitter::zero(const Place& place, uint32_t bytes) {
  Reg base = base_of(place, Reg::r5);
  for (uint32_t at = 0; at < bytes; at += 8)
    code_.store_imm(8, base, place.offset + static_cast<int>(at), 0);
}

void Emitter::into(const Expr& expr, const Place& place, const Type& type, Fill fill) {
  if (expr.type.is_scalar()) return scalar_into(expr, place);
  aggregate_into(expr, place, type, fill);
}

void Emitter::scalar_into(const Expr& expr, const Place& place) {
  auto imm = static_cast<int32_t>(expr.number);
  bool is_immediate = expr.kind == ExprKind::kNumber &&
                      static_cast<uint64_t>(static_cast<int64_t>(imm)) == expr.number;
  if (is_immediate) return store_imm(place, 8, imm);
  value(expr);
  store(place, 8, Reg::r0);
}

void Emitter::aggregate_into(const Expr& expr, const Place& place, const Type& type, Fill fill) {
  switch (expr.kind) {
    case ExprKind::kText: return text_into(expr.text, place, type, fill);
    case ExprKind::kVariable:
      return copy(variable(expr.variable), clause_.variables[expr.variable].type, place, type,
                  fill);
    case ExprKind::kMapRead: return map_value_into(expr, place, type, fill);
    case ExprKind::kContextString:
    case ExprKind::kContextDataLoc: return context_string_into(expr, place, type, fill);
    case ExprKind::kBuiltin: return comm_into(place, type, fill);
    case ExprKind::kInet: return inet_into(expr, place);
    case ExprKind::kCopy: return object_into(expr, place);
    case ExprKind::kPart: return part_into(expr, place, type);
    case ExprKind::kBytes: return text_into(expr.text, place, type, Fill::kPadded);
    case ExprKind::kBytesOf: return bytes_of_into(expr, place, type);
    case ExprKind::kContextBytes: return context_bytes_into(expr, place);
    case ExprKind::kStack: return user_stack_into(expr, place);
    case ExprKind::kSymbol: return user_symbol_into(expr, place);
    case ExprKind::kStr: return string_into(expr, place, type, fill, expr.number);
    case ExprKind::kBuf: return buffer_into(expr, place, type, fill);
    case ExprKind::kConditional:
      return conditional(expr, [&](const Expr& side) { into(side, place, type, fill); });
    case ExprKind::kBlock:
      return block_value(expr, [&](const Expr& last) { into(last, place, type, fill); });
    case ExprKind::kTupleField: {
      FrameScope scope(frame_);
      const Type& tuple = expr.args[0]->type;
      Place element = materialise(*expr.args[0], tuple).at(field_offsets(tuple)[expr.number]);
      return copy(element, tuple.fields[expr.number], place, type, fill);
    }
    case ExprKind::kTuple: {
      if (expr.args.empty()) return zero(place, storage_bytes(type));
      auto offsets = field_offsets(type);
      for (size_t i = 0; i < expr.args.size(); ++i)
        into(*expr.args[i], place.at(offsets[i]), type.fields[i], fill);
      return;
    }
    default: SPILE_CHECK(false);
  }
}

void Emitter::text_into(const std::string& text, const Place& place, const Type& type, Fill fill) {
  auto wanted = static_cast<uint32_t>(text.size() + 1);
  uint32_t bytes = fill == Fill::kPadded ? storage_bytes(type)
                                         : std::min((wanted + 7) / 8 * 8, storage_bytes(type));
  std::string padded = text;
  padded.resize(bytes);
  Reg base = base_of(place, Reg::r5);
  for (uint32_t at = 0; at < bytes; at += 8) {
    int64_t word = 0;
    std::memcpy(&word, padded.data() + at, 8);
    int offset = place.offset + static_cast<int>(at);
    if (word == static_cast<int32_t>(word)) {
      code_.store_imm(8, base, offset, static_cast<int32_t>(word));
    } else {
      code_.store_imm(4, base, offset, static_cast<int32_t>(word));
      code_.store_imm(4, base, offset + 4, static_cast<int32_t>(word >> 32));
    }
  }
}

void Emitter::clamped_length(const Expr& expr, int32_t extra, uint64_t limit) {
  Label fits = code_.new_label();
  value(expr);
  code_.jump_if_imm(bpf::kJlt, Reg::r0, static_cast<int32_t>(limit) - extra + 1, fits);
  code_.mov_imm(Reg::r0, static_cast<int32_t>(limit) - extra);
  code_.bind(fits);
  if (extra != 0) code_.alu_imm(bpf::kAdd, Reg::r0, extra);
}

void Emitter::string_into(
    const Expr& expr, const Place& place, const Type& type, Fill fill, uint64_t limit) {
  FrameScope scope(frame_);
  std::optional<Held> length;
  if (expr.args.size() > 1) {
    clamped_length(*expr.args[1], 1, limit);
    length.emplace(hold(Reg::r0));
  }
  value_in(*expr.args[0], Reg::r3);
  // Linux before 6.3 wants the stack initialised where a helper writes a size that is not constant.
  bool is_padded = fill == Fill::kPadded || (length && place.is_stack());
  if (is_padded) zero(place, storage_bytes(type));
  if (length) {
    get(length->location(), Reg::r2);
  } else {
    code_.mov_imm(Reg::r2, static_cast<int32_t>(limit));
  }
  address_of(place, Reg::r1);
  uint32_t clear = is_padded ? storage_bytes(type) : 8;
  probe_read(Memory::kString, [this, place, clear] { zero(place, clear); });
}

void Emitter::buffer_into(const Expr& expr, const Place& place, const Type& type, Fill fill) {
  FrameScope scope(frame_);
  std::optional<Held> length;
  if (expr.args.size() > 1) {
    clamped_length(*expr.args[1], 0, expr.number);
    length.emplace(hold(Reg::r0));
  }
  value_in(*expr.args[0], Reg::r3);
  if (fill == Fill::kPadded || (length && place.is_stack())) zero(place, storage_bytes(type));
  if (length) {
    get(length->location(), Reg::r2);
    store(place, 4, Reg::r2);
  } else {
    code_.mov_imm(Reg::r2, static_cast<int32_t>(expr.number));
    store_imm(place, 4, static_cast<int32_t>(expr.number));
  }
  address_of(place.at(4), Reg::r1);
  uint32_t clear = fill == Fill::kPadded ? storage_bytes(type) : 8;
  probe_read(Memory::kBytes, [this, place, clear] { zero(place, clear); });
}

/// u64 family, then 16 bytes of which IPv4 uses four.
void Emitter::inet_into(const Expr& expr, const Place& place) {
  constexpr int32_t kInet4 = 2, kInet6 = 10;  // AF_INET, AF_INET6
  FrameScope scope(frame_);
  const bool is_copy = expr.args[0]->type.is_object();
  const Place known = is_copy ? materialise(*expr.args[0], expr.args[0]->type) : Place{};
  std::optional<Held> family;
  if (expr.args.size() > 1) {
    value(*expr.args[1]);
    family.emplace(hold(Reg::r0));
  }
  if (!is_copy) value(*expr.args[0]);
  if (!is_copy) code_.mov(Reg::r3, Reg::r0);
  zero(place, storage_bytes(expr.type));
  if (family) {
    get(family->location(), Reg::r0);
    store(place, 8, Reg::r0);
  } else {
    store_imm(place, 8, expr.number == 16 ? kInet6 : kInet4);
  }
  if (is_copy) return copy_bytes(known, place.at(8), static_cast<uint32_t>(expr.number));
  if (expr.number == 0) return store(place.at(8), 4, Reg::r3);
  code_.mov_imm(Reg::r2, static_cast<int32_t>(expr.number));
  address_of(place.at(8), Reg::r1);
  probe_read(Memory::kBytes, [this, place] { zero(place.at(8), 16); });
}

/// The bytes at an address, then zeros to a multiple of 8. What cannot be read is all zero.
void Emitter::object_into(const Expr& expr, const Place& place) {
  const uint32_t room = storage_bytes(expr.type);
  value_in(*expr.args[0], Reg::r3);
  if (expr.type.size % 8 != 0) zero(place.at(room - 8), 8);
  code_.mov_imm(Reg::r2, static_cast<int32_t>(expr.type.size));
  address_of(place, Reg::r1);
  probe_read(Memory::kBytes, [this, place, room] { zero(place, room); });
}

/// A struct, an array or a string inside of a copy. Both places begin at multiples of 8, so the
/// offset says how the bytes are aligned.
void Emitter::part_into(const Expr& expr, const Place& place, const Type& type) {
  FrameScope scope(frame_);
  const Place whole = materialise(*expr.args[0], expr.args[0]->type);
  const uint32_t bytes = std::min(expr.type.size, storage_bytes(type));
  zero(place, storage_bytes(type));
  copy_bytes(whole.at(expr.offset), place, bytes);
  if (expr.type.is_string()) store_imm(place.at(bytes - 1), 1, 0);
}

/// A number, a string or a copy as the bytes that it is made of.
void Emitter::bytes_of_into(const Expr& expr, const Place& place, const Type& type) {
  const Expr& from = *expr.args[0];
  if (from.type.is_scalar()) {  // at most 8 bytes
    value(from);
    if (expr.type.size < 8) {
      const auto above = static_cast<int32_t>(64 - 8 * expr.type.size);
      code_.alu_imm(bpf::kLsh, Reg::r0, above);
      code_.alu_imm(bpf::kRsh, Reg::r0, above);
    }
    return store(place, 8, Reg::r0);
  }
  FrameScope scope(frame_);
  const Place whole = materialise(from, from.type);
  zero(place, storage_bytes(type));
  copy_bytes(whole, place, expr.type.size);
  if (expr.type.is_string()) store_imm(place.at(expr.type.size - 1), 1, 0);
}

/// Clobbers r0, and r3 and r5 where the places are kept in slots.
void Emitter::copy_bytes(const Place& from, const Place& to, uint32_t bytes) {
  const Reg source = base_of(from, Reg::r3), destination = base_of(to, Reg::r5);
  const auto misaligned = static_cast<uint32_t>(from.offset) & 7;
  for (uint32_t at = 0; at < bytes;) {
    uint32_t width = 8;
    while (width > bytes - at || ((misaligned + at) & (width - 1)) != 0 || (at & (width - 1)) != 0)
      width /= 2;
    code_.load(width, Reg::r0, source, from.offset + static_cast<int>(at));
    code_.store(width, destination, to.offset + static_cast<int>(at), Reg::r0);
    at += width;
  }
}

void Emitter::comm_into(const Place& place, const Type& type, Fill fill) {
  constexpr uint32_t kTaskCommLen = 16;
  // Some kernels (6.1 among them) end the name and leave what is behind as it was: no two keys
  // alike.
  zero(place, kTaskCommLen);
  address_of(place, Reg::r1);
  code_.mov_imm(Reg::r2, kTaskCommLen);
  code_.call(Helper::kGetCurrentComm);
  if (fill == Fill::kPadded) zero(place.at(kTaskCommLen), storage_bytes(type) - kTaskCommLen);
}

void Emitter::stack_id(const Type& type) {
  constexpr int32_t kNoStack = -14;  // -EFAULT: a kernel thread has no user's stack
  draft_.note(type);
  code_.mov(Reg::r1, context(Reg::r1));
  code_.load_map(Reg::r2, draft_.stacks(type.frames));
  code_.mov_imm(Reg::r3, type.kind == Type::Kind::kUserStack ? bpf::kUserStack : 0);
  code_.call(Helper::kGetStackid);
  Label found = code_.new_label();
  code_.jump_if_imm(bpf::kJsge, Reg::r0, 0, found);
  code_.jump_if_imm(bpf::kJeq, Reg::r0, kNoStack, found);
  Held id = hold(Reg::r0);
  bump(bundle::Counter::kStackLost);
  get(id.location(), Reg::r0);
  code_.bind(found);
}

/// The process whose addresses these are.
void Emitter::process_into(const Place& place) {
  builtin(typed::Builtin::kPid);
  store(place, 8, Reg::r0);
}

void Emitter::user_stack_into(const Expr& expr, const Place& place) {
  FrameScope scope(frame_);
  stack_id(expr.type);
  store(place, 8, Reg::r0);
  process_into(place.at(8));
}

void Emitter::user_symbol_into(const Expr& expr, const Place& place) {
  draft_.note(expr.type);
  value(*expr.args[0]);
  store(place, 8, Reg::r0);
  process_into(place.at(8));
}

/// A string inside the event's record, which is kernel memory.
void Emitter::context_string_into(const Expr& expr,
                                  const Place& place,
                                  const Type& type,
                                  Fill fill) {
  auto at = static_cast<int32_t>(expr.offset);
  if (fill == Fill::kPadded) zero(place, storage_bytes(type));
  code_.mov(Reg::r3, context(Reg::r3));
  if (expr.kind == ExprKind::kContextString) {
    code_.alu_imm(bpf::kAdd, Reg::r3, at);
  } else {
    code_.load(4, Reg::r1, context(Reg::r1), at);
    code_.alu_imm(bpf::kAnd, Reg::r1, 0xffff);  // the high half is the size
    code_.alu(bpf::kAdd, Reg::r3, Reg::r1);
    if (expr.is_relative) code_.alu_imm(bpf::kAdd, Reg::r3, at + 4);
  }
  address_of(place, Reg::r1);
  code_.mov_imm(Reg::r2, static_cast<int32_t>(expr.type.size));
  code_.call(Helper::kProbeReadKernelStr);
  uint32_t clear = fill == Fill::kPadded ? storage_bytes(type) : 8;
  if_read_failed([this, place, clear] { zero(place, clear); });
}

/// An array inside the event's record, which is kernel memory.
void Emitter::context_bytes_into(const Expr& expr, const Place& place) {
  const uint32_t room = storage_bytes(expr.type);
  if (expr.type.size % 8 != 0) zero(place.at(room - 8), 8);
  code_.mov(Reg::r3, context(Reg::r3));
  code_.alu_imm(bpf::kAdd, Reg::r3, static_cast<int32_t>(expr.offset));
  address_of(place, Reg::r1);
  code_.mov_imm(Reg::r2, static_cast<int32_t>(expr.type.size));
  code_.call(Helper::kProbeReadKernel);
  if_read_failed([this, place, room] { zero(place, room); });
}

void Emitter::map_value_into(const Expr& expr, const Place& place, const Type& type, Fill fill) {
  FrameScope scope(frame_);
  Label missing = code_.new_label(), done = code_.new_label();
  lookup(expr.map, build_key(expr.map, pointers(expr.args)));
  code_.jump_if_imm(bpf::kJeq, Reg::r0, 0, missing);
  code_.mov(Reg::r4, Reg::r0);
  Place found{Location{true, Reg::r4, 0}, 0};
  copy(found, script_map(expr.map).value, place, type, fill);
  code_.jump(done);
  code_.bind(missing);
  zero(place, storage_bytes(type));
  code_.bind(done);
}

/// Clobbers r0 and r5, and r3 where `from` is kept in a slot.
void Emitter::copy(
    const Place& from, const Type& from_type, const Place& to, const Type& to_type, Fill fill) {
  if (from_type.kind == Type::Kind::kTuple && !from_type.fields.empty()) {
    auto from_offsets = field_offsets(from_type), to_offsets = field_offsets(to_type);
    for (size_t i = 0; i < from_type.fields.size(); ++i) {
      copy(from.at(from_offsets[i]), from_type.fields[i], to.at(to_offsets[i]), to_type.fields[i],
           fill);
    }
    return;
  }
  uint32_t bytes = std::min(storage_bytes(from_type), storage_bytes(to_type));
  Reg source = base_of(from, Reg::r3), destination = base_of(to, Reg::r5);
  for (uint32_t at = 0; at < bytes; at += 8) {
    code_.load(8, Reg::r0, source, from.offset + static_cast<int>(at));
    code_.store(8, destination, to.offset + static_cast<int>(at), Reg::r0);
  }
  if (fill == Fill::kPadded) zero(to.at(bytes), storage_bytes(to_type) - bytes);
}

Place Emitter::materialise(const Expr& expr, const Type& type) {
  if (expr.kind == ExprKind::kVariable && clause_.variables[expr.variable].type == type)
    return variable(expr.variable);
  Place place{{}, frame_.allocate(storage_bytes(type))};
  into(expr, place, type, Fill::kPadded);
  return place;
}

/// The address of user memory has a clear top bit on x86-64, that of kernel memory a set one: where
/// both may be given, the address itself says which it is.
void Emitter::probe_read(Memory what, const std::function<void()>& failed) {
  bool is_string = what == Memory::kString;
  Helper user = is_string ? Helper::kProbeReadUserStr : Helper::kProbeReadUser;
  Helper kernel = is_string ? Helper::kProbeReadKernelStr : Helper::kProbeReadKernel;
  if (!reads_kernel_) {
    code_.call(user);
  } else {
    Label is_kernel = code_.new_label(), done = code_.new_label();
    code_.jump_if_imm(bpf::kJslt, Reg::r3, 0, is_kernel);
    code_.call(user);
    code_.jump(done);
    code_.bind(is_kernel);
    code_.call(kernel);
    code_.bind(done);
  }
  if_read_failed(failed);
}

void Emitter::if_read_failed(const std::function<void()>& failed) {
  Label go_on = code_.new_label();
  code_.jump_if_imm(bpf::kJsge, Reg::r0, 0, go_on);
  bump(bundle::Counter::kReadFailed);
  failed();
  code_.bind(go_on);
}

}  // namespace spile::lang::codegen
