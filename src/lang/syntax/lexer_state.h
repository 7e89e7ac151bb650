// The lexer's class, shared by the files that define it: lexer.cc (blanks, what is looked for
// where), lex_top.cc (the top of a script, attach points), lex_language.cc (the language proper).
#pragma once

#include <string_view>
#include <vector>

#include "lang/syntax/diagnostic.h"
#include "lang/syntax/source.h"
#include "lang/syntax/token.h"

namespace spile::lang {

namespace lexer {

inline bool is_space(char c) {
  return c == ' ' || c == '\t' || c == '\n' || c == '\r' || c == '\v' || c == '\f';
}
inline bool is_digit(char c) {
  return c >= '0' && c <= '9';
}
inline bool is_name_start(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_';
}
inline bool is_name(char c) {
  return is_name_start(c) || is_digit(c);
}

}  // namespace lexer

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

}  // namespace spile::lang
