#include "x86/decode.h"

#include <Zydis/Zydis.h>

namespace spile::x86 {
namespace {

const ZydisDecoder& decoder() {
  static const ZydisDecoder kDecoder = [] {
    ZydisDecoder d;
    ZydisDecoderInit(&d, ZYDIS_MACHINE_MODE_LONG_64, ZYDIS_STACK_WIDTH_64);
    return d;
  }();
  return kDecoder;
}

/// 90 and 0f 1f /0. Zydis also calls nops what is reserved for later use, some of which faults (0f
/// 0d ee).
bool is_recommended_nop(const ZydisDecodedInstruction& in) {
  if (in.opcode_map == ZYDIS_OPCODE_MAP_DEFAULT) return in.opcode == 0x90;
  return in.opcode_map == ZYDIS_OPCODE_MAP_0F && in.opcode == 0x1f && in.raw.modrm.reg == 0;
}

Kind kind_of_mnemonic(const ZydisDecodedInstruction& in) {
  switch (in.mnemonic) {
    case ZYDIS_MNEMONIC_ENDBR64: return Kind::kEndbr;
    case ZYDIS_MNEMONIC_NOP: return is_recommended_nop(in) ? Kind::kNop : Kind::kPlain;
    case ZYDIS_MNEMONIC_INT3: return Kind::kBreakpoint;
    case ZYDIS_MNEMONIC_INT:
      return in.raw.imm[0].value.u == 3 ? Kind::kBreakpoint : Kind::kInterrupt;
    case ZYDIS_MNEMONIC_SYSCALL: return Kind::kSyscall;
    case ZYDIS_MNEMONIC_UD0:
    case ZYDIS_MNEMONIC_UD1:
    case ZYDIS_MNEMONIC_UD2:
    case ZYDIS_MNEMONIC_INT1:
    case ZYDIS_MNEMONIC_HLT: return Kind::kTrap;
    case ZYDIS_MNEMONIC_IRET:
    case ZYDIS_MNEMONIC_IRETD:
    case ZYDIS_MNEMONIC_IRETQ:
    case ZYDIS_MNEMONIC_SYSRET:
    case ZYDIS_MNEMONIC_SYSENTER:
    case ZYDIS_MNEMONIC_SYSEXIT:
    case ZYDIS_MNEMONIC_UIRET:
    case ZYDIS_MNEMONIC_ENCLU: return Kind::kFar;
    case ZYDIS_MNEMONIC_RET:
      return in.meta.branch_type == ZYDIS_BRANCH_TYPE_FAR ? Kind::kFar : Kind::kRet;
    case ZYDIS_MNEMONIC_XBEGIN: return Kind::kXbegin;
    case ZYDIS_MNEMONIC_JCXZ:
    case ZYDIS_MNEMONIC_JECXZ:
    case ZYDIS_MNEMONIC_JRCXZ:
    case ZYDIS_MNEMONIC_LOOP:
    case ZYDIS_MNEMONIC_LOOPE:
    case ZYDIS_MNEMONIC_LOOPNE: return Kind::kLoop;
    default: return Kind::kPlain;
  }
}

Kind kind_of(const ZydisDecodedInstruction& in) {
  const Kind kind = kind_of_mnemonic(in);
  if (kind != Kind::kPlain) return kind;
  const bool direct = in.raw.imm[0].size != 0 && in.raw.imm[0].is_relative;
  if (in.mnemonic == ZYDIS_MNEMONIC_CALL || in.mnemonic == ZYDIS_MNEMONIC_JMP) {
    if (in.meta.branch_type == ZYDIS_BRANCH_TYPE_FAR) return Kind::kFar;
    if (in.mnemonic == ZYDIS_MNEMONIC_CALL) return direct ? Kind::kCall : Kind::kCallIndirect;
    return direct ? Kind::kJmp : Kind::kJmpIndirect;
  }
  // Zydis counts xend and xabort among the conditional branches, too.
  if (in.meta.category == ZYDIS_CATEGORY_COND_BR && direct) return Kind::kJcc;
  if (in.meta.isa_ext == ZYDIS_ISA_EXT_CET) return Kind::kShadowStack;
  return Kind::kPlain;
}

/// The switch of a tracepoint (include/spile/detail/site.h). Off, it is one nop of eight bytes; on,
/// its third byte is 00, so that a nop of three bytes and a jump are run:
///   0f 1f 84 e9 rel32   nopl rel32(%rcx,%rbp,8)        0f 1f 00   nopl (%rax);   e9 rel32   jmp
/// Whoever looks at code has to see the way that it may take at any time.
void note_switch(const ZydisDecodedInstruction& in, Shape& out) {
  const bool is_switch = out.kind == Kind::kNop && in.length == 8 && out.modrm == 0x84 &&
                         out.sib == 0xe9 && out.disp_bytes == 4;
  if (!is_switch) return;
  out.kind = Kind::kSwitch;
  out.imm = out.disp;
  out.imm_offset = out.disp_offset;
  out.imm_bytes = out.disp_bytes;
}

uint8_t map_of(const ZydisDecodedInstruction& in) {
  if (in.encoding != ZYDIS_INSTRUCTION_ENCODING_LEGACY) return 255;
  switch (in.opcode_map) {
    case ZYDIS_OPCODE_MAP_DEFAULT: return 0;
    case ZYDIS_OPCODE_MAP_0F: return 1;
    case ZYDIS_OPCODE_MAP_0F38: return 2;
    case ZYDIS_OPCODE_MAP_0F3A: return 3;
    default: return 255;
  }
}

void fill_shape(const ZydisDecodedInstruction& in, Shape& out) {
  out.length = in.length;
  out.kind = kind_of(in);
  out.address32 = (in.attributes & ZYDIS_ATTRIB_HAS_ADDRESSSIZE) != 0;
  out.operand16 = (in.attributes & ZYDIS_ATTRIB_HAS_OPERANDSIZE) != 0 && in.raw.rex.W == 0;
  out.map = map_of(in);
  out.opcode = in.opcode;
  if (in.attributes & ZYDIS_ATTRIB_HAS_REX) {
    out.rex = static_cast<uint8_t>(0x40 | in.raw.rex.W << 3 | in.raw.rex.R << 2 |
                                   in.raw.rex.X << 1 | in.raw.rex.B);
  }
  out.opcode_offset = in.raw.prefix_count + (out.map == 1                   ? 1
                                             : out.map == 2 || out.map == 3 ? 2
                                                                            : 0);
  if (in.attributes & ZYDIS_ATTRIB_HAS_MODRM) {
    out.modrm_offset = in.raw.modrm.offset;
    out.modrm =
        static_cast<uint8_t>(in.raw.modrm.mod << 6 | in.raw.modrm.reg << 3 | in.raw.modrm.rm);
    out.rip_relative = in.raw.modrm.mod == 0 && in.raw.modrm.rm == 5;
  }
  if (in.attributes & ZYDIS_ATTRIB_HAS_SIB) {
    const unsigned scale_bits = in.raw.sib.scale;
    out.sib = static_cast<uint8_t>(scale_bits << 6 | in.raw.sib.index << 3 | in.raw.sib.base);
  }
  if (in.raw.disp.size != 0) {
    out.disp_offset = in.raw.disp.offset;
    out.disp_bytes = in.raw.disp.size / 8;
    out.disp = in.raw.disp.value;
  }
  if (in.raw.imm[0].size != 0) {
    out.imm_offset = in.raw.imm[0].offset;
    out.imm_bytes = in.raw.imm[0].size / 8;
    out.imm = in.raw.imm[0].value.s;
  }
  note_switch(in, out);
}

/// Allowed only at an I/O privilege level that programs practically never have; Zydis counts them
/// apart.
bool needs_io_privilege(ZydisMnemonic mnemonic) {
  switch (mnemonic) {
    case ZYDIS_MNEMONIC_CLI:
    case ZYDIS_MNEMONIC_STI:
    case ZYDIS_MNEMONIC_IN:
    case ZYDIS_MNEMONIC_OUT:
    case ZYDIS_MNEMONIC_INSB:
    case ZYDIS_MNEMONIC_INSW:
    case ZYDIS_MNEMONIC_INSD:
    case ZYDIS_MNEMONIC_OUTSB:
    case ZYDIS_MNEMONIC_OUTSW:
    case ZYDIS_MNEMONIC_OUTSD: return true;
    default: return false;
  }
}

int gpr_number(ZydisRegister reg) {
  const ZydisRegister whole = ZydisRegisterGetLargestEnclosing(ZYDIS_MACHINE_MODE_LONG_64, reg);
  if (ZydisRegisterGetClass(whole) != ZYDIS_REGCLASS_GPR64) return kNoReg;
  return ZydisRegisterGetId(whole);
}

RegMask gpr_mask(ZydisRegister reg) {
  const int n = gpr_number(reg);
  return n == kNoReg ? 0 : static_cast<RegMask>(1u << n);
}

void add_register(const ZydisDecodedOperand& op, Insn& out) {
  const RegMask mask = gpr_mask(op.reg.value);
  if (op.actions & ZYDIS_OPERAND_ACTION_MASK_READ) out.reads |= mask;
  if (op.actions & ZYDIS_OPERAND_ACTION_MASK_WRITE) out.writes |= mask;
  if ((op.actions & ZYDIS_OPERAND_ACTION_WRITE) && op.size >= 32) out.overwrites |= mask;
}

void add_memory(const ZydisDecodedOperand& op, Insn& out) {
  out.reads |= gpr_mask(op.mem.base) | gpr_mask(op.mem.index);
  const bool by_modrm = op.encoding == ZYDIS_OPERAND_ENCODING_MODRM_RM;
  const bool accessed =
      op.mem.type != ZYDIS_MEMOP_TYPE_AGEN && out.kind != Kind::kNop && out.kind != Kind::kSwitch;
  if (!by_modrm) {
    out.implicit_memory |= accessed;
    return;
  }
  out.has_memory |= accessed;
  const unsigned size_bytes = op.size / 8;
  out.memory_bytes = static_cast<uint8_t>(size_bytes > 255 ? 255 : size_bytes);
  out.base =
      static_cast<uint8_t>(op.mem.base == ZYDIS_REGISTER_RIP ? kNoReg : gpr_number(op.mem.base));
  out.index = static_cast<uint8_t>(gpr_number(op.mem.index));
  out.scale = op.mem.scale;
}

/// Shifts and rotates by a count that may be zero, and repeated string instructions, may leave
/// flags alone.
bool may_keep_flags(const ZydisDecodedInstruction& in) {
  switch (in.meta.category) {
    case ZYDIS_CATEGORY_SHIFT:
    case ZYDIS_CATEGORY_ROTATE:
    case ZYDIS_CATEGORY_STRINGOP: return true;
    default: return false;
  }
}

void add_flags(const ZydisDecodedInstruction& in, Insn& out) {
  if (in.cpu_flags == nullptr) return;
  const auto& f = *in.cpu_flags;
  out.flags_read = static_cast<FlagMask>(f.tested & kStatusFlags);
  out.flags_written =
      static_cast<FlagMask>((f.modified | f.set_0 | f.set_1 | f.undefined) & kStatusFlags);
  // "Undefined" may mean unchanged: AMD's imul leaves PF as it was. And, or, xor and test clear AF
  // everywhere.
  const auto kept = in.meta.category == ZYDIS_CATEGORY_LOGICAL ? 0u : f.undefined;
  out.flags_overwritten = may_keep_flags(in) ? 0 : static_cast<FlagMask>(out.flags_written & ~kept);
}

}  // namespace

std::string_view to_string(Kind kind) {
  switch (kind) {
    case Kind::kPlain: return "plain";
    case Kind::kNop: return "nop";
    case Kind::kEndbr: return "endbr64";
    case Kind::kCall: return "call";
    case Kind::kCallIndirect: return "indirect call";
    case Kind::kJmp: return "jump";
    case Kind::kJmpIndirect: return "indirect jump";
    case Kind::kJcc: return "conditional jump";
    case Kind::kSwitch: return "switch of a tracepoint";
    case Kind::kLoop: return "loop";
    case Kind::kXbegin: return "xbegin";
    case Kind::kRet: return "return";
    case Kind::kSyscall: return "system call";
    case Kind::kInterrupt: return "software interrupt";
    case Kind::kBreakpoint: return "breakpoint";
    case Kind::kTrap: return "trap";
    case Kind::kFar: return "far or privileged transfer";
    case Kind::kShadowStack: return "shadow stack";
  }
  return "?";
}

std::optional<Shape> decode_shape(std::span<const uint8_t> bytes) {
  ZydisDecodedInstruction in;
  if (ZYAN_FAILED(
          ZydisDecoderDecodeInstruction(&decoder(), nullptr, bytes.data(), bytes.size(), &in))) {
    return std::nullopt;
  }
  Shape out;
  fill_shape(in, out);
  return out;
}

std::optional<Insn> decode(std::span<const uint8_t> bytes) {
  ZydisDecodedInstruction in;
  ZydisDecodedOperand ops[ZYDIS_MAX_OPERAND_COUNT];
  if (ZYAN_FAILED(ZydisDecoderDecodeFull(&decoder(), bytes.data(), bytes.size(), &in, ops)))
    return std::nullopt;
  Insn out;
  fill_shape(in, out);
  out.privileged =
      (in.attributes & ZYDIS_ATTRIB_IS_PRIVILEGED) != 0 || needs_io_privilege(in.mnemonic);
  for (int i = 0; i < in.operand_count; ++i) {
    if (ops[i].type == ZYDIS_OPERAND_TYPE_REGISTER) add_register(ops[i], out);
    if (ops[i].type == ZYDIS_OPERAND_TYPE_MEMORY) add_memory(ops[i], out);
  }
  add_flags(in, out);
  return out;
}

}  // namespace spile::x86
