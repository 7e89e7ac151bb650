#include "user_engine/jit/detour.h"

#include <algorithm>
#include <array>
#include <cstring>

#include "abi/private_stack.h"
#include "user_engine/jit/emitter.h"
#include "user_engine/jit/hit_code.h"
#include "x86/decode.h"

namespace spile::jit {

namespace x86 = asmjit::x86;
using asmjit::Imm;

namespace {

/// Below the HitFrame: a hole that stands for the return address of an inlined body, and the
/// arithmetic flags. A called body's return address goes below rsp, so there the HitFrame starts at
/// rsp.
constexpr uint32_t kHoleBytes = 8, kFlagsBytes = 8, kReturnAddressBytes = 8;
/// The constants that Linux gives user mode: the segment selectors, and -1 for "not in a system
/// call". Source: Linux arch/x86/include/asm/segment.h, __USER_CS and __USER_DS.
constexpr int32_t kAlignmentCheck = 1 << 18;  ///< AC in eflags
/// Words of xmm15 while it holds rax: bits 64 to 79 take ax as lahf and seto made it.
constexpr int kFlagsWord = 4;
constexpr int32_t kTakenBit = 0, kOwnerAt = offsetof(abi::PrivateStackControl, owner_sp);
constexpr int32_t kUserCs = 0x33, kUserSs = 0x2b, kNoSystemCall = -1;

/// What a C function may destroy: rax, rcx, rdx, rsi, rdi, r8 to r11.
constexpr SlotMask kCallClobbers =
    slot_bit(offsetof(abi::HitFrame, ax)) | slot_bit(offsetof(abi::HitFrame, cx)) |
    slot_bit(offsetof(abi::HitFrame, dx)) | slot_bit(offsetof(abi::HitFrame, si)) |
    slot_bit(offsetof(abi::HitFrame, di)) | slot_bit(offsetof(abi::HitFrame, r8)) |
    slot_bit(offsetof(abi::HitFrame, r9)) | slot_bit(offsetof(abi::HitFrame, r10)) |
    slot_bit(offsetof(abi::HitFrame, r11));

/// Recommended nops of 1 to 8 bytes. Source: Intel SDM vol. 2B, NOP.
constexpr std::array<std::array<uint8_t, kWordBytes>, kWordBytes> kNops = {
    {{0x90},
     {0x66, 0x90},
     {0x0f, 0x1f, 0x00},
     {0x0f, 0x1f, 0x40, 0x00},
     {0x0f, 0x1f, 0x44, 0x00, 0x00},
     {0x66, 0x0f, 0x1f, 0x44, 0x00, 0x00},
     {0x0f, 0x1f, 0x80, 0x00, 0x00, 0x00, 0x00},
     {0x0f, 0x1f, 0x84, 0x00, 0x00, 0x00, 0x00, 0x00}}};

const Gp kSavable[] = {x86::rax, x86::rcx, x86::rdx, x86::rbx, x86::rbp,
                       x86::rsi, x86::rdi, x86::r8,  x86::r9,  x86::r10,
                       x86::r11, x86::r12, x86::r13, x86::r14, x86::r15};

/// What all programs of a site need together.
struct Needs {
  SlotMask reads = 0, clobbers = 0;
  bool clobbers_flags = false;
  bool overrides = false;
  uint32_t stack_bytes = 0;  ///< of the deepest program, return address included where it is called
  bool calls = false;        ///< code of the runtime, which is compiled C++
};

class DetourEmitter {
 public:
  explicit DetourEmitter(const DetourSpec& spec) : spec_(spec), emit_(spec.at) {}

  Result<HitCode> run() {
    inline_ = can_inline();
    find_needs();
    lay_out();
    choose_stack();
    SPILE_TRY_VOID(check_stack());
    SPILE_TRY_VOID(check_override());
    if (total_ > 0) hit();
    return finish();
  }

