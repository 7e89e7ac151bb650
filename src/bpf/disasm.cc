#include "bpf/disasm.h"

#include <fmt/format.h>

#include <cstdlib>
#include <iterator>

#include "bpf/encoding.h"
#include "bpf/helpers.h"

namespace spile::bpf {

namespace {

const char* size_name(uint8_t code, bool is_signed) {
  switch (code & 0x18) {
    case kSizeB: return is_signed ? "s8" : "u8";
    case kSizeH: return is_signed ? "s16" : "u16";
    case kSizeW: return is_signed ? "s32" : "u32";
    default: return is_signed ? "s64" : "u64";
  }
}

/// "*(u64 *)(r1 + 112)"
std::string memory(const Insn& insn, uint8_t base, bool is_signed) {
  return fmt::format("*({} *)(r{} {} {})", size_name(insn.code, is_signed), base,
                     insn.off < 0 ? '-' : '+', std::abs(static_cast<int>(insn.off)));
}

const char* alu_operator(uint8_t op, bool is_signed) {
  switch (op) {
    case kAdd: return "+=";
    case kSub: return "-=";
    case kMul: return "*=";
    case kDiv: return is_signed ? "s/=" : "/=";
    case kOr: return "|=";
    case kAnd: return "&=";
    case kLsh: return "<<=";
    case kRsh: return ">>=";
    case kMod: return is_signed ? "s%=" : "%=";
    case kXor: return "^=";
    case kMov: return "=";
    case kArsh: return "s>>=";
    default: return nullptr;
  }
}

const char* jump_operator(uint8_t op) {
  switch (op) {
    case kJeq: return "==";
    case kJgt: return ">";
    case kJge: return ">=";
    case kJset: return "&";
    case kJne: return "!=";
    case kJsgt: return "s>";
    case kJsge: return "s>=";
    case kJlt: return "<";
    case kJle: return "<=";
    case kJslt: return "s<";
    case kJsle: return "s<=";
    default: return nullptr;
  }
}

std::string unknown(const Insn& insn) {
  return fmt::format("unknown opcode {:#04x} (dst {} src {} off {} imm {})", insn.code, insn.dst(),
                     insn.src(), insn.off, insn.imm);
}

std::string byte_swap(const Insn& insn) {
  const char* name = insn_class(insn) == kClassAlu64 ? "bswap"
                     : (insn.code & kSrcX) != 0      ? "be"
                                                     : "le";
  return fmt::format("r{0} = {1}{2} r{0}", insn.dst(), name, insn.imm);
}

std::string alu(const Insn& insn) {
  char reg = insn_class(insn) == kClassAlu64 ? 'r' : 'w';
  uint8_t op = insn_op(insn);
  if (op == kEnd) return byte_swap(insn);
  if (op == kNeg) return fmt::format("{0}{1} = -{0}{1}", reg, insn.dst());
  const char* text = alu_operator(op, insn.off != 0);
  if (text == nullptr) return unknown(insn);
  if ((insn.code & kSrcX) == 0) return fmt::format("{}{} {} {}", reg, insn.dst(), text, insn.imm);
  if (op == kMov && insn.off != 0) {
    return fmt::format("{0}{1} = (s{2}){0}{3}", reg, insn.dst(), static_cast<int>(insn.off),
                       insn.src());
  }
  return fmt::format("{0}{1} {2} {0}{3}", reg, insn.dst(), text, insn.src());
}

std::string jump(const Insn& insn) {
  bool is_wide = insn_class(insn) == kClassJmp;
  uint8_t op = insn_op(insn);
  if (op == kJa && (insn.code & kSrcX) == 0) {
    return is_wide ? fmt::format("goto {:+d}", static_cast<int>(insn.off))
                   : fmt::format("gotol {:+d}", insn.imm);
  }
  if (is_wide && op == kExit) return "exit";
  if (is_wide && op == kCall) {
    if (insn.src() == kCallLocal) return fmt::format("call local {:+d}", insn.imm);
    const HelperSignature* helper = find_helper(insn.imm);
    return fmt::format("call {}#{}", helper != nullptr ? helper->name : "unknown", insn.imm);
  }
  const char* text = jump_operator(op);
  if (text == nullptr) return unknown(insn);
  char reg = is_wide ? 'r' : 'w';
  std::string right =
      (insn.code & kSrcX) != 0 ? fmt::format("{}{}", reg, insn.src()) : fmt::format("{}", insn.imm);
  return fmt::format("if {}{} {} {} goto {:+d}", reg, insn.dst(), text, right,
                     static_cast<int>(insn.off));
}

std::string atomic(const Insn& insn) {
  std::string at = memory(insn, insn.dst(), false);
  bool is_wide = (insn.code & 0x18) == kSizeDw;
  char reg = is_wide ? 'r' : 'w';
  if (insn.imm == kXchg) return fmt::format("{0}{1} = xchg({2}, {0}{1})", reg, insn.src(), at);
  if (insn.imm == kCmpXchg)
    return fmt::format("{0}0 = cmpxchg({2}, {0}0, {0}{1})", reg, insn.src(), at);
  const char* text = nullptr;
  switch (insn.imm & ~kFetch) {
    case kAtomicAdd: text = "+="; break;
    case kAtomicOr: text = "|="; break;
    case kAtomicAnd: text = "&="; break;
    case kAtomicXor: text = "^="; break;
    default: return unknown(insn);
  }
  if ((insn.imm & kFetch) != 0)
    return fmt::format("{0}{1} = lock {2} {3} {0}{1}", reg, insn.src(), at, text);
  return fmt::format("lock {} {} {}{}", at, text, reg, insn.src());
}

std::string load_immediate(const Insn& insn, const Insn& high) {
  uint64_t value = static_cast<uint32_t>(insn.imm) |
                   static_cast<uint64_t>(static_cast<uint32_t>(high.imm)) << 32;
  switch (insn.src()) {
    case kPseudoNone: return fmt::format("r{} = {:#x} ll", insn.dst(), value);
    case kPseudoMapFd: return fmt::format("r{} = map_fd[{}] ll", insn.dst(), insn.imm);
    case kPseudoMapIdx: return fmt::format("r{} = map[{}] ll", insn.dst(), insn.imm);
    default:
      return fmt::format("r{} = pseudo{}[{}] + {} ll", insn.dst(), insn.src(), insn.imm, high.imm);
  }
}

std::string store(const Insn& insn) {
  if (insn_mode(insn) != kModeMem) return unknown(insn);
  std::string at = memory(insn, insn.dst(), false);
  if (insn_class(insn) == kClassSt) return fmt::format("{} = {}", at, insn.imm);
  return fmt::format("{} = r{}", at, insn.src());
}

std::string load(const Insn& insn) {
  bool is_signed = insn_mode(insn) == kModeMemSx;
  if (!is_signed && insn_mode(insn) != kModeMem) return unknown(insn);
  return fmt::format("r{} = {}", insn.dst(), memory(insn, insn.src(), is_signed));
}

}  // namespace

std::string disassemble(const Program& program, size_t at) {
  const Insn& insn = program[at];
  switch (insn_class(insn)) {
    case kClassLd:
      if (!is_lddw(insn) || at + 1 >= program.size()) return unknown(insn);
      return load_immediate(insn, program[at + 1]);
    case kClassLdx: return load(insn);
    case kClassSt: return store(insn);
    case kClassStx: return insn_mode(insn) == kModeAtomic ? atomic(insn) : store(insn);
    case kClassAlu:
    case kClassAlu64: return alu(insn);
    default: return jump(insn);
  }
}

std::string disassemble(const Program& program) {
  std::string text;
  for (size_t at = 0; at < program.size(); ++at) {
    fmt::format_to(std::back_inserter(text), "{:4}: {}", at, disassemble(program, at));
    if (std::optional<int64_t> target = jump_target(program, at)) {
      fmt::format_to(std::back_inserter(text), " <{}>", *target);
    }
    text += '\n';
    if (is_lddw(program[at]) && at + 1 < program.size()) ++at;
  }
  return text;
}

}  // namespace spile::bpf
