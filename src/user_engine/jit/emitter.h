// AsmJit with bookkeeping: what the emitted code destroys, and which of its rel32 reach outside.
//
// Every instruction goes through op(), which asks AsmJit's instruction database what it writes. So
// a body's list of clobbered registers cannot disagree with its code.
#pragma once

#include <cstdint>
#include <vector>

#include <asmjit/x86.h>

#include "base/address.h"
#include "base/error.h"
#include "user_engine/jit/jit.h"

namespace spile::jit {

using Gp = asmjit::x86::Gp;
using Mem = asmjit::x86::Mem;
using Label = asmjit::Label;
namespace Inst = asmjit::x86::Inst;
using Operand = asmjit::Operand_;

/// The HitFrame word that saves a register. Not for rsp.
SlotMask slot_of(const Gp& reg);
/// Its offset in the HitFrame, in bytes.
int32_t frame_offset(const Gp& reg);

class Emitter {
 public:
  explicit Emitter(TargetAddr base);
  Emitter(const Emitter&) = delete;
  Emitter& operator=(const Emitter&) = delete;

  template <typename... Operands>
  void op(asmjit::InstId id, const Operands&... operands) {
    const Operand list[] = {operands...};
    emit(id, list, sizeof...(operands));
  }
  /// The same with a lock prefix.
  template <typename... Operands>
  void locked(asmjit::InstId id, const Operands&... operands) {
    assembler_.lock();
    op(id, operands...);
  }
  void op(asmjit::InstId id) { emit(id, nullptr, 0); }

  Label new_label() { return assembler_.newLabel(); }
  void bind(const Label& label) { note(assembler_.bind(label)); }
  void jump(const Label& to) { note(assembler_.jmp(to)); }
  void jump_if(asmjit::x86::CondCode condition, const Label& to);
  /// A call of code outside; the registers that a C function may destroy count as clobbered.
  void call_helper(TargetAddr to);
  /// A call of code outside, nothing noted.
  void call_body(TargetAddr to);
  void embed(const std::vector<uint8_t>& bytes) {
    note(assembler_.embed(bytes.data(), bytes.size()));
  }

  /// True where a rel32 from anywhere near `base` reaches the address, with room for moving the
  /// code a little.
  bool is_near(TargetAddr address) const;
  /// A memory operand at a fixed address. Uses `scratch` for its address if it is not near.
  Mem at(TargetAddr address, const Gp& scratch);
  void load_constant(const Gp& to, uint64_t value);
  /// to = the number of this CPU & mask.
  void load_cpu(const Gp& to, CpuNumber source, uint32_t mask);
  /// reg *= factor, in 64 bits.
  void multiply(const Gp& reg, uint32_t factor);

  size_t offset() const { return assembler_.offset(); }
  SlotMask clobbers() const { return clobbers_; }
  bool clobbers_flags() const { return clobbers_flags_; }
  const std::vector<Relocation>& relocations() const { return relocations_; }

  /// The bytes, for `base`. Errors: internal for anything AsmJit refused or a label that was never
  /// bound.
  Result<std::vector<uint8_t>> finish();

 private:
  void emit(asmjit::InstId id, const Operand* operands, size_t count);
  void note(asmjit::Error error);
  void note_writes(asmjit::InstId id, const Operand* operands, size_t count);
  void note_relocation(TargetAddr target, bool has_immediate);
  void call(TargetAddr to);

  TargetAddr base_;
  asmjit::CodeHolder code_;
  asmjit::x86::Assembler assembler_;
  asmjit::Error error_ = asmjit::kErrorOk;
  const char* broken_ = nullptr;  ///< what went wrong beside AsmJit
  SlotMask clobbers_ = 0;
  bool clobbers_flags_ = false;
  std::vector<Relocation> relocations_;
};

}  // namespace spile::jit