 private:
  // ---- decisions
  // ------------------------------------------------------------------------------------------------

  bool can_inline() const {
    if (spec_.programs.size() != 1) return false;
    const Body& body = *spec_.programs[0].body;
    if (body.code_bytes > spec_.inline_limit_bytes) return false;
    return std::all_of(
        body.relocations.begin(), body.relocations.end(),
        [&](const Relocation& relocation) { return emit_.is_near(relocation.target); });
  }

  void find_needs() {
    for (const DetourProgram& program : spec_.programs) {
      const Body& body = *program.body;
      needs_.reads |= body.reads;
      needs_.clobbers |= body.clobbers;
      needs_.clobbers_flags |= body.clobbers_flags;
      uint32_t call = inline_ ? 0 : kReturnAddressBytes;
      if (!is_empty(body))
        needs_.stack_bytes = std::max(needs_.stack_bytes, body.stack_bytes + call);
    }
    if (calls_pending()) {
      needs_.clobbers |= kCallClobbers;
      needs_.clobbers_flags = true;
      for (const HelperCode* entry :
           {&spec_.pending->note, &spec_.pending->take, &spec_.pending->arm, &spec_.pending->arrive,
            &spec_.pending->leave, &spec_.pending->note_again, &spec_.pending->await})
        needs_.stack_bytes = std::max(needs_.stack_bytes, entry->stack_bytes);
    }
    if (has_leave()) {
      jump_ = spile::x86::decode(spec_.site_insn);
      needs_.reads |= slots_of_target();
    }
    if (spec_.hits) {
      needs_.clobbers |= slot_of(x86::rax) | slot_of(x86::r11);
      needs_.clobbers_flags = true;
    }
    needs_.calls = calls_pending() ||
                   std::any_of(spec_.programs.begin(), spec_.programs.end(),
                               [](const DetourProgram& p) { return p.body->calls_helpers; });
    needs_.clobbers_flags |= needs_.calls;
    needs_.overrides = (needs_.reads & kOverriddenSlot) != 0;
    if (needs_.overrides) {  // the comparison, and the value's way out
      needs_.clobbers |= slot_of(x86::rax);
      needs_.clobbers_flags = true;
    }
    saves_flags_ = needs_.clobbers_flags && spec_.flags_live;
    if (saves_flags_ || (needs_.reads & (kIpSlot | kSpSlot)) != 0)
      needs_.clobbers |= slot_of(x86::rax);
  }

  static bool is_empty(const Body& body) { return body.code_bytes == 0; }

  bool calls_pending() const {
    return !spec_.calls.empty() ||
           std::any_of(spec_.programs.begin(), spec_.programs.end(),
                       [](const DetourProgram& p) { return p.pending != 0; });
  }

  bool has_leave() const {
    return std::ranges::find(spec_.calls, CallEvent::Kind::kLeave, &CallEvent::kind) !=
           spec_.calls.end();
  }

  // ---- where an indirect jump goes
  // -----------------------------------------------------------------------------------------

  bool is_register_jump() const { return jump_->modrm_offset != 0 && (jump_->modrm >> 6) == 3; }
  uint8_t jump_register() const {
    return static_cast<uint8_t>((jump_->modrm & 7u) | (jump_->rex & 1u) << 3);
  }
  /// Segments have bases of their own, and 32-bit addresses wrap: no compiler makes such jumps.
  bool has_plain_target() const {
    if (!jump_ || jump_->kind != spile::x86::Kind::kJmpIndirect || jump_->address32) return false;
    return std::none_of(spec_.site_insn.begin(), spec_.site_insn.begin() + jump_->opcode_offset,
                        [](uint8_t byte) { return byte == 0x64 || byte == 0x65; });
  }
  static SlotMask slot_of_number(uint8_t reg) {
    if (reg == spile::x86::kNoReg || reg == spile::x86::kRsp) return 0;
    return slot_of(x86::gpq(reg));
  }
  SlotMask slots_of_target() const {
    if (!has_plain_target()) return 0;
    if (is_register_jump()) return slot_of_number(jump_register());
    return slot_of_number(jump_->base) | slot_of_number(jump_->index);
  }

