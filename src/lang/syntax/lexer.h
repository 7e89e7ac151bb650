// Text -> tokens.
//
// The language has three lexical worlds: C text (kept raw), attach points (`uprobe:/bin/a*:f`,
// where '/' and '*' are letters) and the language proper. Which one applies follows from the tokens
// alone: outside of braces a name starts a definition or an attach point list, and a '/' after an
// attach point opens a predicate. A '/' in a predicate closes it when a '{' follows, else it
// divides.
#pragma once

#include <expected>
#include <string_view>
#include <vector>

#include "lang/syntax/diagnostic.h"
#include "lang/syntax/source.h"
#include "lang/syntax/token.h"

namespace spile::lang {

/// All tokens, ended by one kEnd. Faults are reported and leave kError tokens.
std::vector<Token> lex(const Source& source, Diagnostics& diagnostics);

/// The same of one of its files.
std::vector<Token> lex(const Source& source, Span part, Diagnostics& diagnostics);

/// The tokens of the language proper in a part of the source: the body of a #define.
std::vector<Token> lex_expression(const Source& source, Span span, Diagnostics& diagnostics);

/// A number as scripts write it: 42, 0x2a, 052, 1e6, 1_000, 500ms. Everything must be used up.
struct Number {
  uint64_t value = 0;
  bool is_duration = false;
  bool is_unsigned = false;
};
/// Why a text is no number.
enum class NumberFault : uint8_t { kSyntax, kTooLarge, kOctalDigit, kSuffix };
std::expected<Number, NumberFault> read_number(std::string_view text);

}  // namespace spile::lang
