#include "elf/usdt_argument.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <optional>

namespace spile::elf {
namespace {

using Place = UsdtArgument::Place;
constexpr uint8_t kNone = UsdtArgument::kNoRegister;
constexpr size_t kMaxTextBytes = 4096;

struct Register {
  uint8_t number = kNone;
  uint8_t size = 8;
  bool is_high_byte = false;
};

constexpr std::array<std::string_view, 8> kClassic = {"ax", "cx", "dx", "bx",
                                                      "sp", "bp", "si", "di"};

/// rax, eax, ax: the classic eight in 8, 4 and 2 bytes; al to bl, spl to dil, ah to bh.
std::optional<Register> classic_register(std::string_view name) {
  for (uint8_t i = 0; i < kClassic.size(); ++i) {
    const std::string_view word = kClassic[i];
    if (name == word) return Register{i, 2};
    if (name.size() == 3 && name.substr(1) == word && name[0] == 'r') return Register{i, 8};
    if (name.size() == 3 && name.substr(1) == word && name[0] == 'e') return Register{i, 4};
    if (i < 4 && name.size() == 2 && name[0] == word[0] && name[1] == 'l') return Register{i, 1};
    if (i < 4 && name.size() == 2 && name[0] == word[0] && name[1] == 'h')
      return Register{i, 1, true};
    if (i >= 4 && name.size() == 3 && name.substr(0, 2) == word && name[2] == 'l')
      return Register{i, 1};
  }
  return std::nullopt;
}

/// r8 to r15, and their parts r8d, r8w, r8b.
std::optional<Register> numbered_register(std::string_view name) {
  if (name.size() < 2 || name[0] != 'r') return std::nullopt;
  unsigned number = 0;
  const char* end = name.data() + name.size();
  auto [rest, bad] = std::from_chars(name.data() + 1, end, number);
  if (bad != std::errc() || number < 8 || number > 15 || end - rest > 1) return std::nullopt;
  uint8_t size = 8;
  if (rest != end) {
    if (*rest != 'd' && *rest != 'w' && *rest != 'b') return std::nullopt;
    size = *rest == 'd' ? 4 : *rest == 'w' ? 2 : 1;
  }
  return Register{static_cast<uint8_t>(number), size};
}

std::optional<Register> find_register(std::string_view name) {
  if (auto found = classic_register(name)) return found;
  return numbered_register(name);
}

bool is_vector_register(std::string_view name) {
  return name.starts_with("xmm") || name.starts_with("ymm") || name.starts_with("zmm") ||
         name.starts_with("st");
}

/// Decimal or 0x; a sign has been taken off.
std::optional<uint64_t> read_unsigned(std::string_view text) {
  const int base = text.starts_with("0x") || text.starts_with("0X") ? 16 : 10;
  if (base == 16) text.remove_prefix(2);
  uint64_t value = 0;
  auto [rest, bad] = std::from_chars(text.data(), text.data() + text.size(), value, base);
  if (bad != std::errc() || rest != text.data() + text.size()) return std::nullopt;
  return value;
}

bool is_symbol_text(std::string_view text) {
  const auto is_letter = [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' ||
           c == '.' || c == '$';
  };
  return !text.empty() && !(text[0] >= '0' && text[0] <= '9') &&
         std::ranges::all_of(text, is_letter);
}

class ArgumentReader {
 public:
  explicit ArgumentReader(std::string_view text) : text_(text) {}

  Result<UsdtArgument> read() {
    if (text_.size() > kMaxTextBytes) return refuse("too long");
    const size_t at = text_.find('@');
    if (at == std::string_view::npos) return refuse("its size is not given");
    SPILE_TRY_VOID(read_size(text_.substr(0, at)));
    SPILE_TRY_VOID(read_operand(text_.substr(at + 1)));
    return argument_;
  }

 private:
  std::unexpected<Error> refuse(std::string_view why) const {
    return fail(ErrorCode::kUnsupported, "'{}': {}", text_.substr(0, 80), why);
  }

  Result<void> read_size(std::string_view text) {
    argument_.is_signed = text.starts_with('-');
    if (argument_.is_signed) text.remove_prefix(1);
    if (text.ends_with('f')) return refuse("a floating-point number, which is not built yet");
    const auto size = read_unsigned(text);
    if (!size || (*size != 1 && *size != 2 && *size != 4 && *size != 8))
      return refuse("only numbers of 1, 2, 4 and 8 bytes can be read");
    argument_.size = static_cast<uint8_t>(*size);
    return {};
  }