  void lay_out() {
    bool does_nothing = !spec_.hits && !calls_pending() &&
                        std::all_of(spec_.programs.begin(), spec_.programs.end(),
                                    [](const DetourProgram& p) { return is_empty(*p.body); });
    if (does_nothing) return;
    frame_at_ = inline_ ? kHoleBytes : 0;
    flags_at_ = frame_at_ + static_cast<int32_t>(sizeof(abi::HitFrame));
    total_ =
        static_cast<uint32_t>(flags_at_) + kFlagsBytes + static_cast<uint32_t>(abi::kRedZoneBytes);
    if (needs_.calls) total_ += kFlagsBytes;
  }

  /// The target's own where it has the room: it is near, and nobody else wants it.
  void choose_stack() {
    if (total_ == 0 || !spec_.private_stacks || stack_bytes() <= limit()) return;
    private_ = true;
    total_ -= static_cast<uint32_t>(abi::kRedZoneBytes);
    needs_.clobbers |= slot_of(x86::rax);
    needs_.clobbers_flags = true;
    saves_flags_ = spec_.flags_live || (needs_.reads & kFlagsSlot) != 0;
  }

  uint32_t limit() const {
    constexpr auto most = static_cast<uint32_t>(abi::kMaxHitStackBytes);
    return private_ ? most : std::min(spec_.stack_limit_bytes, most);
  }

  uint32_t stack_bytes() const {
    bool pushes_flags = (needs_.reads & kFlagsSlot) != 0 || needs_.calls;  // when no program runs
    return total_ + std::max(needs_.stack_bytes, pushes_flags ? 8u : 0u);
  }

  Result<void> check_stack() const {
    if (total_ == 0 || stack_bytes() <= limit()) return {};
    return fail(ErrorCode::kUnsafe,
                "a hit at {} would use {} bytes of stack where {} may be used: shorter strings, "
                "fewer or smaller keys and variables take less",
                spec_.site, stack_bytes(), limit());
  }

  Result<void> check_override() const {
    if (!needs_.overrides || spec_.may_override) return {};
    return fail(
        ErrorCode::kUnsafe,
        "override() returns before a function has begun; {} is not the first instruction of a "
        "function that the module's unwind table (.eh_frame) knows",
        spec_.site);
  }

  // ---- code
  // ----------------------------------------------------------------------------------------------------

  Mem slot(int32_t offset) const { return x86::qword_ptr(x86::rsp, frame_at_ + offset); }
  Mem flags_word() const { return x86::qword_ptr(x86::rsp, flags_at_); }
  Mem whole_flags() const {
    return x86::qword_ptr(x86::rsp, flags_at_ + static_cast<int32_t>(kFlagsBytes));
  }

  void hit() {
    const bool is_gated = !spec_.programs.empty() && !calls_pending();
    if (is_gated) pad_to_gate(kWordBytes);
    const size_t entry = emit_.offset();
    if (private_)
      emit_.op(Inst::kIdMovq, x86::xmm15, x86::rax);
    else
      emit_.op(Inst::kIdLea, x86::rsp, x86::ptr(x86::rsp, -static_cast<int32_t>(total_)));
    if (is_gated)
      gates_.push_back(
          {entry, emit_.offset(), PlannedGate::kToDisplaced, 0, spec_.programs.size()});
    if (private_) enter_private_stack();
    save();
    fill_context();
    if (needs_.calls) {
      emit_.op(Inst::kIdPushfq);
      emit_.op(Inst::kIdPop, whole_flags());
      switch_alignment_check();
    }
    for (const CallEvent& event : spec_.calls) {
      if (event.kind == CallEvent::Kind::kLeave) load_target(event);
      call_pending(entry_of(event.kind), event.number);
    }
    if (spec_.hits && spec_.programs.empty() && spec_.calls.empty()) count_hit(*spec_.hits);
    for (size_t i = 0; i < spec_.programs.size();) i = run_programs_from(i, is_gated);
    if (needs_.calls) switch_alignment_check();
    if (needs_.overrides) return_instead();
    restore();
    leave(offsetof(abi::HitFrame, ax));
    if (private_) emit_.bind(past_hit_);
  }

