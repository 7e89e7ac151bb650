#include "lang/syntax/lexer.h"

#include <algorithm>
#include <array>

#include "lang/syntax/attach_point.h"

namespace spile::lang {
namespace {

bool is_space(char c) {
  return c == ' ' || c == '\t' || c == '\n' || c == '\r' || c == '\v' || c == '\f';
}
bool is_digit(char c) {
  return c >= '0' && c <= '9';
}
bool is_name_start(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_';
}
bool is_name(char c) {
  return is_name_start(c) || is_digit(c);
}

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

class Lexer {
 public:
  Lexer(const Source& source, Span range, Diagnostics& diagnostics)
      : text_(source.text().substr(0, range.end)), at_(range.begin), diagnostics_(diagnostics) {}

  std::vector<Token> whole_script();
  std::vector<Token> expression_only();

 private:
  /// Where the next token is to be looked for.
  enum class World : uint8_t {
    kTop,         ///< between definitions
    kAttach,      ///< in an attach point list
    kPredicate,   ///< between its slashes
    kDefinition,  ///< config, import, let, macro, fn: up to a ';' or the end of its block
    kBody,        ///< between the braces of a clause
  };

  bool at_end() const { return at_ >= text_.size(); }
  char peek(uint32_t ahead = 0) const {
    return at_ + ahead < text_.size() ? text_[at_ + ahead] : '\0';
  }
  bool looking_at(std::string_view word) const { return text_.substr(at_).starts_with(word); }
  uint32_t skip_blanks_from(uint32_t at) const;
  void skip_space_and_comments();
  uint32_t name_end(uint32_t at) const;

  Token& emit(TokenKind kind, uint32_t begin);
  void lex_one();
  void lex_top();
  bool starts_definition(std::string_view word, char next) const;
  void lex_shebang();
  void lex_directive();
  void lex_c_definition(std::string_view word);
  uint32_t c_definition_end() const;
  uint32_t after_attributes(uint32_t at) const;
  uint32_t balanced_end(uint32_t at, char open, char close) const;
  void lex_attach();
  void lex_attach_word();
  uint32_t attach_word_end(bool path_provider) const;
  uint32_t cut_predicate(uint32_t begin, uint32_t end) const;

  void lex_language();
  void lex_number();
  void lex_string();
  bool read_escape(std::string& out);
  void lex_dollar();
  void lex_map();
  void lex_punctuator();
  void follow(TokenKind kind);
  void open_brace();
  void close_brace();
  bool closes_predicate() const;
  void lex_garbage();

