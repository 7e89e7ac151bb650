// The top of a script, C lines and attach points.
#include <algorithm>
#include <array>

#include "lang/syntax/attach_point.h"
#include "lang/syntax/lexer_state.h"

namespace spile::lang {

using namespace lexer;

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

}  // namespace spile::lang