  // ---- a private stack

  /// Behind the first instruction, which keeps rax. Nothing below rsp is written, and all that a
  /// signal handler may interrupt here is registers.
  void enter_private_stack() {
    const Mem taken = x86::dword_ptr(x86::rax), owner = x86::qword_ptr(x86::rax, kOwnerAt);
    Label attempt = emit_.new_label(), got = emit_.new_label();
    past_hit_ = emit_.new_label();
    if (saves_flags_) {
      emit_.op(Inst::kIdLahf, x86::ah);
      emit_.op(Inst::kIdSeto, x86::al);
      emit_.op(Inst::kIdPinsrw, x86::xmm15, x86::eax, Imm(kFlagsWord));
    }
    emit_.load_cpu(x86::rax, spec_.cpu, abi::kPrivateStackHints - 1);
    emit_.op(Inst::kIdShl, x86::rax, Imm(abi::kPrivateStackShift));
    emit_.op(Inst::kIdAdd, x86::rax, emit_.at(spec_.private_stacks->first_at, x86::rax));
    emit_.bind(attempt);
    emit_.locked(Inst::kIdBts, taken, Imm(kTakenBit));
    emit_.jump_if(x86::CondCode::kNC, got);
    emit_.op(Inst::kIdCmp, owner, x86::rsp);
    emit_.jump_if(x86::CondCode::kE, got);
    emit_.op(Inst::kIdAdd, x86::rax, Imm(static_cast<int32_t>(abi::kPrivateStackBytes)));
    emit_.op(Inst::kIdCmp, x86::rax, emit_.at(spec_.private_stacks->end_at, x86::rax));
    emit_.jump_if(x86::CondCode::kB, attempt);
    skip_hit();
    emit_.bind(got);
    emit_.op(Inst::kIdMov, owner, x86::rsp);
    emit_.op(Inst::kIdLea, x86::rsp, x86::ptr(x86::rax, -static_cast<int32_t>(total_)));
    emit_.op(Inst::kIdMovq, slot(offsetof(abi::HitFrame, ax)), x86::xmm15);
    if (saves_flags_) {
      emit_.op(Inst::kIdPextrw, x86::eax, x86::xmm15, Imm(kFlagsWord));
      emit_.op(Inst::kIdMov, flags_word(), x86::rax);
    }
    emit_.op(Inst::kIdPxor, x86::xmm15, x86::xmm15);
  }

  /// No stack is free: as if nobody had probed the place.
  void skip_hit() {
    emit_.op(Inst::kIdMov, x86::rax, Imm(spec_.private_stacks->missed.value));
    emit_.locked(Inst::kIdInc, x86::qword_ptr(x86::rax));
    if (saves_flags_) {
      emit_.op(Inst::kIdPextrw, x86::eax, x86::xmm15, Imm(kFlagsWord));
      restore_flags_from_ax();
    }
    emit_.op(Inst::kIdMovq, x86::rax, x86::xmm15);
    emit_.op(Inst::kIdPxor, x86::xmm15, x86::xmm15);
    emit_.jump(past_hit_);
  }