  std::string_view text_;
  uint32_t at_;
  Diagnostics& diagnostics_;
  std::vector<Token> tokens_;
  World world_ = World::kTop;
  uint32_t depth_ = 0;             ///< of braces
  bool predicate_has_if_ = false;  ///< then braces in the predicate belong to it
};

// ---- blanks
// -----------------------------------------------------------------------------------------------------------

/// The first byte that is neither blank nor comment. An unclosed comment ends at the end.
uint32_t Lexer::skip_blanks_from(uint32_t at) const {
  while (at < text_.size()) {
    if (is_space(text_[at])) {
      at++;
    } else if (text_.substr(at).starts_with("//")) {
      at = static_cast<uint32_t>(std::min(text_.find('\n', at), text_.size()));
    } else if (text_.substr(at).starts_with("/*")) {
      const size_t close = text_.find("*/", at + 2);
      at = close == std::string_view::npos ? static_cast<uint32_t>(text_.size())
                                           : static_cast<uint32_t>(close + 2);
    } else {
      break;
    }
  }
  return at;
}

void Lexer::skip_space_and_comments() {
  const uint32_t next = skip_blanks_from(at_);
  if (next == text_.size()) {
    for (uint32_t at = at_; at < next;) {  // the last comment may be open
      if (text_.substr(at).starts_with("/*") &&
          text_.find("*/", at + 2) == std::string_view::npos) {
        diagnostics_.error({at, at + 2}, "this comment is never closed")
            .with_hint("end it with */");
        break;
      }
      if (text_.substr(at).starts_with("/*")) {
        at = static_cast<uint32_t>(text_.find("*/", at + 2) + 2);
      } else if (text_.substr(at).starts_with("//")) {
        at = static_cast<uint32_t>(std::min(text_.find('\n', at), text_.size()));
      } else {
        at++;
      }
    }
  }
  at_ = next;
}

uint32_t Lexer::name_end(uint32_t at) const {
  while (at < text_.size() && is_name(text_[at])) at++;
  return at;
}

Token& Lexer::emit(TokenKind kind, uint32_t begin) {
  Token token{
      .kind = kind, .span = {begin, at_}, .text = std::string(text_.substr(begin, at_ - begin))};
  return tokens_.emplace_back(std::move(token));
}

// ---- the top of a script
// ------------------------------------------------------------------------------------------------

std::vector<Token> Lexer::whole_script() {
  if (looking_at("#!")) lex_shebang();
  for (skip_space_and_comments(); !at_end(); skip_space_and_comments()) lex_one();
  emit(TokenKind::kEnd, at_);
  return std::move(tokens_);
}

std::vector<Token> Lexer::expression_only() {
  world_ = World::kDefinition;
  depth_ = 1;  // so that nothing here ends the definition
  for (skip_space_and_comments(); !at_end(); skip_space_and_comments()) lex_language();
  emit(TokenKind::kEnd, at_);
  return std::move(tokens_);
}

void Lexer::lex_one() {
  switch (world_) {
    case World::kTop: return lex_top();
    case World::kAttach: return lex_attach();
    case World::kPredicate:
    case World::kDefinition:
    case World::kBody: return lex_language();
  }
}

void Lexer::lex_top() {
  if (peek() == '#') return lex_directive();
  if (std::string_view(";})]").find(peek()) != std::string_view::npos) return lex_punctuator();
  const uint32_t end = name_end(at_);
  const std::string_view word = text_.substr(at_, end - at_);
  const uint32_t next = skip_blanks_from(end);
  const char next_char = next < text_.size() ? text_[next] : '\0';
  if (next > end && (word == "struct" || word == "union" || word == "enum" || word == "typedef"))
    return lex_c_definition(word);
  if (word == "enum" && next_char == '{') return lex_c_definition(word);
  world_ = starts_definition(word, next_char) ? World::kDefinition : World::kAttach;
}

bool Lexer::starts_definition(std::string_view word, char next) const {
  if (word == "config") return next == '=';
  if (word == "import") return next == '"';
  if (word == "let") return next == '@';
  if (word == "macro" || word == "fn") return is_name_start(next);
  return false;
}

void Lexer::lex_shebang() {
  const uint32_t begin = at_;
  at_ = static_cast<uint32_t>(std::min(text_.find('\n', at_), text_.size()));
  emit(TokenKind::kShebang, begin);
}

/// A line that starts with '#', and those that it continues onto with a backslash.
void Lexer::lex_directive() {
  const uint32_t begin = at_;
  while (!at_end() && peek() != '\n') {
    if (peek() == '\\' && peek(1) == '\n') at_++;
    at_++;
  }
  emit(TokenKind::kDirective, begin);
}

void Lexer::lex_c_definition(std::string_view word) {
  const uint32_t begin = at_;
  const uint32_t end = c_definition_end();
  if (end == begin) {
    at_ += static_cast<uint32_t>(word.size());
    diagnostics_.error({begin, at_}, "this {} has no end", word)
        .with_hint("close it with }} and ;");
    at_ = static_cast<uint32_t>(text_.size());
    emit(TokenKind::kError, begin);
    return;
  }
  at_ = end;
  emit(TokenKind::kCDefinition, begin);
}

/// `struct X { ... } __attribute__((...));`, `struct X;`, `typedef ... ;`. Returns the start when
/// it has no end.
uint32_t Lexer::c_definition_end() const {
  const bool needs_semicolon = looking_at("typedef");
  uint32_t at = at_;
  while (at < text_.size()) {
    at = skip_blanks_from(at);
    if (at >= text_.size()) break;
    if (text_[at] == ';') return at + 1;
    if (text_[at] != '{') {
      at++;
      continue;
    }
    at = balanced_end(at, '{', '}');
    if (at == 0) break;
    if (needs_semicolon) continue;
    const uint32_t last = after_attributes(at);
    const uint32_t next = skip_blanks_from(last);
    return next < text_.size() && text_[next] == ';' ? next + 1 : last;
  }
  return at_;
}

uint32_t Lexer::after_attributes(uint32_t at) const {
  constexpr std::string_view kAttribute = "__attribute__";
  while (true) {
    uint32_t next = skip_blanks_from(at);
    if (!text_.substr(next).starts_with(kAttribute)) return at;
    next = skip_blanks_from(next + static_cast<uint32_t>(kAttribute.size()));
    if (next >= text_.size() || text_[next] != '(') return at;
    const uint32_t end = balanced_end(next, '(', ')');
    if (end == 0) return at;
    at = end;
  }
}

/// The byte after the bracket that closes the one at `at`; 0: there is none.
uint32_t Lexer::balanced_end(uint32_t at, char open, char close) const {
  uint32_t depth = 0;
  for (at = skip_blanks_from(at); at < text_.size(); at = skip_blanks_from(at)) {
    const char c = text_[at++];
    if (c == open) depth++;
    if (c == close && --depth == 0) return at;
  }
  return 0;
}

// ---- attach points
// ------------------------------------------------------------------------------------------------------

void Lexer::lex_attach() {
  switch (peek()) {
    case '/': {
      const uint32_t begin = at_++;
      emit(TokenKind::kPredicateBegin, begin);
      world_ = World::kPredicate;
      predicate_has_if_ = false;
      return;
    }
    case ',':
    case '{':
    case '}':
    case ';': return lex_punctuator();
    default: return lex_attach_word();
  }
}

void Lexer::lex_attach_word() {
  const uint32_t begin = at_;
  const uint32_t name = name_end(at_);
  if (name > at_ && name < text_.size() && text_[name] == '=') {
    at_ = name + 1;
    Token& token = emit(TokenKind::kAttachAssign, begin);
    token.text.pop_back();
    return;
  }
  const std::string_view rest = text_.substr(at_);
  const std::string_view provider = rest.substr(0, rest.find_first_of(":/,{ \t\r\n\""));
  const bool is_path = takes_path(provider) && rest.substr(provider.size()).starts_with(':');
  at_ = attach_word_end(is_path);
  emit(TokenKind::kAttachWord, begin);
}

/// Up to a blank, comma or brace outside of quotes. Where the probe type takes no path, '/' ends it
/// too.
uint32_t Lexer::attach_word_end(bool path_provider) const {
  uint32_t at = at_;
  for (; at < text_.size(); at++) {
    const char c = text_[at];
    if (c == '"') {
      at = attach_quote_end(text_, at);
      continue;
    }
    if (is_space(c) || c == ',' || c == '{' || c == '}' || c == ';') break;
    if (c == '/' && !path_provider) break;
  }
  at = std::min(at, static_cast<uint32_t>(text_.size()));
  return path_provider ? cut_predicate(at_, at) : at;
}

/// `u:/bin/a:f/pid == 1/ {`: in the last part '/' is a letter (Go's names have it) unless it opens
/// a predicate. It does when the word ends with '/' or when what follows the word can not follow an
/// attach point.
uint32_t Lexer::cut_predicate(uint32_t begin, uint32_t end) const {
  const std::string_view word = text_.substr(begin, end - begin);
  const size_t first = word.find(':');
  const size_t second = word.find(':', first + 1);
  if (second == std::string_view::npos || word.find('"') != std::string_view::npos) return end;
  const size_t slash = word.find('/', second);
  if (slash == std::string_view::npos || slash == second + 1) return end;
  const uint32_t next = skip_blanks_from(end);
  const char next_char = next < text_.size() ? text_[next] : '{';
  const bool opens =
      word.back() == '/' || (next_char != '/' && next_char != '{' && next_char != ',');
  return opens ? begin + static_cast<uint32_t>(slash) : end;
}

// ---- the language
// ---------------------------------------------------------------------------------------------------------

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

}  // namespace

std::vector<Token> lex(const Source& source, Diagnostics& diagnostics) {
  if (source.was_cut())
    diagnostics.error({0, 1}, "the script is longer than {} MiB", Source::kMaxBytes >> 20);
  return Lexer(source, {0, source.size()}, diagnostics).whole_script();
}

std::vector<Token> lex_expression(const Source& source, Span span, Diagnostics& diagnostics) {
  return Lexer(source, {std::min(span.begin, source.size()), std::min(span.end, source.size())},
               diagnostics)
      .expression_only();
}

}  // namespace spile::lang
