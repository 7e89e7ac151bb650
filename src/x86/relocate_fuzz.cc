// Any bytes, anywhere: relocation refuses or gives code whose every instruction decodes and whose
// points are in order.
#include <cstdint>
#include <cstring>

#include "x86/format.h"
#include "x86/relocate.h"

using namespace spile;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size < 16) return 0;
  uint64_t from, to;
  std::memcpy(&from, data, 8);
  std::memcpy(&to, data + 8, 8);
  if (to & 1) to = from + static_cast<int32_t>(to);  // in reach, mostly
  const std::span bytes(data + 16, size - 16);
  auto code = x86::relocate(bytes, TargetAddr(from), TargetAddr(to));
  (void)x86::format_code(bytes.first(std::min<size_t>(bytes.size(), 64)), TargetAddr(from));
  if (!code) return 0;
  (void)x86::append_jump_back(*code);
  for (size_t at = 0; at < code->bytes.size();) {
    const auto insn = x86::decode_shape(std::span(code->bytes).subspan(at));
    SPILE_CHECK(insn.has_value());
    SPILE_CHECK(code->to_original(TargetAddr(to + at)).has_value() || code->bytes[at] == 0xe9 ||
                code->bytes[at] == 0xff);
    at += insn->length;
  }
  for (const x86::MovedInsn& insn : code->insns) {
    SPILE_CHECK(code->to_relocated(TargetAddr(from + insn.old_offset)).has_value());
  }
  return 0;
}
