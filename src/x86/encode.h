// The few fixed sequences that patches are made of.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "base/address.h"
#include "base/error.h"

namespace spile::x86 {

using Code = std::vector<uint8_t>;

/// e9 rel32
inline constexpr size_t kJmpBytes = 5;
inline constexpr std::array<uint8_t, 4> kEndbr64 = {0xf3, 0x0f, 0x1e, 0xfa};
/// What unwinders take for the signal trampoline: mov $15,%rax; syscall.
inline constexpr std::array<uint8_t, 9> kRestoreRt = {0x48, 0xc7, 0xc0, 0x0f, 0x00,
                                                      0x00, 0x00, 0x0f, 0x05};

/// jmp from `from` to `to`. Errors: unsupported, more than 2 GiB apart.
Result<std::array<uint8_t, kJmpBytes>> encode_jmp(TargetAddr from, TargetAddr to);

/// What must be written at `field` so that a 32-bit field there, relative to `next`, names `to`.
Result<int32_t> rel32(TargetAddr next, TargetAddr to);

/// Appends `count` bytes of the longest recommended nops (Intel SDM vol. 2B, NOP).
void append_nops(Code& code, size_t count);

/// Appends push of a 64-bit constant: registers and flags stay. 5 or 13 bytes.
///   68 lo           push $lo            sign-extended
///   c7 44 24 04 hi  movl $hi, 4(%rsp)   only where sign extension is wrong
void append_push_imm64(Code& code, uint64_t value);

void append_u32(Code& code, uint32_t value);

/// Appends, for code that runs at `at`, a call with one argument on the stack, over the red zone:
///   48 8d 64 24 80           lea  -128(%rsp),%rsp
///   ff 35 rel32              push (argument)
///   ff 15 rel32              call *(function)
///   48 8d a4 24 88 00 00 00  lea  136(%rsp),%rsp
/// Registers and flags stay. Errors: unsupported, a slot is out of reach.
Result<void> append_call_over_red_zone(Code& code,
                                       TargetAddr at,
                                       TargetAddr argument,
                                       TargetAddr function);
inline constexpr size_t kCallOverRedZoneBytes = 25;

/// How many bytes at the start of `bytes` are padding that a compiler or linker puts between code:
/// 90, cc, nops of several bytes. Stops at a nop that `bytes` cuts off.
size_t padding_bytes(std::span<const uint8_t> bytes);

}  // namespace spile::x86
