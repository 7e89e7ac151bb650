// A place to run machine code in this process, from given registers to given exits, and random code
// to run there.
#pragma once

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <setjmp.h>
#include <signal.h>
#include <stddef.h>
#include <sys/mman.h>
#include <unistd.h>

#include <array>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>

#include "base/fd.h"
#include "user_engine/patch/plan.h"
#include "x86/decode.h"
#include "x86/format.h"

/// What code sees and leaves. The assembly below knows the offsets.
struct CpuState {
  std::array<uint64_t, 16> gpr;  // encoding order
  uint64_t flags;
  uint64_t rip;
  alignas(16) std::array<uint8_t, 256> xmm;
};
static_assert(offsetof(CpuState, flags) == 128 && offsetof(CpuState, rip) == 136 &&
              offsetof(CpuState, xmm) == 144);

extern "C" {
/// Loads `in`, runs from in->rip, comes back through spile_differential_done, stores `out`.
void spile_differential_run(const CpuState* in, CpuState* out);
/// Where the code under test jumps at its end, with any registers and any stack.
void spile_differential_done();
}

namespace spile::patch {

using x86::Code;
using x86::Insn;
using x86::Kind;

/// Where a fault of the code under test ends.
struct FaultState {
  sigjmp_buf back;
  volatile sig_atomic_t running = 0;
  CpuState state{};
  int signal = 0;
};
FaultState& fault_state();
void on_fault(int number, siginfo_t* info, void* context);

constexpr size_t kCodeBytes = 1 << 18, kDataBytes = 1 << 16;
constexpr uint64_t kFunction =
    0x8000;  ///< offset of the code under test; short branches reach +-0x80
constexpr size_t kTextBytes = 0x1000;  ///< from 0x100 before the code under test
constexpr uint64_t kNearExits = 0x8040, kBackExits = 0x7fc0;
constexpr uint64_t kExits = 0x20000, kExitStride = 32;
constexpr uint64_t kDetour = 0x30000;
constexpr int kExitCount = 8;
constexpr uint64_t kExitId = 0, kSlots = 0x100, kScratch = 0x1000,
                   kStack = 0x8000;  ///< offsets in the data
constexpr uint64_t kScratchBytes = 0x200, kStackBytes = 0x400;
constexpr uint64_t kComparedFlags = 0xcd5;  ///< CF PF AF ZF SF DF OF
constexpr uint64_t kReservedFlag = 2, kInterruptFlag = 0x200;

/// How a run ended.
struct Ending {
  CpuState state{};
  int signal = 0;
  uint32_t exit_id = 0;
  Code scratch, stack;
};

/// Executable memory with a second, writable view; data beside it, so that rip-relative operands
/// reach it.
class Arena {
 public:
  Arena() : Arena(nullptr) {}
  /// At this address, or if it is taken, anywhere.
  explicit Arena(void* where) : fd_(memfd_create("code", MFD_CLOEXEC)) {
    EXPECT_EQ(ftruncate(fd_.get(), kCodeBytes), 0);
    writable_ = Mapping(mmap(nullptr, kCodeBytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd_.get(), 0),
                        kCodeBytes);
    both_ =
        Mapping(mmap(where, kCodeBytes + kDataBytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0),
                kCodeBytes + kDataBytes);
    EXPECT_NE(
        mmap(both_.data(), kCodeBytes, PROT_READ | PROT_EXEC, MAP_SHARED | MAP_FIXED, fd_.get(), 0),
        MAP_FAILED);
    EXPECT_EQ(mprotect(data(), kDataBytes, PROT_READ | PROT_WRITE), 0);
    alternate_.resize(1 << 16);
    const stack_t stack{alternate_.data(), 0, alternate_.size()};
    sigaltstack(&stack, nullptr);
    struct sigaction action{};
    action.sa_sigaction = on_fault;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    for (const int number : {SIGSEGV, SIGBUS, SIGILL, SIGFPE}) sigaction(number, &action, nullptr);
    for (int i = 0; i < kExitCount; ++i) write_exit(i);
  }
  ~Arena() {
    for (const int number : {SIGSEGV, SIGBUS, SIGILL, SIGFPE}) signal(number, SIG_DFL);
    const stack_t off{nullptr, SS_DISABLE, 0};
    sigaltstack(&off, nullptr);
  }

  uint8_t* data() const { return both_.data() + kCodeBytes; }
  TargetAddr code_at(uint64_t offset) const {
    return TargetAddr(reinterpret_cast<uint64_t>(both_.data()) + offset);
  }
  TargetAddr data_at(uint64_t offset) const { return code_at(kCodeBytes + offset); }
  TargetAddr exit_at(int i) const {
    return code_at(kExits + static_cast<uint64_t>(i) * kExitStride);
  }
  void write(uint64_t offset, std::span<const uint8_t> bytes) {
    std::memcpy(writable_.data() + offset, bytes.data(), bytes.size());
  }
  std::span<const uint8_t> text() const { return {both_.data() + kFunction - 0x100, kTextBytes}; }

