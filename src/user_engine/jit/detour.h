// The code a patched site jumps to: save, run programs, restore, do what the site did, go back.
//
//   at:   lea   -(128+frame)(%rsp),%rsp     the red zone of the interrupted function stays as it is
//         mov   %rax,ax(%rsp) ...           only registers that a program reads or destroys
//         lahf; seto %al; mov %rax,...      only if the flags are live at the site
//         <per event of a call: rdi = the stack pointer, esi = number, call>
//         <per program: its cookie, then a call of its body or the body itself; where the program
//          belongs to a noted call: rdi, esi, call; test %eax,%eax; jz past it>
//         add $127,%al; sahf; mov ...       everything back
//         lea   128+frame(%rsp),%rsp
//   override:   (only where a program calls override_return, before the flags come back)
//         cmpq $0,overridden(%rsp); je      else: registers back, mov value(%rsp),%rax,
//         lea 128+frame(%rsp),%rsp; ret     to the caller: nothing of the function has run
//   displaced:  the site's own instructions and the jump back, made by the caller
//
// Programs can be switched off while threads run: by gates, each an instruction in one aligned word
// that one store turns into a jump of the same length and back.
//
//   at:   lea   -(128+frame)(%rsp),%rsp     48 8d a4 24 dd dd dd dd
//   off:  cs cs cs jmp displaced            2e 2e 2e e9 dd dd dd dd
//
// Where notes of calls are kept and taken whether programs run or not, and where a site has several
// programs, the gate is a nop of five bytes before a program, or a jump over it.
//
// Where the target's stack may have no room, the detour goes to a private stack instead of lowering
// rsp, and writes nothing below rsp before it is there. What no instruction can do without a place
// for one register is done with a vector register, which signal handlers save and restore like any:
//
//   at:   movq  %rax,%xmm15                     only where xmm15 is free (DetourSpec)
//         lahf; seto %al; pinsrw $4,%eax,%xmm15
//         rdpid %rax; and $127,%eax; shl $15,%rax; add first(%rip),%rax     this CPU's stack
//   try:  lock btsl $0,(%rax); jnc got
//         cmp   %rsp,8(%rax); je got            left behind by a hit that never ended
//         add   $0x8000,%rax; cmp end(%rip),%rax; jb try
//         <count the hit as missed, rax and flags back, jmp displaced>
//   got:  mov   %rsp,8(%rax)
//         lea   -frame(%rax),%rsp
//         <rax and flags out of xmm15 into the frame; the rest as above, but for the way back:>
//         movq  ax(%rsp),%xmm15; lea frame(%rsp),%rax; mov 8(%rax),%rsp
//         movq  $0,8(%rax); movl $0,(%rax)      now the stack is another's
//         movq  %xmm15,%rax; pxor %xmm15,%xmm15
//
// Where no program needs anything, the detour is only the displaced part. Nothing here depends on
// the stack's alignment, on thread-local storage or on writable memory; it can be entered
// recursively by signal handlers.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <vector>

#include "abi/hit_frame.h"
#include "base/address.h"
#include "base/error.h"
#include "user_engine/jit/jit.h"

namespace spile::jit {

/// One program at a site, in attach order.
struct DetourProgram {
  const Body* body = nullptr;  ///< lies at body->base in the target
  uint64_t cookie = 0;         ///< index in Bundle::probes
  /// The site is a `ret` that takes this many bytes off the stack, and the program runs as if right
  /// behind it: ip is the return address, sp what it will be. 0: ip is the site, sp as it is.
  uint32_t popped_bytes = 0;
  /// Not 0: it runs only if the call with this number and our stack pointer was noted; the note is
  /// taken. Programs that follow each other with the same number share one note.
  uint32_t pending = 0;
  bool repeats = false;  ///< it runs, with all that share the note, as long as there is one

  bool operator==(const DetourProgram&) const = default;
};

/// The blob's entries that keep notes of calls (rt/pending.h): (stack pointer, number); leave has
/// the jump's target and abi::KnownCode beside.
struct PendingCalls {
  HelperCode note, take, arm, arrive, leave, note_again;
  HelperCode await;  ///< takes nothing: CallEvent::Kind::kAwait
};

/// What a site says about the calls that it is part of, before its programs run.
struct CallEvent {
  enum class Kind : uint8_t {
    kNote,       ///< a call begins
    kArm,        ///< it jumps to another function
    kArrive,     ///< at the entry of a function that may be jumped to, or called
    kNoteAgain,  ///< a call begins, or comes back to its beginning by a jump
    kLeave,      ///< it may jump to anywhere: the site is an indirect jump
    kAwait,      ///< no call: the thread waits for the tracer here (abi/loader_gate.h)
  };
  Kind kind = Kind::kNote;
  uint32_t number = 0;
  TargetAddr known;  ///< kLeave: abi::KnownCode in the target
};

/// Counts every hit: lock inc of storage + (cpu & cpu_mask) * cpu_stride.
struct HitCounter {
  TargetAddr storage;
  uint32_t cpu_stride = 0;
  uint32_t cpu_mask = 0;