  /// The stack is free for others once it is left; no flag changes.
  void leave_private_stack(int32_t rax_from) {
    const Mem taken = x86::dword_ptr(x86::rax), owner = x86::qword_ptr(x86::rax, kOwnerAt);
    emit_.op(Inst::kIdMovq, x86::xmm15, slot(rax_from));
    emit_.op(Inst::kIdLea, x86::rax, x86::ptr(x86::rsp, static_cast<int32_t>(total_)));
    emit_.op(Inst::kIdMov, x86::rsp, owner);
    emit_.op(Inst::kIdMov, owner, Imm(0));
    emit_.op(Inst::kIdMov, taken, Imm(0));
    emit_.op(Inst::kIdMovq, x86::rax, x86::xmm15);
    emit_.op(Inst::kIdPxor, x86::xmm15, x86::xmm15);
  }

  /// to = the target's stack pointer at the site.
  void load_target_sp(const Gp& to) {
    const auto above = static_cast<int32_t>(total_);
    if (private_)
      emit_.op(Inst::kIdMov, to, x86::qword_ptr(x86::rsp, above + kOwnerAt));
    else
      emit_.op(Inst::kIdLea, to, x86::ptr(x86::rsp, above));
  }

  // ---- gates

  /// So that `bytes` from here on lie in one aligned word of the target.
  void pad_to_gate(size_t bytes) {
    const size_t in_word = (spec_.at + emit_.offset()).value % kWordBytes;
    if (in_word + bytes <= kWordBytes) return;
    const size_t padding = kWordBytes - in_word;
    const auto& nop = kNops[padding - 1];
    emit_.embed({nop.begin(), nop.begin() + static_cast<std::ptrdiff_t>(padding)});
  }

  size_t begin_gate() {
    pad_to_gate(kGateJumpBytes);
    const size_t begin = emit_.offset();
    const auto& nop = kNops[kGateJumpBytes - 1];
    emit_.embed({nop.begin(), nop.begin() + kGateJumpBytes});
    return begin;
  }
  void end_gate(size_t begin, size_t first_program, size_t programs) {
    gates_.push_back({begin, begin + kGateJumpBytes, emit_.offset(), first_program, programs});
  }

  /// Where the program runs with the alignment check on, it is off for our helpers, which read
  /// unaligned. Nearly never: the test is the cost.
  void switch_alignment_check() {
    Label is_off = emit_.new_label();
    Mem low = x86::dword_ptr(x86::rsp, flags_at_ + static_cast<int32_t>(kFlagsBytes));
    emit_.op(Inst::kIdTest, low, Imm(kAlignmentCheck));
    emit_.jump_if(x86::CondCode::kE, is_off);
    emit_.op(Inst::kIdPushfq);
    emit_.op(Inst::kIdXor, x86::dword_ptr(x86::rsp), Imm(kAlignmentCheck));
    emit_.op(Inst::kIdPopfq);
    emit_.bind(is_off);
  }

  /// rsp as at the site, and rax what the frame has at `rax_from`. On the target's stack rax is in
  /// place already.
  void leave(int32_t rax_from) {
    if (private_) return leave_private_stack(rax_from);
    emit_.op(Inst::kIdLea, x86::rsp, x86::ptr(x86::rsp, static_cast<int32_t>(total_)));
  }

  /// Where a program asked for it: registers as at the call, rax the value, back to the caller. No
  /// instruction of the function has run, so the return address is at the top of its stack and what
  /// it must keep is as it was.
  void return_instead() {
    Label goes_on = emit_.new_label();
    emit_.op(Inst::kIdCmp, slot(offsetof(abi::HitFrame, overridden)), Imm(0));
    emit_.jump_if(x86::CondCode::kEqual, goes_on);
    restore_registers();
    if (!private_) emit_.op(Inst::kIdMov, x86::rax, slot(offsetof(abi::HitFrame, override_value)));
    leave(offsetof(abi::HitFrame, override_value));
    emit_.op(Inst::kIdRet);
    emit_.bind(goes_on);
  }

