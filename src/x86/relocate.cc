#include "x86/relocate.h"

#include <cstring>

namespace spile::x86 {
namespace {

constexpr size_t kMaxWindowBytes = 64;

/// ff /2 is call, ff /4 the same as jmp.
constexpr uint8_t kModrmRegMask = 0x38;
constexpr uint8_t kModrmJmp = 4 << 3;

int64_t sign_extended_rsp_disp(const Insn& insn) {
  return insn.disp_bytes == 0 ? 0 : insn.disp;
}

Result<void> check_indirect_call(const Insn& insn) {
  const bool through_register = (insn.modrm >> 6) == 3;
  if (through_register) {
    if (insn.reads & 1u << kRsp && (insn.modrm & 7) == kRsp && !(insn.rex & 1)) {
      return fail(ErrorCode::kUnsupported, "a call through rsp");
    }
    return {};
  }
  if (insn.base != kRsp) return {};
  if (insn.address32)
    return fail(ErrorCode::kUnsupported, "a call through 32-bit stack addressing");
  // The push of the return address happens before the operand is read: it must not be what is read.
  if (insn.index != kNoReg || sign_extended_rsp_disp(insn) < 0) {
    return fail(ErrorCode::kUnsupported, "a call through memory below the stack pointer");
  }
  if (sign_extended_rsp_disp(insn) > INT32_MAX - 8)
    return fail(ErrorCode::kUnsupported, "a call far up the stack");
  return {};
}

/// One run of relocate.
class Relocator {
 public:
  Relocator(std::span<const uint8_t> bytes, TargetAddr from, TargetAddr to)
      : bytes_(bytes), from_(from) {
    out_.address = to;
    out_.original = from;
    out_.original_bytes = static_cast<uint8_t>(bytes.size());
    // Of a few instructions and the jump back; in most cases no more is needed.
    out_.bytes.reserve(bytes.size() + 2 * kJmpBytes);
    out_.insns.reserve(4);
    out_.points.reserve(4);
  }

  Result<RelocatedCode> run() {
    for (size_t at = 0; at < bytes_.size();) {
      SPILE_TRY(const Insn insn, next(at));
      if (!out_.falls_through)
        return fail(ErrorCode::kInvalid, "instructions behind the end of control flow");
      add_point(code().size(), from_ + at, 0);
      out_.insns.push_back(
          {static_cast<uint8_t>(at), insn.length, static_cast<uint16_t>(code().size()), insn.kind});
      SPILE_TRY_VOID(emit(insn, at));
      at += insn.length;
      if (insn.ends_flow() || is_call(insn)) out_.falls_through = false;
    }
    if (out_.falls_through) add_point(code().size(), from_ + bytes_.size(), 0);
    return std::move(out_);
  }

 private:
  static bool is_call(const Insn& insn) {
    return insn.kind == Kind::kCall || insn.kind == Kind::kCallIndirect;
  }

  Code& code() { return out_.bytes; }
  TargetAddr here() const { return out_.address + out_.bytes.size(); }

  void add_point(size_t at, TargetAddr original, uint8_t pop_bytes) {
    const auto offset = static_cast<uint16_t>(at);
    // An instruction that left no bytes shares its place with the next: the later moment is the
    // right one to go back to. Not behind `int n`: a thread that waits in a system call must go
    // back right behind the original one, because the kernel restarts it by stepping two bytes back
    // from wherever the thread stands. (Behind `syscall` stands more code.)
    if (!out_.points.empty() && out_.points.back().offset == offset) {
      if (behind_interrupt()) return;
      out_.points.pop_back();
    }
    out_.points.push_back({offset, original, pop_bytes});
  }

  /// Is the last instruction that left bytes `int n`?
  bool behind_interrupt() const {
    for (size_t i = out_.insns.size(); i > 0; --i) {
      const MovedInsn& insn = out_.insns[i - 1];
      if (insn.new_offset < out_.bytes.size()) return insn.kind == Kind::kInterrupt;
    }
    return false;
  }

