#include "user_engine/jit/trap_page.h"

#include <signal.h>
#include <sys/syscall.h>

#include <bit>
#include <cstddef>
#include <cstring>

#include "abi/trap.h"
#include "user_engine/jit/emitter.h"
#include "x86/encode.h"

namespace spile::jit {

namespace x86 = asmjit::x86;

namespace {

constexpr uint64_t kPageBytes = 4096;
/// Of siginfo_t and ucontext_t: si_code; uc_mcontext.gregs[REG_RIP].
/// Source: uapi/asm-generic/siginfo.h, uapi/asm/ucontext.h, uapi/asm/sigcontext.h.
constexpr int32_t kSiCode = 8, kUcRip = 40 + 16 * 8;
/// uapi/asm/signal.h; libc does not have it.
constexpr uint64_t kSaRestorer = 0x0400'0000;
constexpr uint64_t kAllSignals = ~uint64_t{0};
constexpr uint64_t kSigsetBytes = 8;

uint32_t slots_for(size_t sites) {
  return static_cast<uint32_t>(std::bit_ceil(std::max<size_t>(2, 2 * sites)));
}

void system_call(Emitter& e, uint32_t number) {
  e.op(Inst::kIdMov, x86::eax, asmjit::Imm(number));
  e.op(Inst::kIdSyscall);
}

/// rdi: signal, rsi: siginfo, rdx: ucontext. Every register may be destroyed: rt_sigreturn puts
/// them back. Memory is read at its natural alignment: the program may have the alignment check on.
class Handler {
 public:
  Handler(TargetAddr base, uint32_t slots) : base_(base), slots_(slots), e_(here()) {}

  Result<std::vector<uint8_t>> emit(TargetAddr& restorer) {
    e_.op(Inst::kIdCmp, x86::dword_ptr(x86::rsi, kSiCode), asmjit::Imm(SI_KERNEL));
    e_.jump_if(x86::CondCode::kNE, unknown_);
    e_.op(Inst::kIdMov, x86::rax, x86::qword_ptr(x86::rdx, kUcRip));
    e_.op(Inst::kIdSub, x86::rax, asmjit::Imm(1));
    look_up();
    e_.op(Inst::kIdMov, x86::qword_ptr(x86::rdx, kUcRip), x86::rax);
    e_.op(Inst::kIdRet);
    e_.bind(unknown_);
    die_of_it();
    e_.op(Inst::kIdRet);
    restorer = here() + e_.offset();
    e_.embed({spile::x86::kRestoreRt.begin(), spile::x86::kRestoreRt.end()});
    return e_.finish();
  }

 private:
  TargetAddr here() const { return base_ + abi::kTrapHandlerOffset; }

  /// rax: site -> detour. Goes to unknown_ where there is none.
  void look_up() {
    const Label next = e_.new_label(), found = e_.new_label();
    e_.load_constant(x86::r8, (base_ + abi::kTrapTableOffset).value);
    e_.op(Inst::kIdImul, x86::ecx, x86::eax,
          asmjit::Imm(static_cast<int32_t>(abi::kTrapHashFactor)));
    e_.op(Inst::kIdShr, x86::ecx, asmjit::Imm(12));
    e_.bind(next);
    e_.op(Inst::kIdAnd, x86::ecx, asmjit::Imm(slots_ - 1));
    e_.op(Inst::kIdMov, x86::r9, x86::rcx);
    e_.op(Inst::kIdShl, x86::r9, asmjit::Imm(std::countr_zero(sizeof(abi::TrapEntry))));
    e_.op(Inst::kIdMov, x86::r10, x86::qword_ptr(x86::r8, x86::r9));
    e_.op(Inst::kIdCmp, x86::r10, x86::rax);
    e_.jump_if(x86::CondCode::kE, found);
    e_.op(Inst::kIdTest, x86::r10, x86::r10);
    e_.jump_if(x86::CondCode::kE, unknown_);
    e_.op(Inst::kIdAdd, x86::ecx, asmjit::Imm(1));
    e_.jump(next);
    e_.bind(found);
    e_.op(Inst::kIdMov, x86::rax,
          x86::qword_ptr(x86::r8, x86::r9, 0, offsetof(abi::TrapEntry, detour)));
  }

