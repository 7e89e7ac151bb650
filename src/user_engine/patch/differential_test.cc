// Random code run twice in this process: as it is, and patched with its window displaced.
// Registers, flags, vector registers, memory, the way it leaves and, if it faults, where, must be
// the same.
//
// SPILE_DIFFERENTIAL_CASES=1000000 runs more cases, SPILE_DIFFERENTIAL_SEED another sequence.
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <setjmp.h>
#include <signal.h>
#include <stddef.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#include <array>
#include <cstdlib>
#include <cstring>
#include <map>
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

// iretq loads rip, rflags and rsp at once, and serialises: bytes just written are what runs.
asm(R"(
  .text
  .globl spile_differential_run, spile_differential_done
spile_differential_run:
  push %rbx; push %rbp; push %r12; push %r13; push %r14; push %r15
  mov %rsp, host_rsp(%rip)
  mov %rsi, out_state(%rip)
  movups 144(%rdi),%xmm0;  movups 160(%rdi),%xmm1;  movups 176(%rdi),%xmm2;  movups 192(%rdi),%xmm3
  movups 208(%rdi),%xmm4;  movups 224(%rdi),%xmm5;  movups 240(%rdi),%xmm6;  movups 256(%rdi),%xmm7
  movups 272(%rdi),%xmm8;  movups 288(%rdi),%xmm9;  movups 304(%rdi),%xmm10; movups 320(%rdi),%xmm11
  movups 336(%rdi),%xmm12; movups 352(%rdi),%xmm13; movups 368(%rdi),%xmm14; movups 384(%rdi),%xmm15
  movq 144(%rdi),%mm0; movq 160(%rdi),%mm1; movq 176(%rdi),%mm2; movq 192(%rdi),%mm3
  movq 208(%rdi),%mm4; movq 224(%rdi),%mm5; movq 240(%rdi),%mm6; movq 256(%rdi),%mm7
  mov %ss,%eax
  push %rax
  push 32(%rdi)
  push 128(%rdi)
  mov %cs,%eax
  push %rax
  push 136(%rdi)
  mov (%rdi),%rax;    mov 8(%rdi),%rcx;   mov 16(%rdi),%rdx;  mov 24(%rdi),%rbx
  mov 40(%rdi),%rbp;  mov 48(%rdi),%rsi;  mov 64(%rdi),%r8;   mov 72(%rdi),%r9
  mov 80(%rdi),%r10;  mov 88(%rdi),%r11;  mov 96(%rdi),%r12;  mov 104(%rdi),%r13
  mov 112(%rdi),%r14; mov 120(%rdi),%r15; mov 56(%rdi),%rdi
  iretq
spile_differential_done:
  mov %rsp, guest_rsp(%rip)
  mov host_rsp(%rip), %rsp
  pushfq
  push %rdi
  mov out_state(%rip), %rdi
  mov %rax,(%rdi);    mov %rcx,8(%rdi);   mov %rdx,16(%rdi);  mov %rbx,24(%rdi)
  mov %rbp,40(%rdi);  mov %rsi,48(%rdi);  mov %r8,64(%rdi);   mov %r9,72(%rdi)
  mov %r10,80(%rdi);  mov %r11,88(%rdi);  mov %r12,96(%rdi);  mov %r13,104(%rdi)
  mov %r14,112(%rdi); mov %r15,120(%rdi)
  pop %rax; mov %rax,56(%rdi)
  pop %rax; mov %rax,128(%rdi)
  mov guest_rsp(%rip),%rax; mov %rax,32(%rdi)
  movups %xmm0,144(%rdi);  movups %xmm1,160(%rdi);  movups %xmm2,176(%rdi);  movups %xmm3,192(%rdi)
  movups %xmm4,208(%rdi);  movups %xmm5,224(%rdi);  movups %xmm6,240(%rdi);  movups %xmm7,256(%rdi)
  movups %xmm8,272(%rdi);  movups %xmm9,288(%rdi);  movups %xmm10,304(%rdi); movups %xmm11,320(%rdi)
  movups %xmm12,336(%rdi); movups %xmm13,352(%rdi); movups %xmm14,368(%rdi); movups %xmm15,384(%rdi)
  emms
  cld
  pop %r15; pop %r14; pop %r13; pop %r12; pop %rbp; pop %rbx
  ret
  .bss
  .balign 8
host_rsp: .skip 8
out_state: .skip 8
guest_rsp: .skip 8
  .text
)");