  Result<Insn> next(size_t at) {
    auto insn = decode(bytes_.subspan(at));
    if (!insn) return fail(ErrorCode::kInvalid, "no whole instruction at {}", from_ + at);
    SPILE_TRY_VOID(check_relocatable(*insn));
    if (is_call(*insn) && at + insn->length != bytes_.size()) {
      return fail(ErrorCode::kUnsafe, "the call at {} would return into the window", from_ + at);
    }
    if (insn->is_direct_branch()) {
      const TargetAddr target = insn->branch_target(from_ + at);
      if (target > from_ && target < from_ + bytes_.size()) {
        return fail(ErrorCode::kUnsafe, "the branch at {} goes into the window, to {}", from_ + at,
                    target);
      }
    }
    return *insn;
  }

  Result<void> emit(const Insn& insn, size_t at) {
    switch (insn.kind) {
      case Kind::kNop:
      case Kind::kEndbr: return {};
      case Kind::kJmp: return emit_jmp(insn.branch_target(from_ + at));
      case Kind::kJcc: return emit_jcc(insn, at);
      case Kind::kLoop: return emit_loop(insn, at);
      case Kind::kXbegin: return emit_xbegin(insn, at);
      case Kind::kSyscall: return emit_syscall(insn, at);
      case Kind::kCall:
        emit_push_return(at, insn.length);
        return emit_jmp(insn.branch_target(from_ + at));
      case Kind::kCallIndirect:
        emit_push_return(at, insn.length);
        return emit_indirect_call_as_jmp(insn, at);
      default: return emit_copy(insn, at);
    }
  }

  Result<void> emit_jmp(TargetAddr target) {
    SPILE_TRY(const auto jmp, encode_jmp(here(), target));
    code().insert(code().end(), jmp.begin(), jmp.end());
    return {};
  }

  Result<void> emit_jcc(const Insn& insn, size_t at) {
    code().insert(code().end(), {0x0f, static_cast<uint8_t>(0x80 | (insn.opcode & 0x0f))});
    return emit_rel32(insn.branch_target(from_ + at));
  }

  Result<void> emit_rel32(TargetAddr target) {
    SPILE_TRY(const int32_t distance, rel32(here() + 4, target));
    append_u32(code(), static_cast<uint32_t>(distance));
    return {};
  }

  ///   e2 02           loop taken     (with its prefixes)
  ///   eb 05           jmp next
  ///   e9 rel32        taken: jmp target
  ///                   next:
  Result<void> emit_loop(const Insn& insn, size_t at) {
    if (insn.address32) code().push_back(0x67);
    code().insert(code().end(), {insn.opcode, 0x02});
    add_point(code().size(), from_ + at + insn.length, 0);
    code().insert(code().end(), {0xeb, kJmpBytes});
    const TargetAddr target = insn.branch_target(from_ + at);
    add_point(code().size(), target, 0);
    return emit_jmp(target);
  }

  Result<void> emit_xbegin(const Insn& insn, size_t at) {
    code().insert(code().end(), {0xc7, 0xf8});
    return emit_rel32(insn.branch_target(from_ + at));
  }

  /// The kernel leaves the address behind the system call in rcx: the program sees its own.
  ///   0f 05               syscall
  ///   48 8d 0d rel32      lea behind the original(%rip), %rcx
  Result<void> emit_syscall(const Insn& insn, size_t at) {
    SPILE_TRY_VOID(emit_copy(insn, at));
    const TargetAddr behind = from_ + at + insn.length;
    add_point(code().size(), behind, 0);
    code().insert(code().end(), {0x48, 0x8d, 0x0d});
    return emit_rel32(behind);
  }

  /// From the first half of the push on, a thread stopped here goes back to before the call.
  void emit_push_return(size_t at, size_t length) {
    constexpr size_t kPushImm32Bytes = 5;
    const size_t pushed = code().size() + kPushImm32Bytes;
    append_push_imm64(code(), (from_ + at + length).value);
    add_point(pushed, from_ + at, 8);
    add_point(code().size(), from_ + at, 8);
  }

