#include "user_engine/jit/test_machine.h"

#include <gtest/gtest.h>

namespace spile::jit::testing {

extern "C" {
[[gnu::visibility("hidden")]] uint64_t spile_jt_gpr[16];
[[gnu::visibility("hidden")]] uint64_t spile_jt_flags;
[[gnu::visibility("hidden")]] uint64_t spile_jt_xmm[32];
[[gnu::visibility("hidden")]] uint64_t spile_jt_code;
[[gnu::visibility("hidden")]] uint64_t spile_jt_own_rsp;
[[gnu::visibility("hidden")]] uint64_t spile_jt_called_rsp;
[[gnu::visibility("hidden")]] uint64_t spile_jt_misalign;
[[gnu::visibility("hidden")]] abi::HitFrame spile_jt_frame;
void spile_jt_run();
}

// clang-format off
#define FOR_EACH_GPR(X)                                                                     \
  X(0, rax) X(1, rcx) X(2, rdx) X(3, rbx) X(5, rbp) X(6, rsi) X(7, rdi) X(8, r8)            \
  X(9, r9) X(10, r10) X(11, r11) X(12, r12) X(13, r13) X(14, r14) X(15, r15)
#define FOR_EACH_XMM(X)                                                                     \
  X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11) X(12) X(13) X(14) X(15)
// clang-format on
#define LOAD_GPR(i, r) "mov spile_jt_gpr+8*" #i "(%rip), %" #r "\n"
#define STORE_GPR(i, r) "mov %" #r ", spile_jt_gpr+8*" #i "(%rip)\n"
#define LOAD_XMM(i) "movdqu spile_jt_xmm+16*" #i "(%rip), %xmm" #i "\n"
#define STORE_XMM(i) "movdqu %xmm" #i ", spile_jt_xmm+16*" #i "(%rip)\n"

// All state lives in memory, so that no register is needed around the call.
asm(".text\n.globl spile_jt_run\n.hidden spile_jt_run\n.type spile_jt_run,@function\nspile_jt_run:\n"
    "push %rbx\n push %rbp\n push %r12\n push %r13\n push %r14\n push %r15\n pushfq\n"
    "mov %rsp, spile_jt_own_rsp(%rip)\n"
    "sub spile_jt_misalign(%rip), %rsp\n"
    "sub $176, %rsp\n"
    "lea spile_jt_frame(%rip), %rsi\n mov %rsp, %rdi\n mov $22, %ecx\n cld\n rep movsq\n"
    "mov %rsp, spile_jt_called_rsp(%rip)\n" FOR_EACH_XMM(LOAD_XMM)
    "pushq spile_jt_flags(%rip)\n popfq\n" FOR_EACH_GPR(LOAD_GPR)
    "call *spile_jt_code(%rip)\n"
    FOR_EACH_GPR(STORE_GPR)
    "pushfq\n popq spile_jt_flags(%rip)\n"
    "pushq spile_jt_called_rsp(%rip)\n popq spile_jt_gpr+8*4(%rip)\n"
    "sub %rsp, spile_jt_gpr+8*4(%rip)\n" FOR_EACH_XMM(STORE_XMM)
    "mov spile_jt_own_rsp(%rip), %rsp\n"
    "popfq\n pop %r15\n pop %r14\n pop %r13\n pop %r12\n pop %rbp\n pop %rbx\n ret\n"
    ".size spile_jt_run, .-spile_jt_run\n");

CpuState run_with_state(uint64_t code,
                        const CpuState& state,
                        const abi::HitFrame& frame,
                        uint64_t misalign_bytes) {
  std::memcpy(spile_jt_gpr, state.gpr.data(), sizeof spile_jt_gpr);
  std::memcpy(spile_jt_xmm, state.xmm.data(), sizeof spile_jt_xmm);
  spile_jt_flags = state.flags;
  spile_jt_code = code;
  spile_jt_frame = frame;
  spile_jt_misalign = misalign_bytes;
  spile_jt_run();
  CpuState after;
  std::memcpy(after.gpr.data(), spile_jt_gpr, sizeof spile_jt_gpr);
  std::memcpy(after.xmm.data(), spile_jt_xmm, sizeof spile_jt_xmm);
  after.flags = spile_jt_flags;
  return after;
}

CpuState distinct_state(uint64_t seed, uint64_t flags) {
  CpuState state;
  for (size_t i = 0; i < state.gpr.size(); ++i)
    state.gpr[i] = (seed + 1) * 0x9e3779b97f4a7c15 + i * 0x0101010101010101;
  state.gpr[kRsp] = 0;
  for (size_t i = 0; i < state.xmm.size(); ++i) state.xmm[i] = {seed + i, ~(seed * 3 + i)};
  state.flags = flags | 0x202;  // IF and the bit that is always set
  return state;
}

CodePage::CodePage(Where where, size_t size_bytes) {
  auto here = reinterpret_cast<uint64_t>(&spile_jt_run) & ~uint64_t{0xfff};
  for (uint64_t step = 1; step < 256; ++step) {
    uint64_t distance = where == Where::kNear ? (step << 20) : (uint64_t{8} << 30) + (step << 20);
    void* hint = reinterpret_cast<void*>(here - (16 << 20) - distance);
    void* memory = mmap(hint, size_bytes, PROT_READ | PROT_WRITE | PROT_EXEC,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
    if (memory == MAP_FAILED) continue;
    memory_ = Mapping(memory, size_bytes);
    return;
  }
  SPILE_CHECK(!"no room for test code");
}

TargetAddr CodePage::put(std::span<const uint8_t> bytes) {
  SPILE_CHECK(used_ + bytes.size() <= memory_.size());
  TargetAddr at = next();
  std::memcpy(memory_.data() + used_, bytes.data(), bytes.size());
  used_ = (used_ + bytes.size() + 15) & ~size_t{15};
  return at;
}

TEST(CodePageTest, RunsCodeWithEveryRegisterSet) {
  CodePage page;
  TargetAddr code = page.put(std::vector<uint8_t>{0x48, 0xff, 0xc0, 0xc3});  // inc %rax; ret
  CpuState before = distinct_state(1, kArithmeticFlags);
  CpuState after = run_with_state(code.value, before);
  EXPECT_EQ(after.gpr[kRax], before.gpr[kRax] + 1);
  after.gpr[kRax] = before.gpr[kRax];
  EXPECT_EQ(after.gpr, before.gpr);
  EXPECT_EQ(after.xmm, before.xmm);
}

}  // namespace spile::jit::testing