  /// rt_sigaction(SIGTRAP, default); rt_tgsigqueueinfo(getpid(), gettid(), SIGTRAP, siginfo)
  void die_of_it() {
    e_.op(Inst::kIdMov, x86::rbx, x86::rsi);
    e_.op(Inst::kIdMov, x86::edi, asmjit::Imm(SIGTRAP));
    e_.load_constant(x86::rsi, (base_ + abi::kTrapDefaultOffset).value);
    e_.op(Inst::kIdXor, x86::edx, x86::edx);
    e_.op(Inst::kIdMov, x86::r10d, asmjit::Imm(kSigsetBytes));
    system_call(e_, SYS_rt_sigaction);
    system_call(e_, SYS_getpid);
    e_.op(Inst::kIdMov, x86::r12, x86::rax);
    system_call(e_, SYS_gettid);
    e_.op(Inst::kIdMov, x86::rsi, x86::rax);
    e_.op(Inst::kIdMov, x86::rdi, x86::r12);
    e_.op(Inst::kIdMov, x86::edx, asmjit::Imm(SIGTRAP));
    e_.op(Inst::kIdMov, x86::r10, x86::rbx);
    system_call(e_, SYS_rt_tgsigqueueinfo);
  }

  TargetAddr base_;
  uint32_t slots_;
  Emitter e_;
  Label unknown_ = e_.new_label();
};

void fill_table(std::span<uint8_t> table, uint32_t slots, std::span<const TrapSite> sites) {
  for (const TrapSite& s : sites) {
    uint32_t slot = abi::trap_slot(s.site.value, slots);
    for (;; slot = (slot + 1) & (slots - 1)) {
      abi::TrapEntry entry;
      std::memcpy(&entry, &table[slot * sizeof entry], sizeof entry);
      SPILE_CHECK(entry.site != s.site.value);
      if (entry.site != 0) continue;
      entry = {s.site.value, s.detour.value, s.original, {}};
      std::memcpy(&table[slot * sizeof entry], &entry, sizeof entry);
      break;
    }
  }
}

}  // namespace

uint64_t trap_page_bytes(size_t sites) {
  const uint64_t bytes = abi::kTrapTableOffset + slots_for(sites) * sizeof(abi::TrapEntry);
  return (bytes + kPageBytes - 1) & ~(kPageBytes - 1);
}

Result<std::vector<uint8_t>> make_trap_page(TargetAddr base, std::span<const TrapSite> sites) {
  if (2 * sites.size() > abi::kMaxTrapSlots)
    return fail(ErrorCode::kUnsupported, "{} probes that need an int3; at most {} are possible",
                sites.size(), abi::kMaxTrapSlots / 2);
  const uint32_t slots = slots_for(sites.size());
  TargetAddr restorer;
  SPILE_TRY(auto code, Handler(base, slots).emit(restorer));
  SPILE_CHECK(abi::kTrapHandlerOffset + code.size() <= abi::kTrapTableOffset);
  const abi::TrapHeader header = {abi::kTrapMagic, abi::kTrapVersion, slots, {}};
  const abi::KernelSigaction action = {(base + abi::kTrapHandlerOffset).value,
                                       SA_SIGINFO | SA_ONSTACK | kSaRestorer, restorer.value,
                                       kAllSignals};
  std::vector<uint8_t> page(trap_page_bytes(sites.size()));
  std::memcpy(page.data(), &header, sizeof header);
  std::memcpy(&page[abi::kTrapActionOffset], &action, sizeof action);
  std::ranges::copy(code, &page[abi::kTrapHandlerOffset]);
  fill_table(std::span(page).subspan(abi::kTrapTableOffset), slots, sites);
  return page;
}

}  // namespace spile::jit