  Ending run(const CpuState& in) {
    Ending end;
    prepare_data();
    if (sigsetjmp(fault_state().back, 1) == 0) {
      fault_state().running = 1;
      spile_differential_run(&in, &end.state);
      fault_state().running = 0;
    } else {
      asm volatile("emms");
      end.signal = fault_state().signal;
      end.state = fault_state().state;
    }
    std::memcpy(&end.exit_id, data() + kExitId, sizeof end.exit_id);
    end.scratch.assign(data() + kScratch, data() + kScratch + kScratchBytes);
    end.stack.assign(data() + kStack - kStackBytes, data() + kStack + kStackBytes);
    return end;
  }

 private:
  /// movl $i+1,exit_id(%rip); jmp *0(%rip); .quad done. Flags stay.
  void write_exit(int i) {
    Code code = {0xc7, 0x05};
    const TargetAddr at = exit_at(i);
    x86::append_u32(code, static_cast<uint32_t>(*x86::rel32(at + 10, data_at(kExitId))));
    x86::append_u32(code, static_cast<uint32_t>(i + 1));
    code.insert(code.end(), {0xff, 0x25, 0, 0, 0, 0});
    const auto done = reinterpret_cast<uint64_t>(&spile_differential_done);
    x86::append_u32(code, static_cast<uint32_t>(done));
    x86::append_u32(code, static_cast<uint32_t>(done >> 32));
    write(static_cast<uint64_t>(at - code_at(0)), code);
  }

  void prepare_data() {
    std::memset(data() + kExitId, 0, 8);
    for (size_t i = 0; i < kScratchBytes; ++i)
      data()[kScratch + i] = static_cast<uint8_t>(i * 37 + 11);
    for (size_t i = 0; i < 2 * kStackBytes; ++i)
      data()[kStack - kStackBytes + i] = static_cast<uint8_t>(i * 59 + 3);
    // Every slot, of the table and of the stack from rsp up, is an exit: what rets and indirect
    // branches need.
    for (uint64_t i = 0; i < 16; ++i) put_slot(kSlots + i * 8, static_cast<int>(i % kExitCount));
    for (uint64_t i = 0; i < 16; ++i) put_slot(kStack + i * 8, static_cast<int>(i % kExitCount));
  }
  void put_slot(uint64_t offset, int exit) {
    const TargetAddr target = exit_at(exit);
    std::memcpy(data() + offset, &target.value, sizeof target.value);
  }

  Fd fd_;
  Mapping writable_, both_;
  std::vector<uint8_t> alternate_;
};

/// Makes windows. Registers with a role: rbx and rsi point into the scratch memory, rsp into the
/// stack, r11 at an exit.
class Generator {
 public:
  Generator(Arena& arena, uint64_t seed) : arena_(arena), random_(seed) {}

  uint64_t below(uint64_t n) { return random_() % n; }
  std::mt19937_64& random() { return random_; }

  /// A function: instructions of at least five bytes, then a jump to exit 0.
  Code function() {
    code_.clear();
    bool ended = false;
    while (code_.size() < kPatchBytes && !ended)
      ended = below(4) == 0 ? add_control_flow() : add_plain();
    // Behind a jump or ret, padding.
    if (ended && code_.size() < kPatchBytes)
      x86::append_nops(code_, kPatchBytes - code_.size() + below(9));
    const size_t at = code_.size();
    append_jmp(arena_.exit_at(0), at);
    return code_;
  }

  CpuState state() {
    CpuState s{};
    for (auto& r : s.gpr) r = interesting();
    for (auto& b : s.xmm) b = static_cast<uint8_t>(random_());
    s.gpr[x86::kRcx] = below(3) == 0 ? below(4) : s.gpr[x86::kRcx];
    s.gpr[x86::kRbx] = arena_.data_at(kScratch + 0x100).value;
    s.gpr[x86::kRsi] = arena_.data_at(kScratch + 0x108).value;
    s.gpr[x86::kRsp] = arena_.data_at(kStack).value;
    s.gpr[11] = arena_.exit_at(3).value;
    s.flags = (random_() & kComparedFlags) | kReservedFlag | kInterruptFlag;
    s.rip = arena_.code_at(kFunction).value;
    return s;
  }

 protected:
  uint64_t interesting() {
    switch (below(4)) {
      case 0: return below(256);
      case 1: return random_() & 0xffffffff;
      case 2: return ~below(256);
      default: return random_();
    }
  }

