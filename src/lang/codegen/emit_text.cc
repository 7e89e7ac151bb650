// strlen(), strncmp(), strcontains(), memcmp(): on strings that have been put on the stack, padded
// with zeros.
#include <algorithm>
#include <cstring>

#include "lang/codegen/emitter.h"

namespace spile::lang::codegen {

namespace {

/// The low `bytes` of a word.
constexpr uint64_t low_bytes(uint64_t bytes) {
  return bytes >= 8 ? ~uint64_t{0} : (uint64_t{1} << (bytes * 8)) - 1;
}

}  // namespace

/// Jumps if the truth of "the strings differ in their first `number` bytes" is `when`. Behind a NUL
/// there are only zeros, so that whole words may be compared.
void Emitter::branch_differs(const Expr& expr, bool when, Label to) {
  FrameScope scope(frame_);
  const Expr &left = *expr.args[0], &right = *expr.args[1];
  const uint32_t longest = std::max(storage_bytes(left.type), storage_bytes(right.type));
  const Type type = Type::string(longest);
  const Place a = materialise(left, type), b = materialise(right, type);
  const Label different = when ? to : code_.new_label();
  const uint64_t most = std::min<uint64_t>(expr.number, longest);
  for (uint64_t at = 0; at < most; at += 8) {
    const uint64_t mask = low_bytes(most - at);
    code_.load(8, Reg::r1, base_of(a, Reg::r3), a.offset + static_cast<int>(at));
    code_.load(8, Reg::r2, base_of(b, Reg::r3), b.offset + static_cast<int>(at));
    if (mask != ~uint64_t{0}) {
      code_.load_imm64(Reg::r4, mask);
      code_.alu(bpf::kAnd, Reg::r1, Reg::r4);
      code_.alu(bpf::kAnd, Reg::r2, Reg::r4);
    }
    code_.jump_if(bpf::kJne, Reg::r1, Reg::r2, different);
  }
  if (when) return;
  code_.jump(to);
  code_.bind(different);
}

/// r0 := bytes before the NUL. A word holds a zero byte where (w - 0x01...) & ~w & 0x80... is not
/// 0; in that word the bytes are counted one by one.
void Emitter::text_length(const Expr& expr) {
  FrameScope scope(frame_);
  const uint32_t bytes = storage_bytes(expr.type);
  const Place text = materialise(expr, expr.type);
  const Label found = code_.new_label(), done = code_.new_label();
  code_.mov_imm(Reg::r0, 0);
  code_.load_imm64(Reg::r3, 0x0101010101010101);
  code_.load_imm64(Reg::r4, 0x8080808080808080);
  for (uint32_t at = 0; at < bytes; at += 8) {
    code_.load(8, Reg::r1, base_of(text, Reg::r5), text.offset + static_cast<int>(at));
    code_.mov(Reg::r2, Reg::r1);
    code_.alu(bpf::kSub, Reg::r2, Reg::r3);
    code_.mov(Reg::r5, Reg::r1);
    code_.alu_imm(bpf::kXor, Reg::r5, -1);
    code_.alu(bpf::kAnd, Reg::r2, Reg::r5);
    code_.alu(bpf::kAnd, Reg::r2, Reg::r4);
    code_.jump_if_imm(bpf::kJne, Reg::r2, 0, found);
    code_.alu_imm(bpf::kAdd, Reg::r0, 8);
  }
  code_.jump(done);
  code_.bind(found);
  for (int i = 0; i < 7; ++i) {
    code_.mov(Reg::r2, Reg::r1);
    code_.alu_imm(bpf::kAnd, Reg::r2, 0xff);
    code_.jump_if_imm(bpf::kJeq, Reg::r2, 0, done);
    code_.alu_imm(bpf::kAdd, Reg::r0, 1);
    code_.alu_imm(bpf::kRsh, Reg::r1, 8);
  }
  code_.bind(done);
}

/// r0 := what lies between the first bytes that differ, 0 where all are equal.
void Emitter::compare_memory(const Expr& expr) {
  FrameScope scope(frame_);
  const Expr &left = *expr.args[0], &right = *expr.args[1];
  const Place a = materialise(left, left.type), b = materialise(right, right.type);
  const Label done = code_.new_label();
  code_.mov_imm(Reg::r0, 0);
  for (uint64_t at = 0; at < expr.number; ++at) {
    code_.load(1, Reg::r0, base_of(a, Reg::r3), a.offset + static_cast<int>(at));
    code_.load(1, Reg::r1, base_of(b, Reg::r3), b.offset + static_cast<int>(at));
    code_.alu(bpf::kSub, Reg::r0, Reg::r1);
    if (at + 1 < expr.number) code_.jump_if_imm(bpf::kJne, Reg::r0, 0, done);
  }
  code_.bind(done);
}

/// r0 := 1 where the text is in the string, else 0; for strstr() where it begins, else -1. Its last
/// bytes go through a register like through a window, one byte a step, so that every load is
/// aligned.
void Emitter::text_contains(const Expr& expr) {
  FrameScope scope(frame_);
  const Expr& text = *expr.args[0];
  const bool is_find = expr.kind == typed::ExprKind::kFind;
  const auto wanted = static_cast<uint32_t>(expr.text.size());
  const uint32_t bytes = text.type.size;
  const Place place = materialise(text, text.type);
  const Label done = code_.new_label();
  // The window holds the last eight bytes, the newest at its top; of longer texts the end is looked
  // for, then what is before it.
  const uint32_t in_window = std::min(wanted, 8u), before = wanted - in_window;
  uint64_t needle = 0;
  std::memcpy(&needle, expr.text.data() + before, in_window);
  code_.load_imm64(Reg::r4, needle << (64 - in_window * 8));
  code_.mov_imm(Reg::r0, 1);
  code_.mov_imm(Reg::r1, 0);
  if (wanted < 8) code_.load_imm64(Reg::r3, ~low_bytes(8 - wanted));
  for (uint32_t at = 0; at < bytes; ++at) {
    code_.load(1, Reg::r2, base_of(place, Reg::r5), place.offset + static_cast<int>(at));
    code_.alu_imm(bpf::kLsh, Reg::r2, 56);
    code_.alu_imm(bpf::kRsh, Reg::r1, 8);
    code_.alu(bpf::kOr, Reg::r1, Reg::r2);
    if (at + 1 < wanted) continue;
    if (wanted < 8) {
      code_.mov(Reg::r2, Reg::r1);
      code_.alu(bpf::kAnd, Reg::r2, Reg::r3);
    }
    const uint32_t begin = at + 1 - wanted;
    if (is_find) code_.mov_imm(Reg::r0, static_cast<int32_t>(begin));
    const Reg window = wanted < 8 ? Reg::r2 : Reg::r1;
    if (before == 0) {
      code_.jump_if(bpf::kJeq, window, Reg::r4, done);
      continue;
    }
    const Label next = code_.new_label();
    code_.jump_if(bpf::kJne, window, Reg::r4, next);
    for (uint32_t i = 0; i < before; ++i) {
      code_.load(1, Reg::r2, base_of(place, Reg::r5), place.offset + static_cast<int>(begin + i));
      code_.jump_if_imm(bpf::kJne, Reg::r2, static_cast<uint8_t>(expr.text[i]), next);
    }
    code_.jump(done);
    code_.bind(next);
  }
  code_.mov_imm(Reg::r0, is_find ? -1 : 0);
  code_.bind(done);
}

}  // namespace spile::lang::codegen
