// Types, and where one begins.
#include "lang/syntax/descent.h"

namespace spile::lang {

/// True where an argument is surely a type: `struct X`, `typeof(x)`, `uint64`, `uint8[4]`, `pid_t
/// *)`.
bool Parser::starts_type() const {
  if (!at(TokenKind::kIdentifier)) return false;
  const std::string& word = peek().text;
  const TokenKind next = peek(1).kind;
  if (word == "struct" || word == "union" || word == "enum") return next == TokenKind::kIdentifier;
  if (word == "typeof") return next == TokenKind::kLeftParen;
  if (is_builtin_type(word)) return next != TokenKind::kLeftParen;
  size_t stars = 0;
  while (peek(1 + stars).kind == TokenKind::kStar) stars++;
  const TokenKind after = peek(1 + stars).kind;
  return stars != 0 && (after == TokenKind::kRightParen || after == TokenKind::kComma);
}

/// At a '(': is what follows a type in parentheses before an operand? `(name)x` is a cast where x
/// can not go on an expression; `(name) - x`, `(name) * x` and `(name) & x` are arithmetic.
bool Parser::starts_cast() const {
  if (peek(1).kind != TokenKind::kIdentifier) return false;
  const std::string& word = peek(1).text;
  if (word == "struct" || word == "union" || word == "enum") return true;
  if (word == "typeof") return peek(2).kind == TokenKind::kLeftParen;
  size_t next = 2;
  bool surely = is_builtin_type(word);
  for (; peek(next).kind == TokenKind::kStar; next++)
    surely |= peek(next + 1).kind == TokenKind::kRightParen;
  while (peek(next).kind == TokenKind::kLeftBracket) {
    const bool is_empty = peek(next + 1).kind == TokenKind::kRightBracket;
    surely |= is_empty;
    next += is_empty ? 2 : 3;
    if (!is_empty && peek(next - 1).kind != TokenKind::kRightBracket) return is_builtin_type(word);
  }
  if (is_builtin_type(word)) return true;
  return peek(next).kind == TokenKind::kRightParen && (surely || is_operand_start(peek(next + 1)));
}

bool Parser::is_operand_start(const Token& token) const {
  switch (token.kind) {
    case TokenKind::kVariable:
    case TokenKind::kMap:
    case TokenKind::kPositional:
    case TokenKind::kPositionalCount:
    case TokenKind::kInteger:
    case TokenKind::kString:
    case TokenKind::kIdentifier:
    case TokenKind::kLeftParen:
    case TokenKind::kNot:
    case TokenKind::kTilde: return true;
    default: return false;
  }
}

bool Parser::type_name(TypeName& out) {
  Nest nest(*this);
  if (!nest.ok()) return false;
  out.span = peek().span;
  if (!at(TokenKind::kIdentifier)) {
    unexpected("a type");
    return false;
  }
  const std::string& word = peek().text;
  if (word == "typeof") {
    if (!typeof_base(out)) return false;
  } else {
    if (word == "struct") out.base = TypeName::Base::kStruct;
    if (word == "union") out.base = TypeName::Base::kUnion;
    if (word == "enum") out.base = TypeName::Base::kEnum;
    if (out.base != TypeName::Base::kNamed) take();
    if (!at(TokenKind::kIdentifier)) {
      unexpected("the type's name");
      return false;
    }
    out.name = take().text;
  }
  if (!type_suffixes(out)) return false;
  out.span = cover(out.span, previous_span());
  return true;
}

bool Parser::typeof_base(TypeName& out) {
  take();
  out.base = TypeName::Base::kTypeof;
  if (!expect(TokenKind::kLeftParen, "after typeof")) return false;
  if (starts_type()) {
    out.typeof_type = std::make_unique<TypeName>();
    if (!type_name(*out.typeof_type)) return false;
  } else if (!(out.typeof_operand = expression())) {
    return false;
  }
  return expect(TokenKind::kRightParen, "after typeof");
}

bool Parser::type_suffixes(TypeName& out) {
  constexpr size_t kMostSuffixes = 16;
  while (at(TokenKind::kStar) || at(TokenKind::kLeftBracket)) {
    if (out.suffixes.size() == kMostSuffixes) {
      diagnostics_.error(peek().span, "a type has at most {} '*' and '[N]'", kMostSuffixes);
      return false;
    }
    TypeName::Suffix& suffix = out.suffixes.emplace_back();
    suffix.is_array = take().kind == TokenKind::kLeftBracket;
    if (!suffix.is_array || accept(TokenKind::kRightBracket)) continue;
    suffix.size = expression();
    if (!suffix.size || !expect(TokenKind::kRightBracket, "after the array's size")) return false;
  }
  return true;
}

}  // namespace spile::lang
