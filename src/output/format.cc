#include "output/format.h"

#include <algorithm>
#include <array>
#include <cstdio>
#include <ctime>

#include "output/value.h"

namespace spile::output {
namespace {

/// A wider field would only fill the screen; the front end refuses it.
constexpr int kMostWidth = 4096;

/// One `%...` of a format.
struct Conversion {
  std::string flags;  ///< of "-+ #0"
  int width = 0;
  int precision = -1;  ///< -1: none
  std::string length;  ///< "", "h", "hh", "l", ...
  char letter = 0;
  char buffer = 0;  ///< after r: 'x', 'h' or 0
};

class FormatReader {
 public:
  explicit FormatReader(std::string_view format) : rest_(format) {}

  bool at_end() const { return rest_.empty(); }
  /// The text up to the next '%'.
  std::string_view literal() {
    const std::string_view out = rest_.substr(0, rest_.find('%'));
    rest_.remove_prefix(out.size());
    return out;
  }
  Conversion conversion();

 private:
  char peek() const { return rest_.empty() ? '\0' : rest_[0]; }
  char take() {
    const char c = peek();
    if (!rest_.empty()) rest_.remove_prefix(1);
    return c;
  }
  bool is_any_of(std::string_view set) const {
    return !rest_.empty() && set.find(peek()) != std::string_view::npos;
  }
  int number();

  std::string_view rest_;
};

int FormatReader::number() {
  int value = 0;
  while (is_any_of("0123456789")) value = std::min(value * 10 + (take() - '0'), kMostWidth);
  return value;
}

Conversion FormatReader::conversion() {
  Conversion out;
  take();  // %
  while (is_any_of("-+ #0")) {
    const char flag = take();
    if (out.flags.find(flag) == std::string::npos) out.flags += flag;
  }
  out.width = number();
  if (peek() == '.') {
    take();
    out.precision = number();
  }
  while (is_any_of("hlLjzt")) out.length += take();
  out.letter = take();
  if (out.letter == 'r' && is_any_of("xh")) out.buffer = take();
  return out;
}

/// C's own conversion of one argument; `letters` are the length and the conversion.
template <typename T>
std::string by_c(const Conversion& conversion, std::string_view letters, T argument) {
  std::string format = "%" + conversion.flags;
  if (conversion.width != 0) format += fmt::format("{}", conversion.width);
  if (conversion.precision >= 0) format += fmt::format(".{}", conversion.precision);
  format += letters;
  const int length = std::snprintf(nullptr, 0, format.c_str(), argument);
  if (length <= 0) return {};
  std::string out(static_cast<size_t>(length) + 1, '\0');
  std::snprintf(out.data(), out.size(), format.c_str(), argument);
  out.pop_back();
  return out;
}

/// A number cut to the size that its length letters name, as C's va_arg would.
uint64_t cut(uint64_t bits, std::string_view length, bool is_signed) {
  unsigned size = 4;
  if (length == "hh") size = 1;
  if (length == "h") size = 2;
  if (!length.empty() && length[0] != 'h') size = 8;
  const unsigned unused = 64 - 8 * size;
  if (is_signed) return static_cast<uint64_t>(static_cast<int64_t>(bits << unused) >> unused);
  return bits << unused >> unused;
}

std::string pad(const Conversion& conversion, std::string text) {
  const auto width = static_cast<size_t>(conversion.width);
  if (text.size() >= width) return text;
  const std::string blanks(width - text.size(), ' ');
  return conversion.flags.find('-') != std::string::npos ? text + blanks : blanks + text;
}

std::string format_string(const Conversion& conversion, const Value& value) {
  std::string text = value.kind == Value::Kind::kText ? value.text : to_text(value);
  if (conversion.precision >= 0)
    text.resize(std::min(text.size(), static_cast<size_t>(conversion.precision)));
  return pad(conversion, std::move(text));
}

std::string format_buffer(const Conversion& conversion, const Value& value) {
  if (conversion.buffer == 0) return pad(conversion, to_text(value));
  std::string text;
  for (const char c : value.text) {
    if (conversion.buffer == 'h' && !text.empty()) text += ' ';
    text += fmt::format("{}{:02x}", conversion.buffer == 'x' ? "\\x" : "",
                        static_cast<unsigned char>(c));
  }
  return pad(conversion, std::move(text));
}

Result<std::string> format_number(const Conversion& conversion, const Value& value) {
  if (!value.is_number())
    return fail(ErrorCode::kInternal, "%{} is given something else than a number",
                conversion.letter);
  switch (conversion.letter) {
    case 'd':
    case 'i':
      return by_c(conversion, "lld",
                  static_cast<long long>(cut(value.bits, conversion.length, true)));
    case 'u':
    case 'o':
    case 'x':
    case 'X': {
      const std::string letters = std::string("ll") + conversion.letter;
      return by_c(conversion, letters,
                  static_cast<unsigned long long>(cut(value.bits, conversion.length, false)));
    }
    case 'c': return pad(conversion, std::string(1, static_cast<char>(value.bits)));
    default:
      return pad(conversion, value.bits == 0
                                 ? "(nil)"
                                 : fmt::format("{:#x}", value.bits));  // %p as glibc has it
  }
}

Result<std::string> format_value(const Conversion& conversion, const Value& value) {
  switch (conversion.letter) {
    case 's': return format_string(conversion, value);
    case 'r': return format_buffer(conversion, value);
    case 'd':
    case 'i':
    case 'u':
    case 'o':
    case 'x':
    case 'X':
    case 'c':
    case 'p': return format_number(conversion, value);
    default:
      return fail(ErrorCode::kInternal, "a format has the unknown conversion '{}'",
                  conversion.letter);
  }
}

}  // namespace

Result<std::string> format_printf(std::string_view format,
                                  std::span<const bundle::RecordField> fields,
                                  std::span<const uint8_t> record,
                                  const Meaning& meaning) {
  FormatReader reader(format);
  std::string out;
  size_t next = 0;
  while (true) {
    out += reader.literal();
    if (reader.at_end()) return out;
    const Conversion conversion = reader.conversion();
    if (conversion.letter == '%') {
      out += '%';
      continue;
    }
    if (next >= fields.size())
      return fail(ErrorCode::kInternal, "a format takes more than its {} arguments", fields.size());
    SPILE_TRY(const Value value, read_field(fields[next++], record, meaning));
    SPILE_TRY(const std::string text, format_value(conversion, value));
    out += text;
  }
}

std::string format_time(std::string_view format, int64_t seconds) {
  const auto when = static_cast<time_t>(seconds);
  std::tm local{};
  localtime_r(&when, &local);
  // strftime gives 0 both for no room and for nothing to say: a mark at the end tells them apart.
  const std::string marked = std::string(format) + "|";
  for (size_t room = 256; room <= (size_t{1} << 20); room *= 4) {
    std::string out(room, '\0');
    const size_t length = std::strftime(out.data(), out.size(), marked.c_str(), &local);
    if (length != 0) return out.substr(0, length - 1);
  }
  return {};
}

}  // namespace spile::output