  TargetAddr here(size_t offset) const { return arena_.code_at(kFunction + offset); }

  void append_jmp(TargetAddr to, size_t at) {
    const auto jmp = *x86::encode_jmp(here(at), to);
    code_.insert(code_.end(), jmp.begin(), jmp.end());
  }

  /// False always: control falls through.
  bool add_plain() {
    for (;;) {
      Code bytes = random_bytes();
      const auto insn = x86::decode(bytes);
      if (!insn || !is_harmless(*insn, bytes)) continue;
      bytes.resize(insn->length);
      if (insn->rip_relative) {
        const TargetAddr operand = arena_.data_at(kScratch + below(8) * 64);
        const auto disp = x86::rel32(here(code_.size()) + insn->length, operand);
        std::memcpy(&bytes[insn->disp_offset], &*disp, 4);
      }
      code_.insert(code_.end(), bytes.begin(), bytes.end());
      return false;
    }
  }

  Code random_bytes() {
    static constexpr uint8_t kPrefixes[] = {0x66, 0xf2, 0xf3, 0x2e, 0x3e};
    Code bytes;
    if (below(6) == 0) bytes.push_back(kPrefixes[below(std::size(kPrefixes))]);
    if (below(12) == 0) bytes.push_back(0xf0);
    if (below(2) == 0) bytes.push_back(static_cast<uint8_t>(0x40 | below(16)));
    if (below(3) == 0) bytes.push_back(0x0f);
    bytes.push_back(static_cast<uint8_t>(random_()));
    // rip-relative, 8(%rbx), (%rsi) and register forms; blind chance rarely hits the first three.
    static constexpr uint8_t kModrm[] = {0x05, 0x43, 0x06, 0xc0};
    bytes.push_back(static_cast<uint8_t>(kModrm[below(4)] | below(8) << 3));
    if (bytes.back() >= 0xc0) bytes.back() |= static_cast<uint8_t>(below(8));
    for (int i = 0; i < 12; ++i)
      bytes.push_back(static_cast<uint8_t>(below(2) ? random_() : below(8)));
    return bytes;
  }

  bool is_harmless(const Insn& insn, const Code& bytes) const {
    if ((insn.kind != Kind::kPlain && insn.kind != Kind::kNop) || insn.privileged) return false;
    if (insn.address32 || uses_forbidden_state(insn)) return false;
    constexpr x86::RegMask kRoles = 1 << x86::kRbx | 1 << x86::kRsi | 1 << 11;
    if (insn.writes & kRoles) return false;
    for (size_t i = 0; i < insn.opcode_offset; ++i) {
      if (bytes[i] == 0x64 || bytes[i] == 0x65) return false;
    }
    if (insn.implicit_memory || (insn.writes & 1 << x86::kRsp)) return is_push_or_pop(insn);
    if (!insn.has_memory) return true;
    if (insn.map == 1 && (insn.opcode & 0xe7) == 0xa3)
      return false;  // bt*: the register reaches far beyond the operand
    const bool by_role = insn.base == x86::kRbx || insn.base == x86::kRsi;
    return insn.memory_bytes <= 64 && insn.index == x86::kNoReg &&
           ((by_role && insn.disp_bytes < 4) || insn.rip_relative);
  }

  static bool is_push_or_pop(const Insn& insn) {
    const bool pop_rsp = insn.opcode == 0x5c && !(insn.rex & 1);
    const bool by_opcode =
        (insn.opcode >= 0x50 && insn.opcode <= 0x5f) || insn.opcode == 0x68 || insn.opcode == 0x6a;
    return insn.map == 0 && by_opcode && !pop_rsp && !insn.has_memory && !insn.operand16;
  }

  /// Segment registers, fs base, x87 and control state, protection keys, random numbers, clocks,
  /// cpuid.
  static bool uses_forbidden_state(const Insn& insn) {
    if (insn.map == 0) {
      return insn.opcode == 0x8e || insn.opcode == 0x8c ||
             (insn.opcode >= 0xd8 && insn.opcode <= 0xdf) || insn.opcode == 0x9b ||
             insn.opcode == 0xc4 || insn.opcode == 0xc5 || insn.opcode == 0x62;
    }
    if (insn.map != 1) return insn.map == 255;
    switch (insn.opcode) {
      case 0x00:
      case 0x01:
      case 0xae:
      case 0xc7:
      case 0xa2:
      case 0x31:
      case 0x33:
      case 0x37:
      case 0xb2:
      case 0xb4:
      case 0xb5:
      case 0xa0:
      case 0xa1:
      case 0xa8:
      case 0xa9:
      case 0x0e:
      case 0x77: return true;
      default: return false;
    }
  }

