#include "bpf/builder.h"

#include <limits>

namespace spile::bpf {

namespace {

uint8_t size_code(int size_bytes) {
  switch (size_bytes) {
    case 1: return kSizeB;
    case 2: return kSizeH;
    case 4: return kSizeW;
    default: SPILE_CHECK(size_bytes == 8); return kSizeDw;
  }
}

}  // namespace

void Builder::emit(uint8_t code, Reg dst, Reg src, int16_t off, int32_t imm) {
  auto regs = static_cast<uint8_t>(static_cast<unsigned>(dst) | static_cast<unsigned>(src) << 4);
  code_.push_back({code, regs, off, imm});
}

Builder::Label Builder::new_label() {
  labels_.push_back(-1);
  return {static_cast<int>(labels_.size()) - 1};
}

void Builder::bind(Label label) {
  SPILE_CHECK(labels_.at(label.id) < 0);
  labels_[label.id] = static_cast<int64_t>(code_.size());
}

void Builder::alu(uint8_t op, Reg dst, Reg src) {
  emit(kClassAlu64 | kSrcX | op, dst, src, 0, 0);
}
void Builder::alu_imm(uint8_t op, Reg dst, int32_t imm) {
  emit(kClassAlu64 | kSrcK | op, dst, Reg::r0, 0, imm);
}
void Builder::alu32(uint8_t op, Reg dst, Reg src) {
  emit(kClassAlu | kSrcX | op, dst, src, 0, 0);
}
void Builder::alu32_imm(uint8_t op, Reg dst, int32_t imm) {
  emit(kClassAlu | kSrcK | op, dst, Reg::r0, 0, imm);
}
void Builder::neg(Reg dst) {
  emit(kClassAlu64 | kNeg, dst, Reg::r0, 0, 0);
}

void Builder::load_imm64(Reg dst, uint64_t imm) {
  auto low = static_cast<int32_t>(imm);
  if (static_cast<uint64_t>(static_cast<int64_t>(low)) == imm) {
    mov_imm(dst, low);
    return;
  }
  emit(kClassLd | kSizeDw | kModeImm, dst, Reg::r0, 0, low);
  emit(0, Reg::r0, Reg::r0, 0, static_cast<int32_t>(imm >> 32));
}

void Builder::load_map(Reg dst, int map_index) {
  emit(kClassLd | kSizeDw | kModeImm, dst, static_cast<Reg>(kPseudoMapIdx), 0, map_index);
  emit(0, Reg::r0, Reg::r0, 0, 0);
}
void Builder::load_function(Reg dst, int number) {
  emit(kClassLd | kSizeDw | kModeImm, dst, static_cast<Reg>(kPseudoFunc), 0, number);
  emit(0, Reg::r0, Reg::r0, 0, 0);
}

void Builder::end(Reg dst, bool to_big, int bits) {
  emit(kClassAlu | kEnd | (to_big ? kSrcX : kSrcK), dst, Reg::r0, 0, bits);
}

void Builder::load(int size_bytes, Reg dst, Reg base, int16_t off) {
  emit(kClassLdx | size_code(size_bytes) | kModeMem, dst, base, off, 0);
}
void Builder::store(int size_bytes, Reg base, int16_t off, Reg src) {
  emit(kClassStx | size_code(size_bytes) | kModeMem, base, src, off, 0);
}
void Builder::store_imm(int size_bytes, Reg base, int16_t off, int32_t imm) {
  emit(kClassSt | size_code(size_bytes) | kModeMem, base, Reg::r0, off, imm);
}
void Builder::atomic(int size_bytes, int32_t op, Reg base, int16_t off, Reg src) {
  SPILE_CHECK(size_bytes == 4 || size_bytes == 8);
  emit(kClassStx | size_code(size_bytes) | kModeAtomic, base, src, off, op);
}

void Builder::emit_jump(uint8_t code, Reg dst, Reg src, int32_t imm, Label to) {
  fixups_.push_back({code_.size(), to.id});
  emit(code, dst, src, 0, imm);
}
void Builder::jump(Label to) {
  emit_jump(kClassJmp | kJa, Reg::r0, Reg::r0, 0, to);
}
void Builder::jump_if(uint8_t op, Reg dst, Reg src, Label to) {
  emit_jump(kClassJmp | kSrcX | op, dst, src, 0, to);
}
void Builder::jump_if_imm(uint8_t op, Reg dst, int32_t imm, Label to) {
  emit_jump(kClassJmp | kSrcK | op, dst, Reg::r0, imm, to);
}
void Builder::jump32_if_imm(uint8_t op, Reg dst, int32_t imm, Label to) {
  emit_jump(kClassJmp32 | kSrcK | op, dst, Reg::r0, imm, to);
}
void Builder::call(Helper helper) {
  emit(kClassJmp | kCall, Reg::r0, Reg::r0, 0, static_cast<int32_t>(helper));
}
void Builder::exit() {
  emit(kClassJmp | kExit, Reg::r0, Reg::r0, 0, 0);
}

Result<Program> Builder::finish() && {
  for (const Fixup& fixup : fixups_) {
    int64_t target = labels_.at(fixup.label);
    if (target < 0) return fail(ErrorCode::kInternal, "eBPF label {} is not bound", fixup.label);
    int64_t distance = target - static_cast<int64_t>(fixup.at) - 1;
    if (distance < std::numeric_limits<int16_t>::min() ||
        distance > std::numeric_limits<int16_t>::max()) {
      return fail(ErrorCode::kInternal, "eBPF jump over {} instructions", distance);
    }
    code_[fixup.at].off = static_cast<int16_t>(distance);
  }
  return std::move(code_);
}

}  // namespace spile::bpf
