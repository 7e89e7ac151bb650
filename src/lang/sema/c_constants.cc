// The words of C declarations, and constant expressions: sizes of arrays, values of enums, #if.
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <charconv>

#include "lang/sema/c_reader.h"

namespace spile::lang {

namespace {

bool is_name_start(char c) {
  return std::isalpha(static_cast<unsigned char>(c)) != 0 || c == '_';
}
bool is_name_char(char c) {
  return std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '_';
}

/// Bytes of blanks and comments at the start.
size_t blank_bytes(std::string_view text) {
  size_t at = 0;
  while (at < text.size()) {
    if (std::isspace(static_cast<unsigned char>(text[at])) != 0 || text[at] == '\\') {
      at++;
    } else if (text.substr(at).starts_with("//")) {
      at = std::min(text.find('\n', at), text.size());
    } else if (text.substr(at).starts_with("/*")) {
      const size_t end = text.find("*/", at + 2);
      at = end == std::string_view::npos ? text.size() : end + 2;
    } else {
      break;
    }
  }
  return at;
}

CToken number_token(std::string_view text) {
  CToken token{CToken::Kind::kNumber, std::string(text), 0};
  const bool is_hex = text.starts_with("0x") || text.starts_with("0X");
  const bool is_octal = !is_hex && text.size() > 1 && text[0] == '0';
  if (is_hex) text.remove_prefix(2);
  uint64_t value = 0;
  std::from_chars(text.data(), text.data() + text.size(), value, is_hex ? 16 : is_octal ? 8 : 10);
  token.number = static_cast<int64_t>(value);
  return token;
}

CToken other_token(std::string_view text) {
  constexpr auto kPairs =
      std::to_array<std::string_view>({"<<", ">>", "<=", ">=", "==", "!=", "&&", "||"});
  for (const std::string_view pair : kPairs)
    if (text.starts_with(pair)) return {CToken::Kind::kOther, std::string(pair), 0};
  return {CToken::Kind::kOther, std::string(text.substr(0, 1)), 0};
}

struct Operator {
  std::string_view text;
  int precedence;
};
constexpr Operator kOperators[] = {{"||", 1}, {"&&", 2}, {"|", 3}, {"^", 4},  {"&", 5},  {"==", 6},
                                   {"!=", 6}, {"<", 7},  {">", 7}, {"<=", 7}, {">=", 7}, {"<<", 8},
                                   {">>", 8}, {"+", 9},  {"-", 9}, {"*", 10}, {"/", 10}, {"%", 10}};

/// Wraps around instead of overflowing; x / 0 is 0.
int64_t calculate(std::string_view op, int64_t l, int64_t r) {
  const auto a = static_cast<uint64_t>(l), b = static_cast<uint64_t>(r);
  const bool can_divide = r != 0 && !(r == -1 && l == INT64_MIN);
  if (op == "||") return l != 0 || r != 0;
  if (op == "&&") return l != 0 && r != 0;
  if (op == "|") return l | r;
  if (op == "^") return l ^ r;
  if (op == "&") return l & r;
  if (op == "==") return l == r;
  if (op == "!=") return l != r;
  if (op == "<") return l < r;
  if (op == ">") return l > r;
  if (op == "<=") return l <= r;
  if (op == ">=") return l >= r;
  if (op == "<<") return static_cast<int64_t>(a << (b & 63));
  if (op == ">>") return l >> (b & 63);
  if (op == "+") return static_cast<int64_t>(a + b);
  if (op == "-") return static_cast<int64_t>(a - b);
  if (op == "*") return static_cast<int64_t>(a * b);
  if (op == "/") return can_divide ? l / r : 0;
  return can_divide ? l % r : 0;
}

}  // namespace

std::vector<CToken> c_tokens(std::string_view text) {
  std::vector<CToken> tokens;
  for (text.remove_prefix(blank_bytes(text)); !text.empty();
       text.remove_prefix(blank_bytes(text))) {
    CToken token;
    if (is_name_start(text[0])) {
      size_t n = 1;
      while (n < text.size() && is_name_char(text[n])) n++;
      token = {CToken::Kind::kName, std::string(text.substr(0, n)), 0};
    } else if (std::isdigit(static_cast<unsigned char>(text[0])) != 0) {
      size_t n = 1;
      while (n < text.size() && is_name_char(text[n])) n++;
      token = number_token(text.substr(0, n));
    } else {
      token = other_token(text);
    }
    text.remove_prefix(token.text.size());
    tokens.push_back(std::move(token));
  }
  tokens.emplace_back();
  return tokens;
}

std::optional<int64_t> CReader::condition() {
  const auto value = constant();
  if (value && peek().kind != CToken::Kind::kEnd) {
    fail(fmt::format("'{}' behind the condition", peek().text));
    return std::nullopt;
  }
  return value;
}

std::optional<int64_t> CReader::constant(int lowest) {
  auto left = operand();
  while (left) {
    const auto* found =
        std::ranges::find(kOperators, std::string_view(peek().text), &Operator::text);
    if (found == std::end(kOperators) || found->precedence <= lowest) return left;
    take();
    const auto right = constant(found->precedence);
    if (!right) return std::nullopt;
    left = calculate(found->text, *left, *right);
  }
  return left;
}

std::optional<int64_t> CReader::operand() {
  if (++nesting_ > kMaxDepth) fail("a constant is nested too deeply");
  struct Leave {
    int& nesting;
    ~Leave() { nesting--; }
  } leave{nesting_};
  if (!fault_.empty()) return std::nullopt;
  if (peek().kind == CToken::Kind::kNumber) return take().number;
  for (const char sign : {'-', '+', '!', '~'}) {
    if (!accept(std::string_view(&sign, 1))) continue;
    const auto value = operand();
    if (!value) return std::nullopt;
    return sign == '-'   ? calculate("-", 0, *value)
           : sign == '!' ? *value == 0
           : sign == '~' ? ~*value
                         : *value;
  }
  if (accept("(")) {
    const auto value = constant();
    return value && expect(")") ? value : std::nullopt;
  }
  if (at("defined")) {
    take();
    const bool has_parenthesis = accept("(");
    const std::string name = take().text;
    if (has_parenthesis && !expect(")")) return std::nullopt;
    return types_.is_defined(name);
  }
  if (at_name()) {
    const std::string name = take().text;
    if (const std::string* text = types_.text(name)) {
      CReader inner(*text, types_);
      inner.nesting_ = nesting_;
      const auto value = inner.condition();
      if (!value) fail(fmt::format("{}: {}", name, inner.fault()));
      return value;
    }
    if (const auto value = types_.constant(name)) return value;
    fail(fmt::format("'{}' is no constant that is known here", name));
    return std::nullopt;
  }
  fail(fmt::format("expected a constant, found {}",
                   peek().text.empty() ? "the end" : fmt::format("'{}'", peek().text)));
  return std::nullopt;
}

}  // namespace spile::lang
