// The trap page: how an int3 of ours finds its detour.
//
//   offset 0x000   TrapHeader         says that this is a trap page, and where its table is
//          0x040   KernelSigaction    our action for SIGTRAP, as rt_sigaction(2) reads it
//          0x060   KernelSigaction    the default action
//          0x080   the handler, its restorer                     user_engine/jit/trap_page.h
//          0x200   TrapEntry[slots]   a hash table, linear probing, at most half full
//
// It is a code region of its own: R-X in the target and sealed, so neither the handler nor an
// adopter need distrust it. Every byte is written by the tracer before it is mapped there.
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace spile::abi {

inline constexpr uint64_t kTrapMagic = 0x7061'7274'6c70'73cc;  // "spltrap", behind an int3
inline constexpr uint32_t kTrapVersion = 1;

struct TrapHeader {
  uint64_t magic;
  uint32_t version;
  uint32_t slots;  ///< of the table, a power of two
  uint64_t reserved[6];
};
static_assert(sizeof(TrapHeader) == 64);

/// struct sigaction as the kernel has it on x86-64.
struct KernelSigaction {
  uint64_t handler;  ///< 0: SIG_DFL
  uint64_t flags;
  uint64_t restorer;
  uint64_t mask;
};
static_assert(sizeof(KernelSigaction) == 32);

struct TrapEntry {
  uint64_t site;     ///< address of the int3; 0: the slot is free
  uint64_t detour;   ///< where the thread goes on
  uint8_t original;  ///< what the int3 was written over
  uint8_t reserved[15];
};
static_assert(sizeof(TrapEntry) == 32);

inline constexpr uint64_t kTrapActionOffset = 0x40;
inline constexpr uint64_t kTrapDefaultOffset = 0x60;
inline constexpr uint64_t kTrapHandlerOffset = 0x80;
inline constexpr uint64_t kTrapTableOffset = 0x200;
/// More traps than this are refused.
inline constexpr uint32_t kMaxTrapSlots = 1u << 20;

/// Slot of a site before probing: Knuth's multiplicative hash of the address's low half.
inline constexpr uint32_t kTrapHashFactor = 0x9e3779b1;
constexpr uint32_t trap_slot(uint64_t site, uint32_t slots) {
  return (static_cast<uint32_t>(site) * kTrapHashFactor >> 12) & (slots - 1);
}

}  // namespace spile::abi
