// The language proper: what stands in bodies, predicates, macros and config blocks.
#include <algorithm>
#include <array>

#include "lang/syntax/lexer.h"
#include "lang/syntax/lexer_state.h"

namespace spile::lang {

using namespace lexer;

namespace {

struct Punctuator {
  std::string_view text;
  TokenKind kind;
};
/// Longest first among those that start alike.
constexpr auto kPunctuators = std::to_array<Punctuator>({
    {"<<=", TokenKind::kShlAssign},
    {">>=", TokenKind::kShrAssign},
    {"..", TokenKind::kDotDot},
    {"->", TokenKind::kArrow},
    {"+=", TokenKind::kPlusAssign},
    {"-=", TokenKind::kMinusAssign},
    {"*=", TokenKind::kStarAssign},
    {"/=", TokenKind::kSlashAssign},
    {"%=", TokenKind::kPercentAssign},
    {"&=", TokenKind::kAmpAssign},
    {"|=", TokenKind::kPipeAssign},
    {"^=", TokenKind::kCaretAssign},
    {"<<", TokenKind::kShl},
    {">>", TokenKind::kShr},
    {"==", TokenKind::kEq},
    {"!=", TokenKind::kNe},
    {"<=", TokenKind::kLe},
    {">=", TokenKind::kGe},
    {"&&", TokenKind::kLogAnd},
    {"||", TokenKind::kLogOr},
    {"++", TokenKind::kPlusPlus},
    {"--", TokenKind::kMinusMinus},
    {"{", TokenKind::kLeftBrace},
    {"}", TokenKind::kRightBrace},
    {"(", TokenKind::kLeftParen},
    {")", TokenKind::kRightParen},
    {"[", TokenKind::kLeftBracket},
    {"]", TokenKind::kRightBracket},
    {";", TokenKind::kSemicolon},
    {",", TokenKind::kComma},
    {":", TokenKind::kColon},
    {"?", TokenKind::kQuestion},
    {".", TokenKind::kDot},
    {"=", TokenKind::kAssign},
    {"+", TokenKind::kPlus},
    {"-", TokenKind::kMinus},
    {"*", TokenKind::kStar},
    {"/", TokenKind::kSlash},
    {"%", TokenKind::kPercent},
    {"&", TokenKind::kAmp},
    {"|", TokenKind::kPipe},
    {"^", TokenKind::kCaret},
    {"~", TokenKind::kTilde},
    {"!", TokenKind::kNot},
    {"<", TokenKind::kLt},
    {">", TokenKind::kGt},
});

/// True after a token that ends an operand: what follows is an operator, and a '{' is no block
/// expression.
bool ends_operand(TokenKind kind) {
  switch (kind) {
    case TokenKind::kInteger:
    case TokenKind::kString:
    case TokenKind::kIdentifier:
    case TokenKind::kVariable:
    case TokenKind::kPositional:
    case TokenKind::kPositionalCount:
    case TokenKind::kMap:
    case TokenKind::kRightParen:
    case TokenKind::kRightBracket:
    case TokenKind::kPlusPlus:
    case TokenKind::kMinusMinus: return true;
    default: return false;
  }
}

}  // namespace

void Lexer::lex_language() {
  const char c = peek();
  const uint32_t begin = at_;
  if (is_name_start(c)) {
    at_ = name_end(at_);
    const Token& token = emit(TokenKind::kIdentifier, begin);
    predicate_has_if_ |= token.text == "if";
  } else if (is_digit(c)) {
    lex_number();
  } else if (c == '"') {
    lex_string();
  } else if (c == '$') {
    lex_dollar();
  } else if (c == '@') {
    lex_map();
  } else {
    lex_punctuator();
  }
}

void Lexer::lex_number() {
  const uint32_t begin = at_;
  at_ = name_end(at_);
  const std::string_view text = text_.substr(begin, at_ - begin);
  const auto number = read_number(text);
  if (number) {
    Token& token = emit(TokenKind::kInteger, begin);
    token.value = number->value;
    token.is_duration = number->is_duration;
    token.is_unsigned = number->is_unsigned;
    return;
  }
  const Span span{begin, at_};
  switch (number.error()) {
    case NumberFault::kTooLarge:
      diagnostics_.error(span, "the number {} does not fit into 64 bits", text);
      break;
    case NumberFault::kOctalDigit:
      diagnostics_.error(span, "{} starts with 0, so it is octal, and has a digit above 7", text);
      break;
    case NumberFault::kSuffix:
    case NumberFault::kSyntax:
      diagnostics_.error(span, "'{}' is not a number", text)
          .with_hint("suffixes are u, l, ul, ll, ull and the durations ns, us, ms, s, m, h, d");
      break;
  }
  emit(TokenKind::kInteger, begin);  // a value of 0 lets the parser go on
}

void Lexer::lex_string() {
  const uint32_t begin = at_++;
  std::string value;
  while (true) {
    if (at_end() || peek() == '\n') {
      diagnostics_.error({begin, at_}, "this string is never closed")
          .with_hint("write \\n for a newline in a string");
      break;
    }
    const char c = text_[at_++];
    if (c == '"') break;
    if (c != '\\') {
      value += c;
    } else if (!read_escape(value)) {
      diagnostics_
          .error({at_ - 2, std::min(at_, static_cast<uint32_t>(text_.size()))},
                 "unknown escape in a string")
          .with_hint(
              "known are \\n \\t \\r \\\" \\\\ \\a \\b \\f \\v, octal \\NNN and hexadecimal \\xNN");
    }
  }
  emit(TokenKind::kString, begin).text = std::move(value);
}

/// After a backslash. Moves past the escape, also past an unknown one.
bool Lexer::read_escape(std::string& out) {
  constexpr std::string_view kNames = "ntr\"\\abfv", kValues = "\n\t\r\"\\\a\b\f\v";
  const char c = peek();
  if (at_end() || c == '\n') return true;  // reported as an unclosed string
  at_++;
  if (const size_t i = kNames.find(c); i != std::string_view::npos) {
    out += kValues[i];
    return true;
  }
  const auto take = [&](unsigned base, int most, unsigned value) {
    for (int i = 0; i < most; i++) {
      const char d = peek();
      const unsigned digit = is_digit(d)            ? static_cast<unsigned>(d - '0')
                             : d >= 'a' && d <= 'f' ? static_cast<unsigned>(d - 'a' + 10)
                             : d >= 'A' && d <= 'F' ? static_cast<unsigned>(d - 'A' + 10)
                                                    : 99u;
      if (digit >= base) break;
      value = value * base + digit;
      at_++;
    }
    out += static_cast<char>(value);
  };
  if (c >= '0' && c <= '7') {
    take(8, c <= '3' ? 2 : 1, static_cast<unsigned>(c - '0'));
    return true;
  }
  const uint32_t before = at_;
  if (c == 'x') take(16, 2, 0);
  return at_ != before;
}

void Lexer::lex_dollar() {
  const uint32_t begin = at_++;
  if (peek() == '#') {
    at_++;
    emit(TokenKind::kPositionalCount, begin);
    return;
  }
  const bool is_number = is_digit(peek());
  while (is_number ? is_digit(peek()) : is_name(peek())) at_++;
  const std::string_view name = text_.substr(begin + 1, at_ - begin - 1);
  if (name.empty()) {
    diagnostics_.error({begin, at_}, "a name, a number or # must follow '$'");
    emit(TokenKind::kError, begin);
    return;
  }
  if (!is_number) {
    emit(TokenKind::kVariable, begin);
    return;
  }
  constexpr size_t kMostDigits = 6;
  uint64_t index = 0;
  for (const char c : name.substr(0, kMostDigits))
    index = index * 10 + static_cast<uint64_t>(c - '0');
  if (index == 0 || name.size() > kMostDigits)
    diagnostics_.error({begin, at_}, "positional parameters are $1 to $999999");
  emit(TokenKind::kPositional, begin).value = index;
}

void Lexer::lex_map() {
  const uint32_t begin = at_++;
  if (is_name_start(peek())) at_ = name_end(at_);
  emit(TokenKind::kMap, begin);
}

void Lexer::lex_punctuator() {
  for (const Punctuator& p : kPunctuators) {
    if (!looking_at(p.text)) continue;
    const uint32_t begin = at_;
    TokenKind kind = p.kind;
    if (world_ == World::kPredicate && kind == TokenKind::kSlash && closes_predicate())
      kind = TokenKind::kPredicateEnd;
    const TokenKind before = tokens_.empty() ? TokenKind::kEnd : tokens_.back().kind;
    // A predicate that was never closed ends at the body; the parser says so.
    if (world_ == World::kPredicate && kind == TokenKind::kLeftBrace && depth_ == 0 &&
        ends_operand(before) && !predicate_has_if_)
      world_ = World::kAttach;
    at_ += static_cast<uint32_t>(p.text.size());
    emit(kind, begin);
    return follow(kind);
  }
  lex_garbage();
}

/// What a punctuator does to the world.
void Lexer::follow(TokenKind kind) {
  switch (kind) {
    case TokenKind::kPredicateEnd: world_ = World::kAttach; break;
    case TokenKind::kLeftBrace: open_brace(); break;
    case TokenKind::kRightBrace: close_brace(); break;
    case TokenKind::kSemicolon:
      if (depth_ == 0) world_ = World::kTop;
      break;
    default: break;
  }
}

void Lexer::open_brace() {
  depth_++;
  if (world_ == World::kAttach) world_ = World::kBody;
}

void Lexer::close_brace() {
  if (depth_ > 0) depth_--;
  if (depth_ == 0 && world_ != World::kPredicate) world_ = World::kTop;
}

bool Lexer::closes_predicate() const {
  if (depth_ != 0) return false;
  const uint32_t next = skip_blanks_from(at_ + 1);
  return next < text_.size() && text_[next] == '{';
}

/// A run of bytes that start nothing: one report for all of them.
void Lexer::lex_garbage() {
  const uint32_t begin = at_;
  const auto is_known = [](char c) {
    return is_space(c) || is_name(c) ||
           std::string_view("\"$@{}()[];,:?.=+-*/%&|^~!<>").find(c) != std::string_view::npos;
  };
  while (!at_end() && !is_known(peek())) at_++;
  const auto first = static_cast<unsigned char>(text_[begin]);
  if (first == '\'') {
    diagnostics_.error({begin, at_}, "unexpected character '")
        .with_hint("strings are written with \"double quotes\"");
  } else if (first > 0x20 && first < 0x7f) {
    diagnostics_.error({begin, at_}, "unexpected character '{}'", text_[begin]);
  } else {
    diagnostics_.error({begin, at_}, "unexpected byte 0x{:02x}", first);
  }
  emit(TokenKind::kError, begin);
}

}  // namespace spile::lang
