#include <algorithm>
#include <array>

#include "user_engine/patch/window.h"

namespace spile::patch {
namespace {

constexpr int kAny = -1;

/// Go's stack checks; kAny stands for the frame's size.
///   49 3b 66 10           cmp 0x10(%r14),%rsp           small frame
///   4c 8d 64 24 xx        lea -x(%rsp),%r12             larger: then 4d 3b 66 10, cmp
///   0x10(%r14),%r12 4c 8d a4 24 xxxxxxxx 64 48 8b 0c 25 f8 ff ff ff     mov %fs:-8,%rcx before
///   Go 1.17
constexpr std::array<int, 4> kSmall = {0x49, 0x3b, 0x66, 0x10};
constexpr std::array<int, 9> kLea8 = {0x4c, 0x8d, 0x64, 0x24, kAny, 0x4d, 0x3b, 0x66, 0x10};
constexpr std::array<int, 12> kLea32 = {0x4c, 0x8d, 0xa4, 0x24, kAny, kAny,
                                        kAny, kAny, 0x4d, 0x3b, 0x66, 0x10};
/// The compare follows with rsp, or behind a lea with rax: 48 3b 61 10, 48 8d 44 24 xx 48 3b 41 10.
constexpr std::array<int, 9> kThreadLocal = {0x64, 0x48, 0x8b, 0x0c, 0x25, 0xf8, 0xff, 0xff, 0xff};

bool matches(std::span<const uint8_t> bytes, std::span<const int> pattern) {
  if (bytes.size() < pattern.size()) return false;
  return std::equal(pattern.begin(), pattern.end(), bytes.begin(),
                    [](int want, uint8_t have) { return want == kAny || want == have; });
}

}  // namespace

size_t go_stack_check_bytes(std::span<const uint8_t> bytes) {
  if (matches(bytes, kSmall)) return kSmall.size();
  if (matches(bytes, kLea8)) return kLea8.size();
  if (matches(bytes, kLea32)) return kLea32.size();
  return matches(bytes, kThreadLocal) ? kThreadLocal.size() : 0;
}

bool is_go_function(std::string_view name) {
  constexpr std::array<std::string_view, 5> kPartsOfC = {".cold", ".part.", ".isra.", ".constprop.",
                                                         ".lto_priv."};
  if (name.find('.') == std::string_view::npos) return false;
  return std::ranges::none_of(
      kPartsOfC, [&](std::string_view part) { return name.find(part) != std::string_view::npos; });
}

bool is_go_stack_checked(std::span<const uint8_t> bytes) {
  return go_stack_check_bytes(bytes) != 0;
}

}  // namespace spile::patch
