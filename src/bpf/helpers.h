// What each helper takes and gives: the one table that the checker and the disassembler read.
#pragma once

#include <array>
#include <optional>
#include <span>
#include <string_view>

#include "bpf/insn.h"

namespace spile::bpf {

/// Not in enum Helper: (signal) -> 0 or -errno; to the current thread. The kernel engine's.
inline constexpr Helper kSendSignalThread{117};

/// What one argument register must hold.
enum class ArgType : uint8_t {
  kNone,         ///< not read
  kScalar,       ///< a number
  kAddress,      ///< a number or any pointer: an address that the helper itself reads with care
  kMap,          ///< a hash or array map
  kRing,         ///< a ring map
  kStacks,       ///< a stack map
  kMapKey,       ///< pointer to key_size initialised bytes of the map in r1
  kMapKeyOut,    ///< pointer to key_size bytes of the map in r1, which the helper initialises
  kMapValue,     ///< pointer to value_size initialised bytes of the map in r1
  kReadMemory,   ///< pointer to initialised bytes; the next argument is how many
  kWriteMemory,  ///< pointer to bytes that the helper initialises; the next argument is how many
  kSize,         ///< how many bytes the argument before points to: 1 or more
  kSizeOrZero,   ///< the same, or 0
  kRecordSize,   ///< a constant: the size of a ring record
  kZero,         ///< the constant 0
  kRecord,       ///< the start of a record that ringbuf_reserve gave; the helper takes it away
  kContext,      ///< the program's context as it came in r1
};

/// What r0 holds afterwards. The checker relies on it, so whoever provides the helper must keep to
/// it.
enum class ReturnType : uint8_t {
  kScalar,       ///< any number
  kErrorOrSize,  ///< -4095 ... the value of the size argument
  kMapValueOrNull,
  kRecordOrNull,
  kNothing,  ///< r0 cannot be read
};

struct HelperSignature {
  Helper helper;
  std::string_view name;  ///< the kernel's, without bpf_
  std::array<ArgType, 5> args;
  ReturnType result;
};

/// Every helper in enum Helper.
std::span<const HelperSignature> helper_signatures();
/// Null for a number that is not in enum Helper.
const HelperSignature* find_helper(int32_t id);

}  // namespace spile::bpf