  /// No instruction before lahf changes flags; rax is saved before lahf changes it. On a private
  /// stack both are in the frame already, and the flags are to be brought back to be seen.
  void save() {
    for (const Gp& reg : kSavable) {
      bool needed = ((needs_.reads | needs_.clobbers) & slot_of(reg)) != 0;
      bool is_saved = private_ && reg == x86::rax;
      if (needed && !is_saved) emit_.op(Inst::kIdMov, slot(frame_offset(reg)), reg);
    }
    if (private_ && (needs_.reads & kFlagsSlot) != 0) {
      emit_.op(Inst::kIdMov, x86::rax, flags_word());
      restore_flags_from_ax();
    }
    if ((needs_.reads & kFlagsSlot) != 0) {
      emit_.op(Inst::kIdPushfq);
      emit_.op(Inst::kIdPop, slot(offsetof(abi::HitFrame, flags)));
    }
    if (saves_flags_ && !private_) {
      emit_.op(Inst::kIdLahf, x86::ah);
      emit_.op(Inst::kIdSeto, x86::al);
      emit_.op(Inst::kIdMov, flags_word(), x86::rax);
    }
  }

  /// Constants. From here on rax is free where ip and sp are filled in.
  void fill_context() {
    fill_constant(offsetof(abi::HitFrame, orig_ax), kNoSystemCall);
    fill_constant(offsetof(abi::HitFrame, cs), kUserCs);
    fill_constant(offsetof(abi::HitFrame, ss), kUserSs);
    fill_constant(offsetof(abi::HitFrame, overridden), 0);
  }

  void fill_constant(int32_t offset, int32_t value) {
    if ((needs_.reads & slot_bit(static_cast<unsigned>(offset))) != 0) {
      emit_.op(Inst::kIdMov, slot(offset), Imm(value));
    }
  }

  void count_hit(const HitCounter& hits) {
    emit_.load_cpu(x86::rax, spec_.cpu, hits.cpu_mask);
    emit_.multiply(x86::rax, hits.cpu_stride);
    emit_.load_constant(x86::r11, hits.storage.value);
    emit_.locked(Inst::kIdInc, x86::qword_ptr(x86::rax, x86::r11));
  }

  /// Runs the programs from `i` on that share its note, or that need none; returns the next.
  size_t run_programs_from(size_t i, bool is_gated) {
    const uint32_t number = spec_.programs[i].pending;
    size_t end = i;
    while (end < spec_.programs.size() && spec_.programs[end].pending == number) end++;
    Label past = emit_.new_label(), again = emit_.new_label();
    emit_.bind(again);
    if (number != 0) {
      call_pending(spec_.pending->take, number);
      emit_.op(Inst::kIdTest, x86::eax, x86::eax);
      emit_.jump_if(x86::CondCode::kE, past);
    }
    const bool needs_gate = !is_gated && (spec_.hits || end - i == 1);
    const size_t begin = needs_gate ? begin_gate() : 0;
    run_group(i, end);
    if (needs_gate) end_gate(begin, i, end - i);
    if (number != 0 && spec_.programs[i].repeats) emit_.jump(again);
    emit_.bind(past);
    return end;
  }

  /// A hit is counted once however many programs it runs. One alone has its gate around the group.
  void run_group(size_t first, size_t end) {
    if (spec_.hits) count_hit(*spec_.hits);
    for (size_t i = first; i < end; i++) {
      const bool needs_gate = end - first > 1 && !is_empty(*spec_.programs[i].body);
      const size_t begin = needs_gate ? begin_gate() : 0;
      run_program(spec_.programs[i]);
      if (needs_gate) end_gate(begin, i, 1);
    }
  }

  const HelperCode& entry_of(CallEvent::Kind kind) const {
    switch (kind) {
      case CallEvent::Kind::kArm: return spec_.pending->arm;
      case CallEvent::Kind::kArrive: return spec_.pending->arrive;
      case CallEvent::Kind::kLeave: return spec_.pending->leave;
      case CallEvent::Kind::kNoteAgain: return spec_.pending->note_again;
      case CallEvent::Kind::kAwait: return spec_.pending->await;
      case CallEvent::Kind::kNote: break;
    }
    return spec_.pending->note;
  }

