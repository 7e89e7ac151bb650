#include "lang/syntax/lexer.h"

#include <algorithm>

#include "lang/syntax/lexer_state.h"

namespace spile::lang {

using namespace lexer;

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

std::vector<Token> lex(const Source& source, Diagnostics& diagnostics) {
  if (source.was_cut())
    diagnostics.error({0, 1}, "the script is longer than {} MiB", Source::kMaxBytes >> 20);
  return lex(source, Span{0, source.size()}, diagnostics);
}

std::vector<Token> lex(const Source& source, Span part, Diagnostics& diagnostics) {
  return Lexer(source, part, diagnostics).whole_script();
}

std::vector<Token> lex_expression(const Source& source, Span span, Diagnostics& diagnostics) {
  return Lexer(source, {std::min(span.begin, source.size()), std::min(span.end, source.size())},
               diagnostics)
      .expression_only();
}

}  // namespace spile::lang
