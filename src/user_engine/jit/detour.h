// The code a patched site jumps to: save, run programs, restore, do what the site did, go back.
//
//   at:   lea   -(128+frame)(%rsp),%rsp     the red zone of the interrupted function stays as it is
//         mov   %rax,ax(%rsp) ...           only registers that a program reads or destroys
//         lahf; seto %al; mov %rax,...      only if the flags are live at the site
//         <per program: its cookie, then a call of its body or the body itself>
//         add $127,%al; sahf; mov ...       everything back
//         lea   128+frame(%rsp),%rsp
//   override:   (only where a program calls override_return, before the flags come back)
//         cmpq $0,overridden(%rsp); je      else: registers back, mov value(%rsp),%rax,
//         lea 128+frame(%rsp),%rsp; ret     to the caller: nothing of the function has run
//   displaced:  the site's own instructions and the jump back, made by the caller
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
};

/// Counts every hit: lock inc of storage + (cpu & cpu_mask) * cpu_stride.
struct HitCounter {
  TargetAddr storage;
  uint32_t cpu_stride = 0;
  uint32_t cpu_mask = 0;
};

struct DetourSpec {
  TargetAddr at;    ///< where the detour will run
  TargetAddr site;  ///< the probed instruction: what programs see as ip
  std::vector<DetourProgram> programs;
  bool at_entry = false;      ///< the site is a function's first instruction
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
  /// The site's displaced instructions for the address they land on, ending with their own way
  /// back.
  std::function<Result<std::vector<uint8_t>>(TargetAddr)> displaced;
};

/// Upper bound of a detour without displaced code: this, kMaxProgramCallBytes a program, and what
/// is inlined.
inline constexpr size_t kMaxDetourBytes = 640, kMaxProgramCallBytes = 32;

struct Detour {
  std::vector<uint8_t> bytes;  ///< to be put at DetourSpec::at
  uint32_t displaced_offset =
      0;                     ///< where the displaced instructions begin: threads may be moved there
  uint32_t stack_bytes = 0;  ///< upper bound below the target's rsp, red zone included
  bool inlined = false;      ///< the body was copied in
};

/// Errors:  unsafe   a hit would need more stack than allowed; the message has both numbers. Or a
///                   program overrides the function where it has already begun
///          invalid  no displaced code, a null body
///          as compile() and as `displaced` for the rest
Result<Detour> emit_detour(const DetourSpec& spec);

}  // namespace spile::jit