  void load_register(const Gp& to, uint8_t reg) {
    if (reg == spile::x86::kRsp)
      load_target_sp(to);
    else
      emit_.op(Inst::kIdMov, to, slot(frame_offset(x86::gpq(reg))));
  }

  /// rdx = where the jump goes, or (r8 = 1) where that is written; rcx = what is known. A form that
  /// is not understood goes to 0, which no code is at.
  void load_target(const CallEvent& event) {
    emit_.load_constant(x86::rcx, event.known.value);
    emit_.op(Inst::kIdMov, x86::r8d, Imm(has_plain_target() && !is_register_jump() ? 1 : 0));
    if (!has_plain_target()) return emit_.op(Inst::kIdXor, x86::edx, x86::edx);
    if (is_register_jump()) return load_register(x86::rdx, jump_register());
    if (jump_->rip_relative)
      return emit_.load_constant(x86::rdx, jump_->rip_target(spec_.site).value);
    if (jump_->base == spile::x86::kNoReg)
      emit_.op(Inst::kIdXor, x86::edx, x86::edx);
    else
      load_register(x86::rdx, jump_->base);
    if (jump_->index != spile::x86::kNoReg) {
      load_register(x86::rax, jump_->index);
      emit_.op(Inst::kIdImul, x86::rax, x86::rax, Imm(jump_->scale));
      emit_.op(Inst::kIdAdd, x86::rdx, x86::rax);
    }
    emit_.op(Inst::kIdLea, x86::rdx, x86::ptr(x86::rdx, static_cast<int32_t>(jump_->disp)));
  }

  void call_pending(const HelperCode& entry, uint32_t number) {
    load_target_sp(x86::rdi);
    emit_.op(Inst::kIdMov, x86::esi, Imm(number));
    emit_.call_helper(entry.address);
  }

  /// The instruction and the stack pointer that the program is to see.
  void fill_place(const DetourProgram& program) {
    if ((program.body->reads & kIpSlot) != 0) {
      if (program.popped_bytes == 0) {
        emit_.load_constant(x86::rax, spec_.site.value);
      } else {
        load_target_sp(x86::rax);
        emit_.op(Inst::kIdMov, x86::rax, x86::qword_ptr(x86::rax));
      }
      emit_.op(Inst::kIdMov, slot(offsetof(abi::HitFrame, ip)), x86::rax);
    }
    const bool at_entry = spec_.at_entry && program.popped_bytes == 0;
    fill_constant(offsetof(abi::HitFrame, at_entry), at_entry ? 1 : 0);
    if ((program.body->reads & kSpSlot) != 0) {
      load_target_sp(x86::rax);
      if (program.popped_bytes != 0)
        emit_.op(Inst::kIdLea, x86::rax,
                 x86::ptr(x86::rax, static_cast<int32_t>(program.popped_bytes)));
      emit_.op(Inst::kIdMov, slot(offsetof(abi::HitFrame, sp)), x86::rax);
    }
  }

  void run_program(const DetourProgram& program) {
    const Body& body = *program.body;
    if (is_empty(body)) return;
    fill_place(program);
    if ((body.reads & kCookieSlot) != 0) store_cookie(program.cookie);
    if (!inline_) return emit_.call_body(body.base);
    inlined_at_ = emit_.offset();
    emit_.embed({body.bytes.begin(), body.bytes.begin() + body.code_bytes});
  }

  void store_cookie(uint64_t cookie) {
    int32_t offset = offsetof(abi::HitFrame, cookie);
    Mem low = x86::dword_ptr(x86::rsp, frame_at_ + offset),
        high = x86::dword_ptr(x86::rsp, frame_at_ + offset + 4);
    emit_.op(Inst::kIdMov, low, Imm(static_cast<int32_t>(cookie)));
    emit_.op(Inst::kIdMov, high, Imm(static_cast<int32_t>(cookie >> 32)));
  }

