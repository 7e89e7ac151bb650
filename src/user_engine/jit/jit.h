// eBPF -> x86-64 code that runs inside the target, called by a detour at each hit.
//
// A *body* is one compiled program. Its calling convention is our own, because the caller is a
// detour (detour.h) that knows which registers the body touches:
//   in    the HitFrame lies at rsp + 8 (above the return address, or above a hole where the body is
//   inlined); rsp may
//         have any alignment; the red zone is already stepped over
//   out   every register in Body::clobbers destroyed, arithmetic flags destroyed if
//   Body::clobbers_flags; all else
//         kept: the direction flag, AC, segment registers, SIMD and x87 state are never touched
//   ret   the eBPF return value in rax if JitEnv::keep_result, else nothing
// eBPF's r10 and the context pointer are constants relative to rsp, so they need no registers.
// A body takes no code address from memory, jumps only inside itself and calls only the helpers it
// was given.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <vector>

#include "abi/hit_frame.h"
#include "base/address.h"
#include "base/error.h"
#include "bpf/checker.h"
#include "bpf/insn.h"

namespace spile::jit {

/// A set of abi::HitFrame words: bit i stands for the 8 bytes at offset 8 * i.
using SlotMask = uint32_t;
constexpr SlotMask slot_bit(unsigned frame_offset_bytes) {
  return SlotMask{1} << (frame_offset_bytes / 8);
}
inline constexpr SlotMask kGeneralRegisterSlots =
    0x7fff;  ///< r15 ... di: registers that can be saved and clobbered
inline constexpr SlotMask kIpSlot = slot_bit(offsetof(abi::HitFrame, ip));
inline constexpr SlotMask kFlagsSlot = slot_bit(offsetof(abi::HitFrame, flags));
inline constexpr SlotMask kSpSlot = slot_bit(offsetof(abi::HitFrame, sp));
inline constexpr SlotMask kCookieSlot = slot_bit(offsetof(abi::HitFrame, cookie));
inline constexpr SlotMask kAtEntrySlot = slot_bit(offsetof(abi::HitFrame, at_entry));
inline constexpr SlotMask kOverriddenSlot = slot_bit(offsetof(abi::HitFrame, overridden));
/// The kernel's registers and the cookie: what a program that reads the context at will may see.
inline constexpr SlotMask kAllSlots = (kCookieSlot << 1) - 1;
/// What get_stackid needs.
inline constexpr SlotMask kStackSlots =
    slot_bit(offsetof(abi::HitFrame, bp)) | kIpSlot | kSpSlot | kAtEntrySlot;

/// Where the number of the current CPU comes from. Both are user-mode instructions that Linux keeps
/// up to date.
enum class CpuNumber : uint8_t {
  kRdpid,  ///< CPUID.7.ECX[22]; 2 ns
  kLsl,    ///< limit of the segment 0x7b; 10 ns; works on every x86-64 Linux
};

/// Compiled code of the blob (or of a test) that does what a helper does; C ABI, general registers
/// only.
struct HelperCode {
  TargetAddr address;        ///< within +-2 GiB of the body
  uint32_t stack_bytes = 0;  ///< upper bound, its return address included
};

/// What is needed to find a value of an array without calling a helper. All in bytes; constants
/// once compiled.
struct ArrayLayout {
  TargetAddr storage;         ///< value of key 0, CPU 0
  uint32_t value_stride = 0;  ///< from key to key
  uint32_t cpu_stride = 0;    ///< from CPU to CPU; 0: one value for all CPUs
  uint32_t cpu_mask = 0;      ///< the CPU number is masked with it: slots - 1, slots a power of two
  uint32_t max_entries = 0;
};

struct MapCode {
  TargetAddr descriptor;  ///< what helpers get as their first argument; read-only in the target
  std::optional<ArrayLayout> array;  ///< set for kArray and kPerCpuArray: lookups are inlined
};

struct JitEnv {
  TargetAddr base;                        ///< where the body will run; never 0
  std::map<int32_t, HelperCode> helpers;  ///< by bpf::Helper
  std::vector<MapCode> maps;              ///< by index in the Bundle
  CpuNumber cpu = CpuNumber::kRdpid;
  uint32_t budget = 1u << 17;  ///< times one hit may jump backwards
  TargetAddr
      missed_counter;  ///< u64, added to atomically when the budget ends a hit; 0: not counted
  bool keep_result = false;    ///< r0 matters to the caller; a detour never looks
  bool inline_lookups = true;  ///< off: helpers do all lookups (for comparison in tests)
  bool optimise =
      true;  ///< off: every instruction is translated as it stands (for the same reason)
};

/// A rel32 in a body: if the body is copied elsewhere, the four bytes at `offset` are to reach the
/// same target.
struct Relocation {
  uint32_t offset = 0;  ///< of the four bytes
  uint32_t next_insn =
      0;  ///< offset of the instruction after it, which the displacement counts from
  TargetAddr target;
};

struct Body {
  TargetAddr base;             ///< where it was compiled for
  std::vector<uint8_t> bytes;  ///< enter at the first byte
  uint32_t code_bytes = 0;     ///< without the final `ret`: what a detour copies to inline it
  std::vector<Relocation> relocations;
  SlotMask reads = 0;     ///< context words it loads: the detour must fill them
  SlotMask clobbers = 0;  ///< registers it destroys
  bool clobbers_flags = false;
  bool calls_helpers = false;
  uint32_t stack_bytes = 0;  ///< below rsp at entry: own frame and the deepest helper
};

inline constexpr size_t kMaxProgramInsns = 65536;
inline constexpr size_t kMaxBodyBytes = 1 << 20;
inline constexpr uint32_t kBpfStackBytes = 512;
/// What one eBPF instruction can become, and what every body has beside: for reserving room before
/// compiling.
inline constexpr size_t kMaxBytesPerInsn = 96, kMaxBodyOverheadBytes = 64;

/// Compiles a checked program.
///
/// `analysis` is what bpf::check said about the very same program: it is the proof that memory
/// accesses are in bounds. Whatever the checker got wrong, control flow is validated again here: a
/// body never jumps outside itself.
///
/// Errors:  invalid      malformed control flow, unknown opcode, a map or helper that env does not
/// have
///          unsupported  a feature that is not built (local calls, writing the context)
///          unsafe       it needs more stack than one hit may use
/// Cost:    about 1 us an instruction.
Result<Body> compile(const bpf::Program& program, const bpf::Analysis& analysis, const JitEnv& env);

}  // namespace spile::jit
