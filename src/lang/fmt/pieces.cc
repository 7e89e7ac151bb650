#include "lang/fmt/pieces.h"

#include <algorithm>
#include <array>

namespace spile::lang {
namespace {

bool is_blank(char c) {
  return c == ' ' || c == '\t' || c == '\r' || c == '\v' || c == '\f' || c == '\n';
}

/// Without the blanks at the end of each line.
std::string trimmed_lines(std::string_view text) {
  std::string out;
  for (const char c : text) {
    if (c == '\n')
      while (!out.empty() && out.back() != '\n' && is_blank(out.back())) out.pop_back();
    out += c;
  }
  while (!out.empty() && is_blank(out.back())) out.pop_back();
  return out;
}

/// Newlines in blanks, from `at` on up to the next other byte.
size_t newlines_at(std::string_view text, size_t& at) {
  size_t count = 0;
  for (; at < text.size() && is_blank(text[at]); at++) count += text[at] == '\n';
  return count;
}

struct Gap {
  std::vector<Comment> comments;
  bool begins_line = false, blank_before = false;  ///< of what follows
};

Gap read_gap(std::string_view text, bool at_line_start) {
  Gap out;
  bool after_newline = at_line_start;
  for (size_t at = 0; true;) {
    const size_t newlines = newlines_at(text, at);
    // The newline that ends a // comment is the first one of the blanks behind it.
    out.begins_line = newlines > 0 || after_newline;
    out.blank_before = newlines > 1;
    after_newline = false;
    if (at >= text.size()) return out;
    const bool is_line = text.substr(at).starts_with("//");
    const size_t found = is_line ? text.find('\n', at) : text.find("*/", at + 2);
    const size_t end = found == std::string_view::npos ? text.size() : found + (is_line ? 0 : 2);
    out.comments.push_back({.text = trimmed_lines(text.substr(at, end - at)),
                            .is_line = is_line,
                            .begins_line = out.begins_line,
                            .blank_before = out.blank_before});
    at = end;
  }
}

bool is_keyword(std::string_view word) {
  constexpr auto kWords = std::to_array<std::string_view>(
      {"if", "else", "while", "for", "unroll", "return", "comptime"});
  return std::ranges::find(kWords, word) != kWords.end();
}

bool is_any(TokenKind kind, std::initializer_list<TokenKind> kinds) {
  return std::ranges::find(kinds, kind) != kinds.end();
}

/// Would the two be read as something else without a blank?
bool would_merge(const Piece& left, const Piece& right) {
  constexpr auto kPairs = std::to_array<std::string_view>(
      {"--", "++", "&&", "||", "<<", ">>", "..", "->", "//", "/*", "*/", "==",
       "!=", "<=", ">=", "+=", "-=", "*=", "/=", "%=", "&=", "|=", "^="});
  if (left.text.empty() || right.text.empty()) return false;
  const std::array<char, 2> pair{left.text.back(), right.text.front()};
  return std::ranges::find(kPairs, std::string_view(pair.data(), 2)) != kPairs.end();
}

bool spaced_by_brackets(const Piece& left, const Piece& right, bool otherwise) {
  if (right.kind == TokenKind::kLeftBracket) return false;
  if (right.kind != TokenKind::kLeftParen) return otherwise;
  if (left.kind == TokenKind::kIdentifier) return is_keyword(left.text);
  return left.kind != TokenKind::kRightParen && left.kind != TokenKind::kRightBracket;
}

bool is_spaced(const Piece& left, const Piece& right) {
  using enum TokenKind;
  if (left.kind == kLeftBrace && right.kind == kRightBrace) return false;
  if (is_any(right.kind, {kSemicolon, kComma, kRightParen, kRightBracket, kPredicateEnd}))
    return false;
  if (is_any(left.kind, {kLeftParen, kLeftBracket, kPredicateBegin, kAttachAssign})) return false;
  if (is_any(left.kind, {kDot, kArrow, kDotDot}) || is_any(right.kind, {kDot, kArrow, kDotDot}))
    return false;
  if (left.has(kPrefix) || left.closes_cast) return false;
  if (is_any(right.kind, {kPlusPlus, kMinusMinus}) && !right.has(kPrefix)) return false;
  if (left.kind == kStar && left.has(kInType))
    return is_any(right.kind, {kIdentifier, kAssign, kLeftBrace});
  if (right.kind == kColon) return left.kind != kQuestion && !left.has(kDeclared);
  return spaced_by_brackets(left, right, true);
}

}  // namespace

std::vector<Comment> comments_in(std::string_view gap, bool at_line_start) {
  return read_gap(gap, at_line_start).comments;
}

std::vector<Piece> pieces_of(const Source& source,
                             const std::vector<Token>& tokens,
                             const std::vector<uint8_t>& marks) {
  std::vector<Piece> out;
  uint32_t end = 0;
  bool cast_ends = false;  // a cast's type has ended: its ')' comes next
  for (const Token& token : tokens) {
    Gap gap = read_gap(source.text({end, token.span.begin}), end == 0);
    Piece piece{.kind = token.kind,
                .text = std::string(source.text(token.span)),
                .marks = marks[token.span.begin],
                .before = std::move(gap.comments),
                .begins_line = gap.begins_line,
                .blank_before = gap.blank_before};
    if (token.kind == TokenKind::kDirective || token.kind == TokenKind::kShebang)
      piece.text = trimmed_lines(piece.text);
    for (uint32_t at = end; at <= token.span.begin; at++) cast_ends |= (marks[at] & kTypeEnd) != 0;
    if (cast_ends && token.kind == TokenKind::kRightParen) {
      piece.closes_cast = true;
      cast_ends = false;
    }
    if (!out.empty()) piece.spaced = is_spaced(out.back(), piece) || would_merge(out.back(), piece);
    end = token.span.end;
    out.push_back(std::move(piece));
  }
  return out;
}

}  // namespace spile::lang
