#include "x86/encode.h"

#include <cstring>

#include "x86/decode.h"

namespace spile::x86 {

Result<int32_t> rel32(TargetAddr next, TargetAddr to) {
  const int64_t distance = to - next;
  if (distance != static_cast<int32_t>(distance)) {
    return fail(ErrorCode::kUnsupported, "{} is more than 2 GiB away from {}", to, next);
  }
  return static_cast<int32_t>(distance);
}

Result<std::array<uint8_t, kJmpBytes>> encode_jmp(TargetAddr from, TargetAddr to) {
  SPILE_TRY(const int32_t distance, rel32(from + kJmpBytes, to));
  std::array<uint8_t, kJmpBytes> bytes = {0xe9};
  std::memcpy(&bytes[1], &distance, sizeof distance);
  return bytes;
}

Result<void> append_call_over_red_zone(Code& code,
                                       TargetAddr at,
                                       TargetAddr argument,
                                       TargetAddr function) {
  constexpr uint8_t kDown[] = {0x48, 0x8d, 0x64, 0x24, 0x80, 0xff, 0x35};
  constexpr uint8_t kCall[] = {0xff, 0x15};
  constexpr uint8_t kUp[] = {0x48, 0x8d, 0xa4, 0x24, 0x88, 0, 0, 0};
  SPILE_TRY(const int32_t to_argument, rel32(at + 11, argument));
  SPILE_TRY(const int32_t to_function, rel32(at + 17, function));
  code.insert(code.end(), std::begin(kDown), std::end(kDown));
  append_u32(code, static_cast<uint32_t>(to_argument));
  code.insert(code.end(), std::begin(kCall), std::end(kCall));
  append_u32(code, static_cast<uint32_t>(to_function));
  code.insert(code.end(), std::begin(kUp), std::end(kUp));
  return {};
}

void append_u32(Code& code, uint32_t value) {
  for (int shift = 0; shift < 32; shift += 8) code.push_back(static_cast<uint8_t>(value >> shift));
}

void append_nops(Code& code, size_t count) {
  static constexpr uint8_t kNops[9][9] = {
      {0x90},
      {0x66, 0x90},
      {0x0f, 0x1f, 0x00},
      {0x0f, 0x1f, 0x40, 0x00},
      {0x0f, 0x1f, 0x44, 0x00, 0x00},
      {0x66, 0x0f, 0x1f, 0x44, 0x00, 0x00},
      {0x0f, 0x1f, 0x80, 0x00, 0x00, 0x00, 0x00},
      {0x0f, 0x1f, 0x84, 0x00, 0x00, 0x00, 0x00, 0x00},
      {0x66, 0x0f, 0x1f, 0x84, 0x00, 0x00, 0x00, 0x00, 0x00},
  };
  while (count > 0) {
    const size_t n = count < 9 ? count : 9;
    code.insert(code.end(), kNops[n - 1], kNops[n - 1] + n);
    count -= n;
  }
}

void append_push_imm64(Code& code, uint64_t value) {
  code.push_back(0x68);
  append_u32(code, static_cast<uint32_t>(value));
  if (static_cast<uint64_t>(static_cast<int64_t>(static_cast<int32_t>(value))) == value) return;
  code.insert(code.end(), {0xc7, 0x44, 0x24, 0x04});
  append_u32(code, static_cast<uint32_t>(value >> 32));
}

size_t padding_bytes(std::span<const uint8_t> bytes) {
  size_t at = 0;
  while (at < bytes.size()) {
    if (bytes[at] == 0xcc || bytes[at] == 0x90) {
      ++at;
      continue;
    }
    const auto insn = decode_shape(bytes.subspan(at));
    if (!insn || insn->kind != Kind::kNop) break;
    at += insn->length;
  }
  return at;
}

}  // namespace spile::x86
