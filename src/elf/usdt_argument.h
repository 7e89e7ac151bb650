// One argument of a static tracepoint: the text of its note -> where its value is.
//
//   -4@%edi            the low 4 bytes of rdi, signed      8@$-5            a constant
//   8@-8(%rbp)         8 bytes at rbp - 8                  1@(%rax,%rcx,2)  1 byte at rax + 2 * rcx
//   4@counter(%rip)    4 bytes at a symbol                 -2@2+g(%rip)     2 bytes, 2 after a
//   symbol
//
// Pure: symbols stay names. Source: the templates of <sys/sdt.h> and the operands that GCC and LLVM
// print for them (AT&T syntax).
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"

namespace spile::elf {

struct UsdtArgument {
  enum class Place : uint8_t { kConstant, kRegister, kMemory };

  Place place = Place::kConstant;
  uint8_t size = 8;  ///< bytes: 1, 2, 4, 8
  bool is_signed = false;
  /// kRegister: which; kMemory: the base, kNoRegister: none. In encoding order: rax 0, rcx 1, rdx
  /// 2, rbx 3, rsp 4, rbp 5, rsi 6, rdi 7, r8 8, ... r15 15.
  uint8_t base = kNoRegister;
  bool is_high_byte = false;  ///< kRegister: ah, ch, dh, bh
  uint8_t index = kNoRegister;
  uint8_t scale = 1;
  int64_t number = 0;       ///< kConstant: the value; kMemory: the displacement
  std::string_view symbol;  ///< kMemory: its address is added; "" none

  static constexpr uint8_t kNoRegister = 255;
};

/// The arguments of a note, separated by blanks.
std::vector<std::string_view> split_usdt_arguments(std::string_view arguments);

/// Reads one. Errors: unsupported, with the reason in words: vector registers, floating-point
/// numbers, segments, Intel syntax.
Result<UsdtArgument> parse_usdt_argument(std::string_view text);

}  // namespace spile::elf
