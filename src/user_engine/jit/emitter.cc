#include "user_engine/jit/emitter.h"

#include <array>
#include <bit>
#include <cstring>
#include <limits>

namespace spile::jit {

namespace x86 = asmjit::x86;

namespace {

constexpr uint32_t kSpId = 4;
/// Room for the code's own size and for copying a body into a detour of the same code region.
constexpr int64_t kNearMargin = 64 << 20;
/// rdpid and the limit of segment 0x7b: the low 12 bits are the CPU, the rest the node.
/// Source: Linux arch/x86/include/asm/segment.h, vdso_read_cpunode().
constexpr uint32_t kCpuBits = 0xfff;
constexpr uint32_t kCpuNodeSegment = 0x7b;

/// Offsets in the HitFrame by the number that x86 gives the register; rsp has none.
constexpr std::array<uint8_t, 16> kFrameOffsets = {
    offsetof(abi::HitFrame, ax),  offsetof(abi::HitFrame, cx),  offsetof(abi::HitFrame, dx),
    offsetof(abi::HitFrame, bx),  offsetof(abi::HitFrame, sp),  offsetof(abi::HitFrame, bp),
    offsetof(abi::HitFrame, si),  offsetof(abi::HitFrame, di),  offsetof(abi::HitFrame, r8),
    offsetof(abi::HitFrame, r9),  offsetof(abi::HitFrame, r10), offsetof(abi::HitFrame, r11),
    offsetof(abi::HitFrame, r12), offsetof(abi::HitFrame, r13), offsetof(abi::HitFrame, r14),
    offsetof(abi::HitFrame, r15)};

bool fits_int32(int64_t value) {
  return value == static_cast<int32_t>(value);
}

}  // namespace

SlotMask slot_of(const Gp& reg) {
  return slot_bit(kFrameOffsets[reg.id()]);
}
int32_t frame_offset(const Gp& reg) {
  return kFrameOffsets[reg.id()];
}

Emitter::Emitter(TargetAddr base) : base_(base) {
  // With the final base AsmJit encodes calls and rip-relative operands at once and in their short
  // form.
  note(code_.init(asmjit::Environment::host(), base.value));
  note(code_.attach(&assembler_));
}

void Emitter::note(asmjit::Error error) {
  if (error_ == asmjit::kErrorOk) error_ = error;
}

void Emitter::note_writes(asmjit::InstId id, const Operand* operands, size_t count) {
  asmjit::InstRWInfo info;
  note(asmjit::InstAPI::queryRWInfo(asmjit::Arch::kX64, asmjit::BaseInst(id), operands, count,
                                    &info));
  for (size_t i = 0; i < count; ++i) {
    if (!operands[i].isReg() || !info.operand(i).isWrite()) continue;
    if (!operands[i].as<asmjit::BaseReg>().isGp()) continue;  // vector registers are the caller's
    uint32_t reg = operands[i].id();
    if (reg != kSpId) clobbers_ |= slot_bit(kFrameOffsets.at(reg));
  }
  if (info.writeFlags() != asmjit::CpuRWFlags::kNone) clobbers_flags_ = true;
}

void Emitter::emit(asmjit::InstId id, const Operand* operands, size_t count) {
  note_writes(id, operands, count);
  note(assembler_.emitOpArray(id, operands, count));
  bool has_immediate = count > 0 && operands[count - 1].isImm();
  for (size_t i = 0; i < count; ++i) {
    if (!operands[i].isMem()) continue;
    const Mem& mem = operands[i].as<Mem>();
    if (!mem.hasBase() && mem.isRel())
      note_relocation(TargetAddr(static_cast<uint64_t>(mem.offset())), has_immediate);
  }
}

/// Finds the displacement in the instruction just emitted: an immediate of 1, 2 or 4 bytes follows
/// it, or nothing.
void Emitter::note_relocation(TargetAddr target, bool has_immediate) {
  size_t end = offset();
  int64_t displacement = target - (base_ + end);
  const uint8_t* bytes = code_.textSection()->buffer().data();
  size_t found = 0, at = 0;
  for (size_t trailing : {0, 1, 2, 4}) {
    if ((trailing != 0) != has_immediate || end < trailing + 4) continue;
    int32_t field;
    std::memcpy(&field, bytes + end - trailing - 4, 4);
    if (field != displacement) continue;
    ++found;
    at = end - trailing - 4;
  }
  if (found != 1) broken_ = "a displacement that cannot be found again";
  relocations_.push_back({static_cast<uint32_t>(at), static_cast<uint32_t>(end), target});
}

void Emitter::jump_if(x86::CondCode condition, const Label& to) {
  note(assembler_.j(condition, to));
}

void Emitter::call(TargetAddr to) {
  if (!is_near(to)) {
    broken_ = "a call beyond 2 GiB";
    return;
  }
  note(assembler_.call(asmjit::Imm(to.value)));
  note_relocation(to, false);
}

void Emitter::call_body(TargetAddr to) {
  call(to);
}

void Emitter::call_helper(TargetAddr to) {
  call(to);
  for (const Gp& reg :
       {x86::rax, x86::rcx, x86::rdx, x86::rsi, x86::rdi, x86::r8, x86::r9, x86::r10, x86::r11}) {
    clobbers_ |= slot_of(reg);
  }
  clobbers_flags_ = true;
}

bool Emitter::is_near(TargetAddr address) const {
  int64_t distance = address - base_;
  return distance > std::numeric_limits<int32_t>::min() + kNearMargin &&
         distance < std::numeric_limits<int32_t>::max() - kNearMargin;
}

Mem Emitter::at(TargetAddr address, const Gp& scratch) {
  if (!is_near(address)) {
    load_constant(scratch, address.value);
    return x86::ptr(scratch);
  }
  Mem mem = x86::ptr(address.value);
  mem.setRel();
  return mem;
}

void Emitter::load_constant(const Gp& to, uint64_t value) {
  if (value == 0) return op(Inst::kIdXor, to.r32(), to.r32());
  if (value <= std::numeric_limits<uint32_t>::max())
    return op(Inst::kIdMov, to.r32(), asmjit::Imm(value));
  if (fits_int32(static_cast<int64_t>(value))) return op(Inst::kIdMov, to, asmjit::Imm(value));
  if (is_near(TargetAddr(value))) return op(Inst::kIdLea, to, at(TargetAddr(value), to));
  op(Inst::kIdMov, to, asmjit::Imm(value));
}

void Emitter::load_cpu(const Gp& to, CpuNumber source, uint32_t mask) {
  if (source == CpuNumber::kRdpid) {
    op(Inst::kIdRdpid, to);
  } else {
    op(Inst::kIdMov, to.r32(), asmjit::Imm(kCpuNodeSegment));
    op(Inst::kIdLsl, to.r32(), to.r32());
  }
  op(Inst::kIdAnd, to.r32(), asmjit::Imm(mask & kCpuBits));
}

void Emitter::multiply(const Gp& reg, uint32_t factor) {
  if (std::has_single_bit(factor)) {
    if (factor > 1) op(Inst::kIdShl, reg, asmjit::Imm(std::countr_zero(factor)));
  } else {
    op(Inst::kIdImul, reg, reg, asmjit::Imm(factor));
  }
}

Result<std::vector<uint8_t>> Emitter::finish() {
  note(code_.flatten());
  note(code_.resolveUnresolvedLinks());
  if (error_ == asmjit::kErrorOk && code_.hasUnresolvedLinks())
    broken_ = "a label that was never bound";
  if (error_ == asmjit::kErrorOk && code_.hasRelocEntries()) broken_ = "an operand out of reach";
  if (broken_ != nullptr) return fail(ErrorCode::kInternal, "code for {}: {}", base_, broken_);
  if (error_ != asmjit::kErrorOk) {
    return fail(ErrorCode::kInternal, "code for {}: AsmJit: {}", base_,
                asmjit::DebugUtils::errorAsString(error_));
  }
  std::vector<uint8_t> bytes(code_.codeSize());
  note(code_.copyFlattenedData(bytes.data(), bytes.size()));
  if (error_ != asmjit::kErrorOk)
    return fail(ErrorCode::kInternal, "code for {}: cannot be copied", base_);
  return bytes;
}

}  // namespace spile::jit