namespace spile::patch {
namespace {

using x86::Code;
using x86::Insn;
using x86::Kind;

constexpr size_t kCodeBytes = 1 << 18, kDataBytes = 1 << 16;
constexpr uint64_t kFunction =
    0x8000;  ///< offset of the code under test; short branches reach +-0x80
constexpr uint64_t kNearExits = 0x8040, kBackExits = 0x7fc0;
constexpr uint64_t kExits = 0x20000, kExitStride = 32;
constexpr uint64_t kDetour = 0x30000;
constexpr int kExitCount = 8;
constexpr uint64_t kExitId = 0, kSlots = 0x100, kScratch = 0x1000,
                   kStack = 0x8000;  ///< offsets in the data
constexpr uint64_t kScratchBytes = 0x200, kStackBytes = 0x400;
constexpr uint64_t kComparedFlags = 0xcd5;  ///< CF PF AF ZF SF DF OF
constexpr uint64_t kReservedFlag = 2, kInterruptFlag = 0x200;

sigjmp_buf g_fault;
volatile sig_atomic_t g_running = 0;
CpuState g_faulted;
int g_signal;

void on_fault(int number, siginfo_t*, void* context) {
  if (!g_running) {
    signal(number, SIG_DFL);
    return;
  }
  static constexpr int kOrder[16] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP,
                                     REG_RSI, REG_RDI, REG_R8,  REG_R9,  REG_R10, REG_R11,
                                     REG_R12, REG_R13, REG_R14, REG_R15};
  const auto& regs = static_cast<ucontext_t*>(context)->uc_mcontext.gregs;
  for (size_t i = 0; i < 16; ++i) g_faulted.gpr[i] = static_cast<uint64_t>(regs[kOrder[i]]);
  g_faulted.flags = static_cast<uint64_t>(regs[REG_EFL]);
  g_faulted.rip = static_cast<uint64_t>(regs[REG_RIP]);
  g_signal = number;
  g_running = 0;
  siglongjmp(g_fault, 1);
}

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
  Arena() : fd_(memfd_create("code", MFD_CLOEXEC)) {
    EXPECT_EQ(ftruncate(fd_.get(), kCodeBytes), 0);
    writable_ = Mapping(mmap(nullptr, kCodeBytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd_.get(), 0),
                        kCodeBytes);
    both_ = Mapping(
        mmap(nullptr, kCodeBytes + kDataBytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0),
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
  std::span<const uint8_t> text() const { return {both_.data() + kFunction - 0x100, 0x300}; }

  Ending run(const CpuState& in) {
    Ending end;
    prepare_data();
    if (sigsetjmp(g_fault, 1) == 0) {
      g_running = 1;
      spile_differential_run(&in, &end.state);
      g_running = 0;
    } else {
      asm volatile("emms");
      end.signal = g_signal;
      end.state = g_faulted;
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

 private:
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

ModuleCode module_of(const Arena& arena, size_t function_bytes) {
  const TargetAddr start = arena.code_at(kFunction);
  return {{{arena.code_at(kFunction - 0x100), arena.text()}},
          {{start, start + function_bytes, "case"}},
          {},
          {},
          {}};
}

std::string difference(const Ending& bare, const Ending& patched) {
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

class Differential : public testing::Test {
 protected:
  Differential() {
    // Landing places of short branches: jmp rel8 chains would be too near, so each is a jmp rel32
    // in 8 bytes.
    for (uint64_t i = 0; i < 4; ++i) {
      write_near_exit(kNearExits + i * 8, 4 + static_cast<int>(i));
      write_near_exit(kBackExits + i * 8, static_cast<int>(i));
    }
  }
  void write_near_exit(uint64_t offset, int exit) {
    arena.write(offset, *x86::encode_jmp(arena.code_at(offset), arena.exit_at(exit)));
  }

  /// Runs `code` bare and patched. False if the planner refuses it.
  bool run_case(const Code& code, const CpuState& in) {
    Code image(kNearExits - kFunction, 0x90);
    std::copy(code.begin(), code.end(), image.begin());
    arena.write(kFunction, image);
    const ModuleCode module = module_of(arena, code.size());
    const auto plan = plan_entry(module, arena.code_at(kFunction));
    if (!plan) {
      ++refusals[std::string(to_string(plan.error().kind))];
      return false;
    }
    const auto copy = displaced_code(*plan, arena.code_at(kDetour));
    EXPECT_TRUE(copy) << copy.error().message;
    const Ending bare = arena.run(in);
    arena.write(kDetour, copy->bytes);
    arena.write(kFunction, *patch_bytes(*plan, arena.code_at(kDetour)));
    Ending patched = arena.run(in);
    ++endings[bare.signal != 0    ? fmt::format("signal {}", bare.signal)
              : bare.exit_id == 1 ? "fell through"
                                  : "branched"];
    check_fault_address(*copy, bare, patched);
    const std::string wrong = difference(bare, patched);
    EXPECT_EQ(wrong, "") << x86::format_code(code, arena.code_at(kFunction)) << "displaced:\n"
                         << x86::format_code(copy->bytes, arena.code_at(kDetour));
    return true;
  }

  /// A fault in the copy maps back to where it happened in the original; a call's push is undone on
  /// the way.
  void check_fault_address(const x86::RelocatedCode& copy, const Ending& bare, Ending& patched) {
    if (bare.signal == 0 || patched.signal == 0) return;
    const auto original = rip_after_detach(copy, TargetAddr(patched.state.rip));
    EXPECT_EQ(original ? original->original.value : patched.state.rip, bare.state.rip);
    if (original) patched.state.gpr[x86::kRsp] += original->pop_bytes;
  }

  Arena arena;
  std::map<std::string, int> refusals, endings;
};

uint64_t number_from(const char* variable, uint64_t fallback) {
  const char* text = std::getenv(variable);
  return text == nullptr ? fallback : std::strtoull(text, nullptr, 0);
}

TEST_F(Differential, RandomCodeDoesTheSameWhenDisplaced) {
  const uint64_t cases = number_from("SPILE_DIFFERENTIAL_CASES", 25000);
  const uint64_t seed = number_from("SPILE_DIFFERENTIAL_SEED", 1);
  Generator generator(arena, seed);
  uint64_t run = 0;
  for (uint64_t i = 0; run < cases && i < cases * 2; ++i) {
    const Code code = generator.function();
    run += run_case(code, generator.state());
    ASSERT_FALSE(HasFailure()) << "case " << i << " of seed " << seed;
  }
  for (const auto& [what, n] : endings) fmt::print("  {:32} {}\n", what, n);
  for (const auto& [what, n] : refusals) fmt::print("  refused: {:23} {}\n", what, n);
  EXPECT_EQ(run, cases) << "the planner refused too many";
  EXPECT_GT(endings["branched"], static_cast<int>(cases / 8));
  EXPECT_GT(endings["fell through"], static_cast<int>(cases / 8));
}

/// A state whose flags make exactly what the bits say.
CpuState state_with_flags(Generator& generator, uint64_t flags) {
  CpuState s = generator.state();
  s.flags = flags | kReservedFlag | kInterruptFlag;
  return s;
}

TEST_F(Differential, AllConditionsTakenAndNotTaken) {
  Generator generator(arena, 2);
  for (unsigned condition = 0; condition < 16; ++condition) {
    for (const uint64_t flags : {0x000u, 0x001u, 0x004u, 0x040u, 0x080u, 0x800u, 0x880u, 0x8d5u}) {
      const auto rel8 = static_cast<uint8_t>(kNearExits - (kFunction + 2));
      Code code = {static_cast<uint8_t>(0x70 | condition), rel8, 0x48, 0x89, 0xc8, 0xe9};
      x86::append_u32(code, static_cast<uint32_t>(
                                *x86::rel32(arena.code_at(kFunction + 10), arena.exit_at(0))));
      ASSERT_TRUE(run_case(code, state_with_flags(generator, flags)));
    }
  }
}

TEST_F(Differential, CountedLoopsOntoThemselvesEnd) {
  Generator generator(arena, 3);
  for (const uint8_t opcode : {0xe0, 0xe1, 0xe2}) {
    for (const uint64_t count : {1u, 2u, 7u, 1000u}) {
      // loop .; mov %rcx,%rax
      Code code = {opcode, 0xfe, 0x48, 0x89, 0xc8, 0xe9};
      x86::append_u32(code, static_cast<uint32_t>(
                                *x86::rel32(arena.code_at(kFunction + 10), arena.exit_at(0))));
      CpuState in = generator.state();
      in.gpr[x86::kRcx] = count;
      ASSERT_TRUE(run_case(code, in));
    }
  }
}

TEST_F(Differential, GetpcThunksSeeTheirOriginalAddress) {
  // call to the next instruction; pop %rax; jmp exit 0
  Code code = {0xe8, 0, 0, 0, 0, 0x58, 0xe9};
  x86::append_u32(
      code, static_cast<uint32_t>(*x86::rel32(arena.code_at(kFunction + 11), arena.exit_at(0))));
  Generator generator(arena, 4);
  ASSERT_TRUE(run_case(code, generator.state()));
  const Ending end = arena.run(generator.state());
  EXPECT_EQ(end.state.gpr[x86::kRax], arena.code_at(kFunction + 5).value);
}

TEST_F(Differential, SystemCallsWorkFromTheCopy) {
  // mov $39,%eax; syscall; xor %ecx,%ecx (rcx is the address behind the syscall); jmp exit 0
  Code code = {0x31, 0xc0, 0xb0, SYS_getpid, 0x0f, 0x05, 0x31, 0xc9, 0xe9};
  x86::append_u32(
      code, static_cast<uint32_t>(*x86::rel32(arena.code_at(kFunction + 13), arena.exit_at(0))));
  Generator generator(arena, 5);
  CpuState in = generator.state();
  ASSERT_TRUE(run_case(code, in));
  EXPECT_EQ(arena.run(in).state.gpr[x86::kRax], static_cast<uint64_t>(getpid()));
}

TEST_F(Differential, RepeatedStringInstructionsCopyTheSame) {
  // mov $64,%ecx; lea 0x80(%rsi),%rdi; rep movsb
  Code code = {0xf3, 0xa4, 0x48, 0x89, 0xc8, 0xe9};
  x86::append_u32(
      code, static_cast<uint32_t>(*x86::rel32(arena.code_at(kFunction + 10), arena.exit_at(0))));
  Generator generator(arena, 6);
  CpuState in = state_with_flags(generator, 0);
  in.gpr[x86::kRsi] = arena.data_at(kScratch).value;
  in.gpr[x86::kRdi] = arena.data_at(kScratch + 0x80).value;
  in.gpr[x86::kRcx] = 64;
  ASSERT_TRUE(run_case(code, in));
}

TEST_F(Differential, WithoutRelocationTheResultIsWrong) {
  // The oracle sees a difference when the copy is not rebased: lea 0x100(%rip),%rax copied as it
  // is.
  Code code = {0x48, 0x8d, 0x05, 0x00, 0x01, 0x00, 0x00, 0xe9};
  x86::append_u32(
      code, static_cast<uint32_t>(*x86::rel32(arena.code_at(kFunction + 12), arena.exit_at(0))));
  arena.write(kFunction, code);
  Generator generator(arena, 7);
  const CpuState in = generator.state();
  const Ending bare = arena.run(in);
  Code wrong(code.begin(), code.begin() + 7);
  const auto back = *x86::encode_jmp(arena.code_at(kDetour + 7), arena.code_at(kFunction + 7));
  wrong.insert(wrong.end(), back.begin(), back.end());
  arena.write(kDetour, wrong);
  arena.write(kFunction, *x86::encode_jmp(arena.code_at(kFunction), arena.code_at(kDetour)));
  EXPECT_NE(difference(bare, arena.run(in)), "");
}

}  // namespace
}  // namespace spile::patch