  bool operator==(const HitCounter&) const = default;
};

/// The pool of private stacks (abi/private_stack.h) as a detour finds it.
struct PrivateStacks {
  /// Where the addresses of the first control block and of the end lie: within +-2 GiB.
  TargetAddr first_at, end_at;
  TargetAddr missed;  ///< u64, added to where a hit finds no stack and is skipped
};

struct DetourSpec {
  TargetAddr at;    ///< where the detour will run
  TargetAddr site;  ///< the probed instruction: what programs see as ip
  std::vector<DetourProgram> programs;
  std::vector<CallEvent> calls;         ///< in this order
  std::vector<uint8_t> site_insn;       ///< needed by CallEvent::kLeave: the jump's bytes
  std::optional<PendingCalls> pending;  ///< needed by calls and by DetourProgram::pending
  bool at_entry = false;                ///< the site is a function's first instruction
  bool may_override = false;  ///< it is so for certain: the return address is at the target's rsp
  bool flags_live = true;     ///< false only where the site's plan proved the arithmetic flags dead
  CpuNumber cpu = CpuNumber::kRdpid;
  std::optional<HitCounter> hits;
  /// Largest body that is copied into the detour instead of called, in bytes; 0: always call. Only
  /// for one program.
  uint32_t inline_limit_bytes = 256;
  /// What one hit may use below the target's rsp, red zone included. Go code has less than
  /// abi::kMaxHitStackBytes.
  uint32_t stack_limit_bytes = abi::kMaxHitStackBytes;
  /// Where a hit runs that would need more than stack_limit_bytes. Only for sites where the low 128
  /// bits of vector register 15 are zero or will not be read: they are zero afterwards.
  std::optional<PrivateStacks> private_stacks;
  /// The site's displaced instructions for the address they land on, ending with their own way
  /// back.
  std::function<Result<std::vector<uint8_t>>(TargetAddr)> displaced;
};

/// Programs that are skipped while this is closed. One naturally aligned store of 8 bytes: another
/// core fetches the word as it was or as it is, and in both an instruction begins where one began.
/// Source: AMD64 APM vol. 2, 7.6.1 (cross-modifying code). What runs behind the gate runs on.
struct Gate {
  uint32_t offset = 0;            ///< of the word in Detour::bytes; a multiple of 8 in the target
  uint64_t open = 0, closed = 0;  ///< the word; bytes as in memory
  uint32_t first_program = 0, programs = 0;  ///< in DetourSpec::programs: closed when all are off

  bool operator==(const Gate&) const = default;
};

/// Upper bound of a detour without displaced code: this, kMaxProgramCallBytes a program,
/// kMaxNoteBytes an event of a call, and what is inlined.
inline constexpr size_t kMaxDetourBytes = 848, kMaxProgramCallBytes = 164, kMaxNoteBytes = 96;

struct Detour {
  std::vector<uint8_t> bytes;  ///< to be put at DetourSpec::at
  uint32_t displaced_offset =
      0;                     ///< where the displaced instructions begin: threads may be moved there
  uint32_t stack_bytes = 0;  ///< upper bound below the target's rsp, red zone included
  bool on_private_stack = false;  ///< then stack_bytes is 0: nothing below the target's rsp changes
  bool inlined = false;           ///< the body was copied in
  std::vector<Gate> gates;
};

/// Errors:  unsafe   a hit would need more stack than allowed; the message has both numbers. Or a
///                   program overrides the function where it has already begun
///          invalid  no displaced code, a null body, calls without PendingCalls
///          as compile() and as `displaced` for the rest
Result<Detour> emit_detour(const DetourSpec& spec);

/// Makes many detours. The same bytes as emit_detour() makes, but where a hit does what another one
/// did its code is moved rather than made anew: most of the time that making it takes.
class DetourMaker {
 public:
  DetourMaker();
  ~DetourMaker();
  /// Bodies must stay where they are as long as the maker lives. Errors: those of emit_detour().
  Result<Detour> make(const DetourSpec& spec);

 private:
  /// Two hits that agree in it have the same code, wherever they are.
  struct Sameness {
    std::vector<DetourProgram> programs;  ///< without cookies that nobody reads
    uint64_t in_word = 0;                 ///< gates are aligned
    bool at_entry = false, may_override = false, flags_live = true;
    CpuNumber cpu = CpuNumber::kRdpid;
    std::optional<HitCounter> hits;
    uint32_t inline_limit_bytes = 0, stack_limit_bytes = 0;

    bool operator==(const Sameness&) const = default;
  };
  static std::optional<Sameness> sameness_of(const DetourSpec& spec);

  struct Made;
  std::vector<Made> made_;
};

}  // namespace spile::jit
