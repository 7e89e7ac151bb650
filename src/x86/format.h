// Instructions as text, for people.
#pragma once

#include <cstdint>
#include <span>
#include <string>

#include "base/address.h"

namespace spile::x86 {

/// "48 89 e5": two digits a byte, spaces between.
std::string hex(std::span<const uint8_t> bytes);

/// The first instruction of `bytes` in AT&T syntax, branch targets as addresses: "call 0x401136".
/// "(bad)" if it is none.
std::string format_insn(std::span<const uint8_t> bytes, TargetAddr at);

/// One line an instruction: address, bytes, text. Bytes that are none get a line each.
///   0x401136  55              push %rbp
std::string format_code(std::span<const uint8_t> bytes, TargetAddr at);

/// `before` and `after` as format_code, one above the other, lines that differ marked with - and +.
std::string format_diff(std::span<const uint8_t> before,
                        std::span<const uint8_t> after,
                        TargetAddr at);

}  // namespace spile::x86
