#include "lang/syntax/token.h"

#include <array>

namespace spile::lang {
namespace {

struct KindText {
  TokenKind kind;
  std::string_view name;         ///< in dumps
  std::string_view description;  ///< in messages
};

constexpr auto kKinds = std::to_array<KindText>({
    {TokenKind::kEnd, "end", "the end of the script"},
    {TokenKind::kError, "error", "a broken word"},
    {TokenKind::kShebang, "shebang", "a #! line"},
    {TokenKind::kDirective, "directive", "a C preprocessor line"},
    {TokenKind::kCDefinition, "c-definition", "a C definition"},
    {TokenKind::kAttachWord, "attach-word", "a probe"},
    {TokenKind::kAttachAssign, "attach-assign", "a probe's name"},
    {TokenKind::kPredicateBegin, "predicate-begin", "'/'"},
    {TokenKind::kPredicateEnd, "predicate-end", "'/'"},
    {TokenKind::kInteger, "integer", "a number"},
    {TokenKind::kString, "string", "a string"},
    {TokenKind::kIdentifier, "identifier", "a name"},
    {TokenKind::kVariable, "variable", "a variable"},
    {TokenKind::kPositional, "positional", "a positional parameter"},
    {TokenKind::kPositionalCount, "positional-count", "'$#'"},
    {TokenKind::kMap, "map", "a map"},
    {TokenKind::kLeftBrace, "left-brace", "'{'"},
    {TokenKind::kRightBrace, "right-brace", "'}'"},
    {TokenKind::kLeftParen, "left-paren", "'('"},
    {TokenKind::kRightParen, "right-paren", "')'"},
    {TokenKind::kLeftBracket, "left-bracket", "'['"},
    {TokenKind::kRightBracket, "right-bracket", "']'"},
    {TokenKind::kSemicolon, "semicolon", "';'"},
    {TokenKind::kComma, "comma", "','"},
    {TokenKind::kColon, "colon", "':'"},
    {TokenKind::kQuestion, "question", "'?'"},
    {TokenKind::kDot, "dot", "'.'"},
    {TokenKind::kDotDot, "dot-dot", "'..'"},
    {TokenKind::kArrow, "arrow", "'->'"},
    {TokenKind::kAssign, "assign", "'='"},
    {TokenKind::kPlusAssign, "plus-assign", "'+='"},
    {TokenKind::kMinusAssign, "minus-assign", "'-='"},
    {TokenKind::kStarAssign, "star-assign", "'*='"},
    {TokenKind::kSlashAssign, "slash-assign", "'/='"},
    {TokenKind::kPercentAssign, "percent-assign", "'%='"},
    {TokenKind::kAmpAssign, "amp-assign", "'&='"},
    {TokenKind::kPipeAssign, "pipe-assign", "'|='"},
    {TokenKind::kCaretAssign, "caret-assign", "'^='"},
    {TokenKind::kShlAssign, "shl-assign", "'<<='"},
    {TokenKind::kShrAssign, "shr-assign", "'>>='"},
    {TokenKind::kPlus, "plus", "'+'"},
    {TokenKind::kMinus, "minus", "'-'"},
    {TokenKind::kStar, "star", "'*'"},
    {TokenKind::kSlash, "slash", "'/'"},
    {TokenKind::kPercent, "percent", "'%'"},
    {TokenKind::kAmp, "amp", "'&'"},
    {TokenKind::kPipe, "pipe", "'|'"},
    {TokenKind::kCaret, "caret", "'^'"},
    {TokenKind::kTilde, "tilde", "'~'"},
    {TokenKind::kNot, "not", "'!'"},
    {TokenKind::kShl, "shl", "'<<'"},
    {TokenKind::kShr, "shr", "'>>'"},
    {TokenKind::kEq, "eq", "'=='"},
    {TokenKind::kNe, "ne", "'!='"},
    {TokenKind::kLt, "lt", "'<'"},
    {TokenKind::kGt, "gt", "'>'"},
    {TokenKind::kLe, "le", "'<='"},
    {TokenKind::kGe, "ge", "'>='"},
    {TokenKind::kLogAnd, "log-and", "'&&'"},
    {TokenKind::kLogOr, "log-or", "'||'"},
    {TokenKind::kPlusPlus, "plus-plus", "'++'"},
    {TokenKind::kMinusMinus, "minus-minus", "'--'"},
});

/// The table is indexed by kind, so its order must be the enumeration's.
constexpr bool in_order() {
  for (size_t i = 0; i < kKinds.size(); i++) {
    if (static_cast<size_t>(kKinds[i].kind) != i) return false;
  }
  return kKinds.back().kind == TokenKind::kMinusMinus;
}
static_assert(in_order());

}  // namespace

std::string_view describe(TokenKind kind) {
  return kKinds.at(static_cast<size_t>(kind)).description;
}
std::string_view to_string(TokenKind kind) {
  return kKinds.at(static_cast<size_t>(kind)).name;
}

}  // namespace spile::lang
