#include "user_engine/patch/go_stack.h"

#include <algorithm>
#include <array>
#include <string>
#include <utility>

#include "x86/format.h"

namespace spile::patch {
namespace {

using x86::Kind;
using x86::Shape;

/// From the start: cmp or lea and cmp, before 1.17 after a mov; then the jump.
constexpr int kMaxCheckInsns = 4;
constexpr uint8_t kJbe8 = 0x76, kJbe32 = 0x86;
constexpr uint8_t kVexMap = 255;
constexpr std::string_view kRegister = "mm15";

bool is_jbe(const Shape& s) {
  return (s.map == 0 && s.opcode == kJbe8) || (s.map == 1 && s.opcode == kJbe32);
}

/// Cheap, before the instruction is looked at as text.
bool may_name_register_15(const Shape& s) {
  if (s.map == kVexMap) return true;
  if (s.map == 0 || s.modrm_offset == 0) return false;
  const bool as_reg = (s.rex & 4) != 0 && (s.modrm >> 3 & 7) == 7;
  const bool as_rm = (s.rex & 1) != 0 && (s.modrm & 7) == 7 && s.modrm >> 6 == 3;
  return as_reg || as_rm;
}

bool is_zeroing(const std::string& text) {
  static constexpr std::array<std::string_view, 4> kZeroing = {
      "xorps %xmm15, %xmm15", "pxor %xmm15, %xmm15", "vpxor %xmm15, %xmm15, %xmm15",
      "vpxor %ymm15, %ymm15, %ymm15"};
  return std::ranges::find(kZeroing, text) != kZeroing.end();
}

/// The last operand is what is written; a mask may follow it.
bool writes_register_15(const std::string& text) {
  const size_t at = text.rfind(kRegister);
  if (at == std::string::npos || is_zeroing(text)) return false;
  const std::string_view behind = std::string_view(text).substr(at + kRegister.size());
  return behind.empty() || behind.front() == ' ' || behind.front() == '{';
}

}  // namespace

bool writes_vector_15(const CodeMap& map, const Sweep& code) {
  const auto writes = [&](const SweptInsn& insn) {
    if (!may_name_register_15(insn.shape)) return false;
    const TargetAddr at = code.address(insn);
    return writes_register_15(x86::format_insn(map.text_from(at).first(insn.shape.length), at));
  };
  return !code.is_trustworthy() || std::ranges::any_of(code.insns, writes) ||
         std::ranges::any_of(code.overlapped, writes);
}

Region checked_part(const CodeMap& map, const FunctionSpan& function) {
  const Region none{function.start, function.start};
  if (!is_go_stack_checked(map.text_from(function.start))) return none;
  TargetAddr at = function.start;
  for (int i = 0; i < kMaxCheckInsns; i++) {
    const auto shape = x86::decode_shape(map.text_from(at));
    if (!shape) return none;
    if (shape->kind == Kind::kJcc) {
      const TargetAddr failed = shape->branch_target(at);
      const bool inside = failed > at && failed < function.end;
      return is_jbe(*shape) && inside ? Region{at + shape->length, failed} : none;
    }
    if (shape->is_direct_branch() || shape->ends_flow()) return none;
    at = at + shape->length;
  }
  return none;
}

GoStacks::GoStacks(const ModuleCode& module, bool has_c_code)
    : map_(module), has_c_code_(has_c_code) {
  // cmp 0x10(%r14),%rsp or %r12: r14 is the goroutine from 1.17 on.
  const auto checks_by_r14 = [&](const Function& f) {
    const auto code = map_.text_from(f.start);
    return is_go_stack_checked(code) && code[0] != 0x64;
  };
  has_register_abi_ = std::ranges::any_of(module.functions, checks_by_r14);
}

GoStack GoStacks::at(TargetAddr at) const {
  const FunctionSpan* function = map_.function_at(at);
  return function == nullptr ? GoStack{} : in(*function, at);
}

GoStack GoStacks::in(const FunctionSpan& function, TargetAddr at) const {
  GoStack stack;
  if (is_behind_check(function, at)) stack.own_bytes = kGoStackBytes;
  if (may_have_values_at_entry(function)) return stack;
  const auto shape = x86::decode_shape(map_.text_from(at));
  const bool returns = shape && shape->kind == Kind::kRet && is_go_function(function.name);
  stack.may_switch =
      at == function.start || returns || !writes_vector_15(map_, sweep(map_, map_.region_at(at)));
  return stack;
}

bool GoStacks::is_behind_check(const FunctionSpan& function, TargetAddr at) const {
  return checked_part(map_, function).contains(at);
}

bool GoStacks::may_have_values_at_entry(const FunctionSpan& function) const {
  // Entered from a signal handler in the middle of other code: with all registers in use.
  if (function.name.starts_with("runtime.asyncPreempt")) return !has_register_abi_;
  if (is_go_function(function.name)) return false;
  if (has_c_code_ || function.name.empty()) return true;
  find_entered_with_values();
  return entered_with_values_.contains(function.start);
}

/// From all code that puts something in the register, along direct branches through functions
/// without a package. Cost: one pass over the text, some 100 ns an instruction.
void GoStacks::find_entered_with_values() const {
  if (std::exchange(searched_, true)) return;
  std::vector<TargetAddr> pending;
  for (const Region& region : map_.regions()) {
    const Sweep code = sweep(map_, region);
    if (writes_vector_15(map_, code)) note_parts_entered_from(code, pending);
  }
  while (!pending.empty()) {
    const TargetAddr start = pending.back();
    pending.pop_back();
    note_parts_entered_from(sweep(map_, map_.region_at(start)), pending);
  }
}

void GoStacks::note_parts_entered_from(const Sweep& code, std::vector<TargetAddr>& pending) const {
  for (const SweptInsn& insn : code.insns) {
    if (!insn.shape.is_direct_branch()) continue;
    const TargetAddr target = insn.shape.branch_target(code.address(insn));
    if (code.region.contains(target)) continue;
    const FunctionSpan* part = map_.function_at(target);
    if (part == nullptr || is_go_function(part->name)) continue;
    if (entered_with_values_.insert(part->start).second) pending.push_back(part->start);
  }
}

}  // namespace spile::patch
