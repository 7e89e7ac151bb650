// A Builder that knows where control can get to, so that code which nothing reaches is never
// written: verifiers refuse unreachable instructions, and `exit(); printf(...)` is a correct
// script.
#pragma once

#include <vector>

#include "bpf/builder.h"

namespace spile::lang::codegen {

using bpf::Reg;

class Code {
 public:
  using Label = bpf::Builder::Label;

  Label new_label() {
    used_.push_back(false);
    return builder_.new_label();
  }
  /// What follows is reached by falling in or by a jump to `label`, if there was one.
  void bind(Label label) {
    if (!used_[label.id] && !reachable_) return;
    builder_.bind(label);
    reachable_ = true;
  }
  bool is_reachable() const { return reachable_; }
  bool is_used(Label label) const { return used_[label.id]; }

  void alu(uint8_t op, Reg dst, Reg src) {
    if (reachable_) builder_.alu(op, dst, src);
  }
  void alu_imm(uint8_t op, Reg dst, int32_t imm) {
    if (reachable_) builder_.alu_imm(op, dst, imm);
  }
  void mov(Reg dst, Reg src) {
    if (reachable_ && dst != src) builder_.mov(dst, src);
  }
  void mov_imm(Reg dst, int32_t imm) {
    if (reachable_) builder_.mov_imm(dst, imm);
  }
  /// Clears the upper half.
  void zero_extend_32(Reg reg) {
    if (reachable_) builder_.alu32(bpf::kMov, reg, reg);
  }
  void neg(Reg dst) {
    if (reachable_) builder_.neg(dst);
  }
  /// The low `bits` in the other order, the rest 0.
  void swap_bytes(Reg dst, int bits) {
    if (reachable_) builder_.end(dst, true, bits);
  }
  void load_imm64(Reg dst, uint64_t imm) {
    if (reachable_) builder_.load_imm64(dst, imm);
  }
  void load_map(Reg dst, int map) {
    if (reachable_) builder_.load_map(dst, map);
  }
  void load_function(Reg dst, int number) {
    if (reachable_) builder_.load_function(dst, number);
  }
  void load(uint32_t size, Reg dst, Reg base, int off) {
    if (reachable_) builder_.load(static_cast<int>(size), dst, base, static_cast<int16_t>(off));
  }
  void store(uint32_t size, Reg base, int off, Reg src) {
    if (reachable_) builder_.store(static_cast<int>(size), base, static_cast<int16_t>(off), src);
  }
  void store_imm(uint32_t size, Reg base, int off, int32_t imm) {
    if (reachable_)
      builder_.store_imm(static_cast<int>(size), base, static_cast<int16_t>(off), imm);
  }
  void atomic(int32_t op, Reg base, int off, Reg src) {
    if (reachable_) builder_.atomic(8, op, base, static_cast<int16_t>(off), src);
  }
  void jump(Label to) {
    if (!reachable_) return;
    used_[to.id] = true;
    builder_.jump(to);
    reachable_ = false;
  }
  void jump_if(uint8_t op, Reg dst, Reg src, Label to) {
    if (!reachable_) return;
    used_[to.id] = true;
    builder_.jump_if(op, dst, src, to);
  }
  void jump_if_imm(uint8_t op, Reg dst, int32_t imm, Label to) {
    if (!reachable_) return;
    used_[to.id] = true;
    builder_.jump_if_imm(op, dst, imm, to);
  }
  void jump32_if_imm(uint8_t op, Reg dst, int32_t imm, Label to) {
    if (!reachable_) return;
    used_[to.id] = true;
    builder_.jump32_if_imm(op, dst, imm, to);
  }
  void call(bpf::Helper helper) {
    if (reachable_) builder_.call(helper);
  }
  void exit() {
    if (!reachable_) return;
    builder_.exit();
    reachable_ = false;
  }

  size_t size() const { return builder_.size(); }
  Result<bpf::Program> finish() && { return std::move(builder_).finish(); }

 private:
  bpf::Builder builder_;
  std::vector<bool> used_;
  bool reachable_ = true;
};

}  // namespace spile::lang::codegen