  /// True if control never falls through.
  bool add_control_flow() {
    const size_t at = code_.size();
    const int exit = 1 + static_cast<int>(below(kExitCount - 1));
    switch (below(11)) {
      case 0: return add_short(static_cast<uint8_t>(0x70 | below(16)), at);
      case 1:
      case 2: return add_jcc32(exit, at);
      case 3: return add_short(static_cast<uint8_t>(0xe0 | below(4)), at);
      case 4:
        code_.push_back(0x67);
        return add_short(static_cast<uint8_t>(0xe0 | below(4)), at + 1);
      case 5: add_short(0xeb, at); return true;
      case 6: append_jmp(arena_.exit_at(exit), at); return true;
      case 7: return add_call(exit, at);
      case 8: return add_indirect();
      case 9: code_.push_back(0xc3); return true;
      default:
        code_.insert(code_.end(), {0xc2, static_cast<uint8_t>(below(4) * 8), 0x00});
        return true;
    }
  }

  /// The exits near the code jump on to the far ones.
  bool add_short(uint8_t opcode, size_t at) {
    const uint64_t target = below(2) ? kNearExits + below(4) * 8 : kBackExits + below(4) * 8;
    code_.insert(code_.end(), {opcode, static_cast<uint8_t>(target - (kFunction + at + 2))});
    return false;
  }
  bool add_jcc32(int exit, size_t at) {
    code_.insert(code_.end(), {0x0f, static_cast<uint8_t>(0x80 | below(16))});
    x86::append_u32(code_, static_cast<uint32_t>(*x86::rel32(here(at + 6), arena_.exit_at(exit))));
    return false;
  }
  bool add_call(int exit, size_t at) {
    if (at + 5 < kPatchBytes) return add_plain();
    code_.push_back(0xe8);
    x86::append_u32(code_, static_cast<uint32_t>(*x86::rel32(here(at + 5), arena_.exit_at(exit))));
    return true;
  }

  /// Jumps and calls through r11, slots reached by rip, and the stack.
  bool add_indirect() {
    const bool call = below(2) == 0;
    const auto reg = static_cast<uint8_t>(call ? 0x10 : 0x20);
    Code bytes;
    switch (below(3)) {
      case 0: bytes = {0x41, 0xff, static_cast<uint8_t>(0xc3 | reg)}; break;
      case 1: {
        bytes = {0xff, static_cast<uint8_t>(0x05 | reg)};
        const TargetAddr slot = arena_.data_at(kSlots + below(16) * 8);
        x86::append_u32(bytes, static_cast<uint32_t>(*x86::rel32(here(code_.size() + 6), slot)));
        break;
      }
      default:
        bytes = {0xff, static_cast<uint8_t>(0x44 | reg), 0x24,
                 static_cast<uint8_t>(8 + below(4) * 8)};
        break;
    }
    if (call && code_.size() + bytes.size() < kPatchBytes) return add_plain();
    code_.insert(code_.end(), bytes.begin(), bytes.end());
    return true;
  }

  Arena& arena_;
  std::mt19937_64 random_;
  Code code_;
};

inline ModuleCode module_of(const Arena& arena, size_t function_bytes) {
  const TargetAddr start = arena.code_at(kFunction);
  return {{{arena.code_at(kFunction - 0x100), arena.text()}},
          {{start, start + function_bytes, "case"}},
          {},
          {},
          {}};
}

inline std::string difference(const Ending& bare, const Ending& patched) {
  std::string out;
  if (bare.signal != patched.signal)
    out += fmt::format("signal {} {}\n", bare.signal, patched.signal);
  if (bare.exit_id != patched.exit_id)
    out += fmt::format("exit {} {}\n", bare.exit_id, patched.exit_id);
  for (size_t i = 0; i < 16; ++i) {
    if (bare.state.gpr[i] != patched.state.gpr[i]) {
      out += fmt::format("register {}: {:#x} {:#x}\n", i, bare.state.gpr[i], patched.state.gpr[i]);
    }
  }
  if ((bare.state.flags ^ patched.state.flags) & kComparedFlags) {
    out += fmt::format("flags {:#x} {:#x}\n", bare.state.flags, patched.state.flags);
  }
  if (bare.state.xmm != patched.state.xmm) out += "xmm\n";
  if (bare.scratch != patched.scratch) out += "scratch memory\n";
  if (bare.stack != patched.stack) out += "stack\n";
  return out;
}

inline uint64_t number_from(const char* variable, uint64_t fallback) {
  const char* text = std::getenv(variable);
  return text == nullptr ? fallback : std::strtoull(text, nullptr, 0);
}

}  // namespace spile::patch