  Result<void> read_operand(std::string_view text) {
    if (text.starts_with('$')) return read_constant(text.substr(1));
    if (text.starts_with('%') && text.find(':') != std::string_view::npos)
      return refuse("relative to a segment register, which is not built yet");
    if (text.starts_with('%')) return read_register(text.substr(1));
    return read_memory(text);
  }

  Result<void> read_constant(std::string_view text) {
    SPILE_TRY_VOID(read_terms(text));
    if (!argument_.symbol.empty()) return refuse("the address of a symbol, which is not built yet");
    argument_.place = Place::kConstant;
    return {};
  }

  Result<void> read_register(std::string_view name) {
    if (is_vector_register(name)) return refuse("in a vector register, which is not built yet");
    const auto found = find_register(name);
    if (!found) return refuse("not a register that is known here");
    if (found->size < argument_.size) return refuse("the register is smaller than the argument");
    argument_.place = Place::kRegister;
    argument_.base = found->number;
    argument_.is_high_byte = found->is_high_byte;
    return {};
  }

  /// terms(base,index,scale), each part of which may be missing.
  Result<void> read_memory(std::string_view text) {
    argument_.place = Place::kMemory;
    const size_t open = text.find('(');
    SPILE_TRY_VOID(read_terms(text.substr(0, open)));
    if (open == std::string_view::npos)
      return argument_.symbol.empty() ? Result<void>(refuse("an absolute address"))
                                      : Result<void>();
    if (!text.ends_with(')')) return refuse("not the operand of an x86-64 assembler");
    return read_registers(text.substr(open + 1, text.size() - open - 2));
  }

  Result<void> read_registers(std::string_view inside) {
    const size_t comma = inside.find(',');
    const std::string_view base = inside.substr(0, comma);
    if (base == "%rip") {
      if (comma != std::string_view::npos || argument_.symbol.empty())
        return refuse("relative to rip without the name of a symbol");
      return {};
    }
    if (!base.empty()) {
      SPILE_TRY(argument_.base, address_register(base));
    }
    if (comma == std::string_view::npos) {
      if (argument_.base == kNone) return refuse("an address without a register");
      return {};
    }
    const std::string_view rest = inside.substr(comma + 1);
    const size_t second = rest.find(',');
    SPILE_TRY(argument_.index, address_register(rest.substr(0, second)));
    if (argument_.index == 4) return refuse("rsp cannot be an index");
    if (second == std::string_view::npos) return {};
    const auto scale = read_unsigned(rest.substr(second + 1));
    if (!scale || (*scale != 1 && *scale != 2 && *scale != 4 && *scale != 8))
      return refuse("a scale is 1, 2, 4 or 8");
    argument_.scale = static_cast<uint8_t>(*scale);
    return {};
  }

  Result<uint8_t> address_register(std::string_view text) const {
    const auto found = text.starts_with('%') ? find_register(text.substr(1)) : std::nullopt;
    if (!found || found->size != 8) return refuse("an address needs registers of 64 bits");
    return found->number;
  }

  /// Numbers and at most one symbol, joined by + and -: "-8", "2+g", "g+2", "g-4".
  Result<void> read_terms(std::string_view text) {
    uint64_t sum = 0;
    while (!text.empty()) {
      const bool is_negative = text[0] == '-';
      if (text[0] == '-' || text[0] == '+') text.remove_prefix(1);
      const std::string_view term = text.substr(0, text.find_first_of("+-"));
      text.remove_prefix(term.size());
      if (const auto number = read_unsigned(term)) {
        sum = is_negative ? sum - *number : sum + *number;
      } else if (is_symbol_text(term) && !is_negative && argument_.symbol.empty()) {
        argument_.symbol = term;
      } else {
        return refuse("not the operand of an x86-64 assembler");
      }
    }
    argument_.number = static_cast<int64_t>(sum);
    return {};
  }

  std::string_view text_;
  UsdtArgument argument_;
};

}  // namespace

std::vector<std::string_view> split_usdt_arguments(std::string_view arguments) {
  std::vector<std::string_view> parts;
  while (true) {
    const size_t begin = arguments.find_first_not_of(' ');
    if (begin == std::string_view::npos) return parts;
    arguments.remove_prefix(begin);
    parts.push_back(arguments.substr(0, arguments.find(' ')));
    arguments.remove_prefix(parts.back().size());
  }
}

Result<UsdtArgument> parse_usdt_argument(std::string_view text) {
  return ArgumentReader(text).read();
}

}  // namespace spile::elf
