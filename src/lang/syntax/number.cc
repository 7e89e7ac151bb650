// Numbers as scripts write them.
#include <array>
#include <string>

#include "lang/syntax/lexer.h"

namespace spile::lang {
namespace {

struct Unit {
  std::string_view suffix;
  uint64_t ns;
};
constexpr auto kUnits = std::to_array<Unit>({
    {"ns", 1},
    {"us", 1'000},
    {"ms", 1'000'000},
    {"s", 1'000'000'000},
    {"m", 60'000'000'000},
    {"h", 3'600'000'000'000},
    {"d", 86'400'000'000'000},
});
constexpr auto kIgnoredSuffixes =
    std::to_array<std::string_view>({"u", "l", "ul", "lu", "ll", "ull", "llu"});

bool is_digit(char c) {
  return c >= '0' && c <= '9';
}

int digit_value(char c) {
  if (is_digit(c)) return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return 99;
}

std::string lower(std::string_view text) {
  std::string out(text);
  for (char& c : out) {
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
  }
  return out;
}

/// Reads digits of `base` with `_` between them from the front of `text`.
std::expected<uint64_t, NumberFault> take_digits(std::string_view& text, unsigned base) {
  uint64_t value = 0;
  size_t used = 0;
  bool after_digit = false;
  for (; used < text.size(); used++) {
    const char c = text[used];
    if (c == '_' && after_digit) {
      after_digit = false;
      continue;
    }
    const auto digit = static_cast<unsigned>(digit_value(c));
    if (base == 8 && (digit == 8 || digit == 9)) return std::unexpected(NumberFault::kOctalDigit);
    if (digit >= base) break;
    if (__builtin_mul_overflow(value, base, &value) || __builtin_add_overflow(value, digit, &value))
      return std::unexpected(NumberFault::kTooLarge);
    after_digit = true;
  }
  if (!after_digit) return std::unexpected(NumberFault::kSyntax);
  text.remove_prefix(used);
  return value;
}

std::expected<uint64_t, NumberFault> take_exponent(std::string_view& text, uint64_t value) {
  if (text.size() < 2 || (text[0] != 'e' && text[0] != 'E') || !is_digit(text[1])) return value;
  text.remove_prefix(1);
  auto exponent = take_digits(text, 10);
  if (!exponent) return exponent;
  for (uint64_t i = 0; i < *exponent && value != 0; i++) {
    if (__builtin_mul_overflow(value, uint64_t{10}, &value))
      return std::unexpected(NumberFault::kTooLarge);
  }
  return value;
}

std::expected<Number, NumberFault> apply_suffix(uint64_t value, std::string_view suffix) {
  if (suffix.empty()) return Number{value, false, false};
  for (const Unit& unit : kUnits) {
    if (suffix != unit.suffix) continue;
    if (__builtin_mul_overflow(value, unit.ns, &value))
      return std::unexpected(NumberFault::kTooLarge);
    return Number{value, true, false};
  }
  const std::string lowered = lower(suffix);
  for (const std::string_view ignored : kIgnoredSuffixes) {
    if (lowered == ignored) return Number{value, false, lowered.find('u') != std::string::npos};
  }
  return std::unexpected(NumberFault::kSuffix);
}

}  // namespace

std::expected<Number, NumberFault> read_number(std::string_view text) {
  if (text.empty() || !is_digit(text[0])) return std::unexpected(NumberFault::kSyntax);
  unsigned base = 10;
  if (text.size() > 1 && text[0] == '0') {
    if (text[1] == 'x' || text[1] == 'X') {
      base = 16;
      text.remove_prefix(2);
    } else if (is_digit(text[1]) || text[1] == '_') {
      base = 8;
    }
  }
  auto value = take_digits(text, base);
  if (value && base == 10) value = take_exponent(text, *value);
  if (!value) return std::unexpected(value.error());
  return apply_suffix(*value, text);
}

}  // namespace spile::lang
