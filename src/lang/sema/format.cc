#include "lang/sema/format.h"

#include <fmt/format.h>

namespace spile::lang {

namespace {

constexpr uint32_t kMaxWidth = 4096;  // wider fields are a mistake, and would fill the terminal

bool is_digit(char c) {
  return c >= '0' && c <= '9';
}

/// Reads one conversion after its '%'.
class Reader {
 public:
  Reader(std::string_view format, uint32_t begin, FormatScan& scan)
      : format_(format), begin_(begin), at_(begin + 1), scan_(scan) {}

  uint32_t read() {
    while (is_any_of(peek(), "-+ #0")) ++at_;
    if (!read_number("width")) return at_;
    if (peek() == '.') {
      ++at_;
      if (!read_number("precision")) return at_;
    }
    while (is_any_of(peek(), "hlLjzt")) ++at_;
    read_letter();
    return at_;
  }

 private:
  char peek() const { return at_ < format_.size() ? format_[at_] : '\0'; }
  static bool is_any_of(char c, std::string_view set) {
    return c != '\0' && set.find(c) != set.npos;
  }
  std::string_view text() const { return format_.substr(begin_, at_ - begin_); }
  void fail(std::string fault) {
    if (scan_.fault.empty()) scan_.fault = std::move(fault);
  }

  bool read_number(std::string_view what) {
    if (peek() == '*') {
      ++at_;
      fail(fmt::format("'{}': a {} from an argument is not built yet", text(), what));
      return false;
    }
    uint32_t value = 0;
    while (is_digit(peek())) {
      value = value * 10 + static_cast<uint32_t>(format_[at_++] - '0');
      if (value > kMaxWidth) {
        fail(fmt::format("'{}': the {} is larger than {}", text(), what, kMaxWidth));
        return false;
      }
    }
    return true;
  }

  void read_letter() {
    char letter = peek();
    if (letter == '\0')
      return fail(fmt::format("'{}' at the end of the format: the conversion is missing", text()));
    ++at_;
    if (letter == '%') return;
    if (letter == 'g') {
      fail("'%gr' (GFP flags) is not built yet");
      return;
    }
    if (!is_any_of(letter, "diuoxXcpsr")) {
      return fail(fmt::format("'{}': unknown conversion '{}'", text(), letter));
    }
    if (letter == 'r' && (peek() == 'x' || peek() == 'h')) ++at_;
    scan_.conversions.push_back({begin_, at_, letter});
  }

  std::string_view format_;
  uint32_t begin_, at_;
  FormatScan& scan_;
};

}  // namespace

FormatScan scan_format(std::string_view format) {
  FormatScan scan;
  for (uint32_t at = 0; at < format.size();) {
    if (format[at] != '%') {
      ++at;
      continue;
    }
    at = Reader(format, at, scan).read();
    if (!scan.fault.empty()) break;
  }
  return scan;
}

bool accepts(char letter, const Type& type) {
  if (type.is_unknown()) return true;
  switch (letter) {
    case 's':
      return type.is_string() || type.kind == Type::Kind::kProbe ||
             type.kind == Type::Kind::kFunc || type.is_stack() || type.is_symbol() ||
             type.kind == Type::Kind::kInet || type.kind == Type::Kind::kMac ||
             type.kind == Type::Kind::kTimestamp || type.kind == Type::Kind::kNamed ||
             type.is_enum() || type.is_bool;
    case 'r': return type.kind == Type::Kind::kBuffer;
    default: return type.is_number();
  }
}

std::string_view wanted_by(char letter) {
  switch (letter) {
    case 's': return "a string";
    case 'r': return "a buffer";
    default: return "a number";
  }
}

}  // namespace spile::lang
