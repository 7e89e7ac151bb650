// Emits eBPF with labels: what the code generator and tests write programs with.
#pragma once

#include <cstdint>
#include <vector>

#include "base/error.h"
#include "bpf/insn.h"

namespace spile::bpf {

class Builder {
 public:
  struct Label {
    int id = -1;
  };

  Label new_label();
  void bind(Label label);

  // ALU, 64 and 32 bit; `op` is kAdd ... kArsh.
  void alu(uint8_t op, Reg dst, Reg src);
  void alu_imm(uint8_t op, Reg dst, int32_t imm);
  void alu32(uint8_t op, Reg dst, Reg src);
  void alu32_imm(uint8_t op, Reg dst, int32_t imm);
  void neg(Reg dst);
  void mov(Reg dst, Reg src) { alu(kMov, dst, src); }
  void mov_imm(Reg dst, int32_t imm) { alu_imm(kMov, dst, imm); }
  /// Any 64-bit constant: mov where the sign-extended 32 bits do, else lddw.
  void load_imm64(Reg dst, uint64_t imm);
  /// The map with this index in the Bundle.
  void load_map(Reg dst, int map_index);
  /// The function of this number; whoever puts functions together makes a distance of it.
  void load_function(Reg dst, int number);
  /// Byte swap to big (`to_big`) or little endian; bits 16, 32, 64.
  void end(Reg dst, bool to_big, int bits);

  // Memory; size_bytes is 1, 2, 4 or 8; loads zero-extend.
  void load(int size_bytes, Reg dst, Reg base, int16_t off);
  void store(int size_bytes, Reg base, int16_t off, Reg src);
  void store_imm(int size_bytes, Reg base, int16_t off, int32_t imm);
  /// lock op [base+off], src (size 4 or 8); with kFetch src gets the old value; kCmpXchg compares
  /// with r0.
  void atomic(int size_bytes, int32_t op, Reg base, int16_t off, Reg src);

  // Control flow; `op` is kJeq ... kJsle.
  void jump(Label to);
  void jump_if(uint8_t op, Reg dst, Reg src, Label to);
  void jump_if_imm(uint8_t op, Reg dst, int32_t imm, Label to);
  void jump32_if_imm(uint8_t op, Reg dst, int32_t imm, Label to);
  void call(Helper helper);
  void exit();

  size_t size() const { return code_.size(); }

  /// Resolves labels. Errors: internal for an unbound label or a jump beyond 32767 instructions.
  Result<Program> finish() &&;

 private:
  struct Fixup {
    size_t at;
    int label;
  };
  void emit(uint8_t code, Reg dst, Reg src, int16_t off, int32_t imm);
  void emit_jump(uint8_t code, Reg dst, Reg src, int32_t imm, Label to);

  Program code_;
  std::vector<int64_t> labels_;
  std::vector<Fixup> fixups_;
};

}  // namespace spile::bpf
