// The words of a script.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "lang/syntax/source.h"

namespace spile::lang {

enum class TokenKind : uint8_t {
  kEnd,             ///< after the last one
  kError,           ///< reported already; the parser only skips it
  kShebang,         ///< #! line
  kDirective,       ///< a # line of C, with its continuation lines
  kCDefinition,     ///< struct X { ... };  raw
  kAttachWord,      ///< an attach point up to a space, comma or brace, raw
  kAttachAssign,    ///< name= before an attach point
  kPredicateBegin,  ///< /
  kPredicateEnd,    ///< / before {
  kInteger,
  kString,
  kIdentifier,       ///< keywords too
  kVariable,         ///< $x
  kPositional,       ///< $1
  kPositionalCount,  ///< $#
  kMap,              ///< @, @x
  kLeftBrace,
  kRightBrace,
  kLeftParen,
  kRightParen,
  kLeftBracket,
  kRightBracket,
  kSemicolon,
  kComma,
  kColon,
  kQuestion,
  kDot,
  kDotDot,
  kArrow,
  kAssign,
  kPlusAssign,
  kMinusAssign,
  kStarAssign,
  kSlashAssign,
  kPercentAssign,
  kAmpAssign,
  kPipeAssign,
  kCaretAssign,
  kShlAssign,
  kShrAssign,
  kPlus,
  kMinus,
  kStar,
  kSlash,
  kPercent,
  kAmp,
  kPipe,
  kCaret,
  kTilde,
  kNot,
  kShl,
  kShr,
  kEq,
  kNe,
  kLt,
  kGt,
  kLe,
  kGe,
  kLogAnd,
  kLogOr,
  kPlusPlus,
  kMinusMinus,
};

struct Token {
  TokenKind kind = TokenKind::kEnd;
  Span span;
  std::string text;          ///< names with their sigil; strings with escapes replaced
  uint64_t value = 0;        ///< kInteger, kPositional
  bool is_duration = false;  ///< kInteger: value is ns
  bool is_unsigned = false;  ///< kInteger: u suffix
};

/// For messages: "'+='", "a string", "end of the script".
std::string_view describe(TokenKind kind);
/// For dumps: "plus-assign", "string", "end".
std::string_view to_string(TokenKind kind);

}  // namespace spile::lang
