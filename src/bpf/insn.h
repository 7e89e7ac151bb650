// The eBPF instruction set, as numbers. The same 8 bytes that bpf(2) takes.
//
// Source: the kernel's Documentation/bpf/standardization/instruction-set.rst (RFC 9669).
#pragma once

#include <cstdint>
#include <vector>

namespace spile::bpf {

enum class Reg : uint8_t { r0, r1, r2, r3, r4, r5, r6, r7, r8, r9, r10 };

/// One instruction. A 64-bit immediate load (lddw) takes two of them.
struct Insn {
  uint8_t code = 0;
  uint8_t regs = 0;  ///< dst in the low nibble, src in the high one
  int16_t off = 0;
  int32_t imm = 0;

  constexpr uint8_t dst() const { return regs & 0xf; }
  constexpr uint8_t src() const { return regs >> 4; }
  constexpr bool operator==(const Insn&) const = default;
};
static_assert(sizeof(Insn) == 8);

using Program = std::vector<Insn>;

// Instruction classes: low three bits of code.
inline constexpr uint8_t kClassLd = 0x00, kClassLdx = 0x01, kClassSt = 0x02, kClassStx = 0x03;
inline constexpr uint8_t kClassAlu = 0x04, kClassJmp = 0x05, kClassJmp32 = 0x06, kClassAlu64 = 0x07;
// Source operand of ALU and JMP.
inline constexpr uint8_t kSrcK = 0x00, kSrcX = 0x08;
// ALU operations.
inline constexpr uint8_t kAdd = 0x00, kSub = 0x10, kMul = 0x20, kDiv = 0x30, kOr = 0x40,
                         kAnd = 0x50, kLsh = 0x60, kRsh = 0x70, kNeg = 0x80, kMod = 0x90,
                         kXor = 0xa0, kMov = 0xb0, kArsh = 0xc0, kEnd = 0xd0;
// Jumps.
inline constexpr uint8_t kJa = 0x00, kJeq = 0x10, kJgt = 0x20, kJge = 0x30, kJset = 0x40,
                         kJne = 0x50, kJsgt = 0x60, kJsge = 0x70, kCall = 0x80, kExit = 0x90,
                         kJlt = 0xa0, kJle = 0xb0, kJslt = 0xc0, kJsle = 0xd0;
// Memory access: size and mode.
inline constexpr uint8_t kSizeW = 0x00, kSizeH = 0x08, kSizeB = 0x10, kSizeDw = 0x18;
inline constexpr uint8_t kModeImm = 0x00, kModeMem = 0x60, kModeMemSx = 0x80, kModeAtomic = 0xc0;
// imm of an atomic: operation | fetch.
inline constexpr int32_t kAtomicAdd = 0x00, kAtomicOr = 0x40, kAtomicAnd = 0x50, kAtomicXor = 0xa0,
                         kFetch = 0x01, kXchg = 0xe1, kCmpXchg = 0xf1;
// src of lddw.
inline constexpr uint8_t kPseudoNone = 0, kPseudoMapFd = 1, kPseudoMapValue = 2, kPseudoFunc = 4,
                         kPseudoMapIdx = 5;
// src of call.
inline constexpr uint8_t kCallHelper = 0, kCallLocal = 1;

/// Helpers that our code generator uses; numbers are the kernel's (enum bpf_func_id).
enum class Helper : int32_t {
  kMapLookupElem = 1,          ///< (map, key*) -> value* or 0
  kMapUpdateElem = 2,          ///< (map, key*, value*, flags) -> 0 or -errno
  kMapDeleteElem = 3,          ///< (map, key*) -> 0 or -errno
  kKtimeGetNs = 5,             ///< () -> CLOCK_MONOTONIC in ns
  kGetPrandomU32 = 7,          ///< () -> a random number of 32 bits
  kGetSmpProcessorId = 8,      ///< () -> cpu
  kGetCurrentPidTgid = 14,     ///< () -> tgid << 32 | tid
  kGetCurrentUidGid = 15,      ///< () -> gid << 32 | uid
  kGetCurrentComm = 16,        ///< (buf*, size) -> 0 or -errno
  kGetStackid = 27,            ///< (ctx, stacks, flags) -> id of this stack, or -errno
  kGetCurrentTask = 35,        ///< () -> address of the task
  kGetNumaNodeId = 42,         ///< () -> node
  kOverrideReturn = 58,        ///< (ctx, value): the function ends at once and returns value
  kGetCurrentCgroupId = 80,    ///< () -> id of the cgroup
  kSendSignal = 109,           ///< (signal) -> 0 or -errno; to the current process
  kProbeReadUser = 112,        ///< (dst*, size, address) -> 0 or -errno
  kProbeReadKernel = 113,      ///< (dst*, size, address) -> 0 or -errno
  kProbeReadUserStr = 114,     ///< (dst*, size, address) -> bytes with NUL, or -errno
  kProbeReadKernelStr = 115,   ///< (dst*, size, address) -> bytes with NUL, or -errno
  kJiffies64 = 118,            ///< () -> ticks since boot
  kKtimeGetBootNs = 125,       ///< () -> CLOCK_BOOTTIME in ns
  kRingbufOutput = 130,        ///< (ring, data*, size, flags) -> 0 or -errno
  kRingbufReserve = 131,       ///< (ring, size, 0) -> record* or 0; size is a constant
  kRingbufSubmit = 132,        ///< (record*, flags)
  kRingbufDiscard = 133,       ///< (record*, flags)
  kForEachMapElem = 164,       ///< (map, function, stack*, 0) -> elements, or -errno
  kGetAttachCookie = 174,      ///< (ctx) -> the attach point's number
  kLoop = 181,                 ///< (rounds, function, stack*, 0) -> rounds made, or -errno
  kMapLookupPercpuElem = 195,  ///< (map, key*, cpu) -> that CPU's value* or 0; a per-CPU map
  /// Ours, of the user engine: (map, position, key*) -> the next position, or 0. Writes the key of
  /// the first element behind `position`, which begins at 0.
  kMapNextKey = 65100,
};

// Flags of map_update_elem.
/// Flag of get_stackid: the user's stack; without it the kernel's.
inline constexpr int kUserStack = 1 << 8;

inline constexpr int kUpdateAny = 0, kUpdateNoExist = 1, kUpdateExist = 2;

/// Offsets of registers in the context of kprobe and uprobe programs (struct pt_regs of x86-64), in
/// bytes.
namespace x86_64_regs {
inline constexpr int kR15 = 0, kR14 = 8, kR13 = 16, kR12 = 24, kBp = 32, kBx = 40, kR11 = 48,
                     kR10 = 56, kR9 = 64, kR8 = 72, kAx = 80, kCx = 88, kDx = 96, kSi = 104,
                     kDi = 112, kOrigAx = 120, kIp = 128, kCs = 136, kFlags = 144, kSp = 152,
                     kSs = 160, kSize = 168;
}  // namespace x86_64_regs

}  // namespace spile::bpf