  /// OF comes back by the overflow of al + 127 (al is 0 or 1), the others by sahf; nothing after
  /// that changes flags.
  void restore() {
    if (saves_flags_) {
      emit_.op(Inst::kIdMov, x86::rax, flags_word());
      restore_flags_from_ax();
    }
    restore_registers();
  }

  void restore_flags_from_ax() {
    emit_.op(Inst::kIdAdd, x86::al, Imm(127));
    emit_.op(Inst::kIdSahf, x86::ah);
  }

  /// On a private stack rax comes last: leave().
  void restore_registers() {
    for (const Gp& reg : kSavable) {
      if (private_ && reg == x86::rax) continue;
      if ((needs_.clobbers & slot_of(reg)) != 0)
        emit_.op(Inst::kIdMov, reg, slot(frame_offset(reg)));
    }
  }

  // ---- bytes
  // ---------------------------------------------------------------------------------------------------

  Result<HitCode> finish() {
    HitCode hit;
    SPILE_TRY(hit.bytes, emit_.finish());
    bool unsaved_register = (emit_.clobbers() & ~needs_.clobbers) != 0;
    bool unsaved_flags = emit_.clobbers_flags() && spec_.flags_live && !saves_flags_;
    if (unsaved_register || unsaved_flags) {
      return fail(ErrorCode::kInternal, "the detour of {} destroys what it did not save",
                  spec_.site);
    }
    hit.relocations = emit_.relocations();
    add_inlined(hit.relocations);
    hit.gates = std::move(gates_);
    hit.stack_bytes = total_ == 0 || private_ ? 0 : stack_bytes();
    hit.on_private_stack = private_;
    hit.inlined = inline_ && inlined_at_ != 0;
    return hit;
  }

  /// The rel32 of the copied body reach the same targets from its new place.
  void add_inlined(std::vector<Relocation>& relocations) const {
    if (!inline_ || inlined_at_ == 0) return;
    const auto moved_by = static_cast<uint32_t>(inlined_at_);
    for (Relocation relocation : spec_.programs[0].body->relocations) {
      relocation.offset += moved_by;
      relocation.next_insn += moved_by;
      relocations.push_back(relocation);
    }
  }

  const DetourSpec& spec_;
  Emitter emit_;
  Needs needs_;
  std::optional<spile::x86::Insn> jump_;  ///< the site's, where a call may leave by it
  bool inline_ = false;
  bool saves_flags_ = false;
  bool private_ =
      false;        ///< the hit runs on a private stack; total_ reaches up to its control block
  Label past_hit_;  ///< the displaced code
  int32_t frame_at_ = 0, flags_at_ = 0;  ///< from rsp while programs run
  uint32_t total_ = 0;  ///< what rsp is lowered by; 0: the detour is only the displaced code
  size_t inlined_at_ = 0;
  std::vector<PlannedGate> gates_;
};

}  // namespace

Result<HitCode> emit_hit(const DetourSpec& spec) {
  bool wants_pending = !spec.calls.empty();
  for (const DetourProgram& program : spec.programs) {
    wants_pending |= program.pending != 0;
    if (program.body == nullptr)
      return fail(ErrorCode::kInvalid, "a detour without a body for {}", spec.site);
  }
  if (wants_pending && !spec.pending)
    return fail(ErrorCode::kInvalid, "notes of calls at {} without code for them", spec.site);
  return DetourEmitter(spec).run();
}

Result<Detour> emit_detour(const DetourSpec& spec) {
  if (!spec.displaced)
    return fail(ErrorCode::kInvalid, "a detour without displaced code for {}", spec.site);
  SPILE_TRY(const HitCode hit, emit_hit(spec));
  return place_hit(hit, spec);
}

}  // namespace spile::jit