  Result<void> emit_indirect_call_as_jmp(const Insn& insn, size_t at) {
    const size_t start = code().size();
    if (insn.base != kRsp) {
      SPILE_TRY_VOID(emit_copy(insn, at));
      uint8_t& modrm = code()[start + insn.modrm_offset];
      modrm = static_cast<uint8_t>((modrm & ~kModrmRegMask) | kModrmJmp);
      return {};
    }
    // The push moved rsp by 8: the same operand is 8 further up. mod 10 has a 32-bit displacement.
    const auto original = bytes_.subspan(at, insn.length);
    code().insert(code().end(), original.begin(), original.begin() + insn.modrm_offset);
    code().insert(code().end(), {static_cast<uint8_t>(0x80 | kModrmJmp | kRsp), insn.sib});
    append_u32(code(), static_cast<uint32_t>(sign_extended_rsp_disp(insn) + 8));
    return {};
  }

  Result<void> emit_copy(const Insn& insn, size_t at) {
    const TargetAddr start = here();
    const size_t offset = code().size();
    const auto original = bytes_.subspan(at, insn.length);
    code().insert(code().end(), original.begin(), original.end());
    if (!insn.rip_relative) return {};
    const TargetAddr operand = insn.rip_target(from_ + at);
    SPILE_TRY(const int32_t disp, rel32(start + insn.length, operand));
    std::memcpy(&code()[offset + insn.disp_offset], &disp, sizeof disp);
    return {};
  }

  std::span<const uint8_t> bytes_;
  TargetAddr from_;
  RelocatedCode out_;
};

}  // namespace

Result<void> check_relocatable(const Insn& insn) {
  switch (insn.kind) {
    case Kind::kBreakpoint: return fail(ErrorCode::kUnsafe, "a breakpoint of somebody else");
    case Kind::kTrap: return fail(ErrorCode::kUnsafe, "a trap, whose handlers look at its address");
    case Kind::kSwitch:
      return fail(ErrorCode::kUnsafe, "the switch of a tracepoint, which its program rewrites");
    case Kind::kFar: return fail(ErrorCode::kUnsafe, "a far or privileged transfer");
    case Kind::kShadowStack: return fail(ErrorCode::kUnsafe, "an access to the shadow stack");
    case Kind::kCallIndirect: SPILE_TRY_VOID(check_indirect_call(insn)); break;
    default: break;
  }
  if (insn.privileged) return fail(ErrorCode::kUnsafe, "a privileged instruction");
  if (insn.operand16 && (insn.is_direct_branch() || insn.kind == Kind::kCallIndirect)) {
    return fail(ErrorCode::kUnsupported,
                "a 16-bit branch, which Intel and AMD processors run differently");
  }
  if (insn.rip_relative && insn.address32) {
    return fail(ErrorCode::kUnsupported, "an operand relative to eip");
  }
  if (insn.rip_relative && insn.disp_bytes != 4)
    return fail(ErrorCode::kInternal, "a rip-relative operand without disp32");
  return {};
}

Result<RelocatedCode> relocate(std::span<const uint8_t> bytes, TargetAddr from, TargetAddr to) {
  if (bytes.empty() || bytes.size() > kMaxWindowBytes) {
    return fail(ErrorCode::kInvalid, "a window of {} bytes", bytes.size());
  }
  return Relocator(bytes, from, to).run();
}

Result<void> append_jump_back(RelocatedCode& code) {
  if (!code.falls_through) return {};
  const TargetAddr here = code.address + code.bytes.size();
  SPILE_TRY(const auto jmp, encode_jmp(here, code.original + code.original_bytes));
  code.bytes.insert(code.bytes.end(), jmp.begin(), jmp.end());
  return {};
}

std::optional<TargetAddr> RelocatedCode::to_relocated(TargetAddr rip) const {
  for (const MovedInsn& insn : insns) {
    // Right behind the copied one, because the kernel may step two bytes back.
    if (insn.kind == Kind::kSyscall && rip == original + insn.old_offset + insn.old_bytes)
      return address + insn.new_offset + insn.old_bytes;
    if (rip == original + insn.old_offset) return address + insn.new_offset;
  }
  if (falls_through && rip == original + original_bytes) return address + points.back().offset;
  return std::nullopt;
}

std::optional<ResumePoint> RelocatedCode::to_original(TargetAddr rip) const {
  for (const ResumePoint& point : points) {
    if (rip == address + point.offset) return point;
  }
  return std::nullopt;
}

}  // namespace spile::x86
