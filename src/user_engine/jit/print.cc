#include "user_engine/jit/print.h"

#include <fmt/format.h>

#include <array>
#include <span>
#include <string_view>

#include "x86/format.h"

namespace spile::jit {

namespace {

constexpr std::array<std::string_view, sizeof(abi::HitFrame) / 8> kSlotNames = {
    "r15", "r14", "r13", "r12", "rbp",     "rbx", "r11", "r10",   "r9", "r8", "rax",
    "rcx", "rdx", "rsi", "rdi", "orig_ax", "ip",  "cs",  "flags", "sp", "ss", "cookie"};

}  // namespace

std::string slot_names(SlotMask mask) {
  std::string names;
  for (size_t i = 0; i < kSlotNames.size(); ++i) {
    if ((mask >> i & 1) != 0) names += fmt::format("{}{}", names.empty() ? "" : " ", kSlotNames[i]);
  }
  return names.empty() ? "nothing" : names;
}

std::string to_text(const Body& body) {
  return fmt::format("; body at {}: {} bytes, stack {}, reads {}, destroys {}{}\n{}", body.base,
                     body.bytes.size(), body.stack_bytes, slot_names(body.reads),
                     slot_names(body.clobbers), body.clobbers_flags ? " flags" : "",
                     x86::format_code(body.bytes, body.base));
}

std::string to_text(const Detour& detour, TargetAddr at) {
  std::span<const uint8_t> bytes = detour.bytes;
  return fmt::format(
      "; detour at {}: {} bytes, stack {}{}\n{}; displaced\n{}", at, bytes.size(),
      detour.stack_bytes, detour.inlined ? ", program inlined" : "",
      x86::format_code(bytes.first(detour.displaced_offset), at),
      x86::format_code(bytes.subspan(detour.displaced_offset), at + detour.displaced_offset));
}

}  // namespace spile::jit
