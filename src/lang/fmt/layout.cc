#include "lang/fmt/layout.h"

#include <algorithm>
#include <limits>

namespace spile::lang {
namespace {

constexpr uint32_t kIndent = 2, kContinuation = 4;
constexpr size_t kMostInOneLine = 2;  ///< statements inside one that stays in one line
constexpr int kNoBreak = std::numeric_limits<int>::max();

bool is_open(TokenKind kind) {
  return kind == TokenKind::kLeftParen || kind == TokenKind::kLeftBracket;
}
bool is_close(TokenKind kind) {
  return kind == TokenKind::kRightParen || kind == TokenKind::kRightBracket;
}
bool is_assignment(TokenKind kind) {
  return kind >= TokenKind::kAssign && kind <= TokenKind::kShrAssign;
}
bool stands_alone(TokenKind kind) {
  return kind == TokenKind::kShebang || kind == TokenKind::kDirective ||
         kind == TokenKind::kCDefinition;
}

/// How readily a line is broken between two pieces inside the same brackets: 0 first.
int rank_between(const Piece& left, const Piece& right) {
  using enum TokenKind;
  if (left.kind == kComma || is_open(left.kind) || is_assignment(left.kind)) return 0;
  if (!right.spaced) return kNoBreak;
  if (right.kind == kQuestion || right.kind == kColon) return 1;
  if (left.has(kPrefix) || left.has(kInType)) return kNoBreak;
  switch (left.kind) {
    case kLogOr: return 2;
    case kLogAnd: return 3;
    case kEq:
    case kNe:
    case kLt:
    case kGt:
    case kLe:
    case kGe: return 4;
    case kPipe:
    case kCaret:
    case kAmp: return 5;
    case kPlus:
    case kMinus: return 6;
    default: return kNoBreak;
  }
}

class Layout {
 public:
  Layout(std::vector<Piece> pieces, uint32_t width) : pieces_(std::move(pieces)), width_(width) {}
  std::string script();

 private:
  const Piece& at(size_t i) const { return pieces_[std::min(i, pieces_.size() - 1)]; }
  bool ends_at(size_t i) const { return at(i).kind == TokenKind::kEnd; }

  // Output.
  uint32_t column() const { return static_cast<uint32_t>(out_.size() - line_start_); }
  void put(std::string_view text);
  void new_line(uint32_t indent);
  void comment(const Comment& comment, uint32_t indent);
  void begin_line(size_t i, uint32_t indent, bool may_leave_blank);
  bool comments_before(size_t i, uint32_t indent, bool may_leave_blank);
  void comments_inside(size_t i, uint32_t indent);

  // Where things end.
  size_t brace_end(size_t i) const;
  size_t statement_end(size_t i, bool at_top) const;
  bool has_comments(size_t begin, size_t end) const;
  uint32_t flat_width(size_t begin, size_t end) const;
  bool stays_in_one_line(size_t begin, size_t end, uint32_t indent) const;
  bool is_long_definition(size_t begin, size_t end) const;
  bool must_break(const std::vector<int>& ranks, size_t begin, size_t i, uint32_t indent) const;

  void leave_blank_before(size_t i);
  void definition(size_t begin, size_t end);
  void clause(size_t begin, size_t end);
  void attach_points(size_t begin, size_t end);
  void predicate(size_t begin, size_t end, bool own_line);
  void statement(size_t begin, size_t end, uint32_t indent);
  void block(size_t open, size_t close, uint32_t indent);
  void flat(size_t begin, size_t end);
  void line(size_t begin, size_t end, uint32_t indent);
  std::vector<int> ranks(size_t begin, size_t end) const;

  std::vector<Piece> pieces_;
  uint32_t width_;
  std::string out_;
  size_t line_start_ = 0;
  bool at_start_ = true;  ///< nothing but the indentation stands in this line
};

// ---- output
// -----------------------------------------------------------------------------------------------------------

void Layout::put(std::string_view text) {
  out_ += text;
  if (const size_t newline = text.rfind('\n'); newline != std::string_view::npos)
    line_start_ = out_.size() - (text.size() - newline - 1);
  at_start_ = false;
}

void Layout::new_line(uint32_t indent) {
  while (!out_.empty() && out_.back() == ' ') out_.pop_back();
  if (!out_.empty()) out_ += '\n';
  line_start_ = out_.size();
  out_.append(indent, ' ');
  at_start_ = true;
}

/// Lines that begin with a star are aligned under the first; others stay where they were.
void Layout::comment(const Comment& comment, uint32_t indent) {
  size_t begin = 0;
  while (true) {
    const size_t end = comment.text.find('\n', begin);
    std::string_view row = std::string_view(comment.text).substr(begin, end - begin);
    if (begin > 0) {
      const size_t first = row.find_first_not_of(" \t");
      const bool has_star = first != std::string_view::npos && row[first] == '*';
      new_line(has_star ? indent + 1 : 0);
      if (has_star) row.remove_prefix(first);
    }
    put(row);
    if (end == std::string::npos) return;
    begin = end + 1;
  }
}

/// The comments before piece i: those that end the line before, then those with lines of their own.
/// Returns whether an empty line may follow.
bool Layout::comments_before(size_t i, uint32_t indent, bool may_leave_blank) {
  for (const Comment& one : at(i).before) {
    if (one.begins_line || out_.empty()) {
      if (one.blank_before && may_leave_blank && !out_.empty()) new_line(0);
      new_line(indent);
      may_leave_blank = true;
    } else if (!at_start_) {
      put(" ");
    }
    comment(one, indent);
  }
  return may_leave_blank;
}

/// Starts the line of piece i.
void Layout::begin_line(size_t i, uint32_t indent, bool may_leave_blank) {
  may_leave_blank = comments_before(i, indent, may_leave_blank);
  if (at(i).blank_before && may_leave_blank && !out_.empty()) new_line(0);
  new_line(indent);
}

/// Comments in the middle of a statement. Behind one that takes the rest of its line the statement
/// goes on in a new one.
void Layout::comments_inside(size_t i, uint32_t indent) {
  const std::vector<Comment>& comments = at(i).before;
  for (size_t k = 0; k < comments.size(); k++) {
    if (comments[k].begins_line && !at_start_)
      new_line(indent);
    else if (!at_start_)
      put(" ");
    comment(comments[k], indent);
    const bool next = k + 1 < comments.size() ? comments[k + 1].begins_line : at(i).begins_line;
    if (comments[k].is_line || (comments[k].begins_line && next)) new_line(indent);
  }
}

// ---- where things end
// -------------------------------------------------------------------------------------------------

/// The brace that closes the one at i.
size_t Layout::brace_end(size_t i) const {
  size_t depth = 0;
  for (; !ends_at(i); i++) {
    if (at(i).kind == TokenKind::kLeftBrace) depth++;
    if (at(i).kind == TokenKind::kRightBrace && --depth == 0) return i;
  }
  return i;
}

/// Behind the last piece of the statement (or definition) at i.
size_t Layout::statement_end(size_t i, bool at_top) const {
  if (stands_alone(at(i).kind)) return i + 1;
  while (!ends_at(i) && at(i).kind != TokenKind::kRightBrace) {
    if (at(i).kind == TokenKind::kSemicolon) return i + 1;
    if (at(i).kind != TokenKind::kLeftBrace) {
      i++;
      continue;
    }
    i = brace_end(i) + 1;
    if (at(i).kind == TokenKind::kSemicolon) return i + 1;
    if (at_top || at(i).has(kStatement)) return i;
  }
  return i;
}

bool Layout::has_comments(size_t begin, size_t end) const {
  for (size_t i = begin; i < end; i++) {
    if (!at(i).before.empty()) return true;
  }
  return false;
}

/// `{` and `}` have a blank on their inner sides, unless nothing is between them.
uint32_t Layout::flat_width(size_t begin, size_t end) const {
  size_t width = 0;
  for (size_t i = begin; i < end; i++)
    width += at(i).text.size() + (i > begin && at(i).spaced ? 1 : 0);
  return static_cast<uint32_t>(std::min<size_t>(width, 1u << 20));
}

bool Layout::stays_in_one_line(size_t begin, size_t end, uint32_t indent) const {
  size_t inside = 0;
  for (size_t i = begin; i < end; i++) {
    if (i > begin && (at(i).begins_line || !at(i).before.empty())) return false;
    if (i > begin && at(i).has(kStatement)) inside++;
  }
  return inside <= kMostInOneLine && indent + flat_width(begin, end) <= width_;
}

/// Definitions with a block that is not in one line have empty lines around them.
bool Layout::is_long_definition(size_t begin, size_t end) const {
  for (size_t i = begin; i < end; i++) {
    if (at(i).kind == TokenKind::kLeftBrace) return !stays_in_one_line(begin, end, 0);
  }
  return false;
}

// ---- lines
// ------------------------------------------------------------------------------------------------------------

std::string Layout::script() {
  bool was_long = false;
  for (size_t i = 0; !ends_at(i);) {
    const size_t end = std::max(statement_end(i, true), i + 1);
    const bool is_long = is_long_definition(i, end);
    const bool is_head = i == 0 || at(i - 1).kind == TokenKind::kShebang;
    if (!is_head && (is_long || was_long)) leave_blank_before(i);
    begin_line(i, 0, true);
    definition(i, end);
    was_long = is_long;
    i = end;
  }
  comments_before(pieces_.size() - 1, 0, true);
  if (!out_.empty()) new_line(0);
  return std::move(out_);
}

/// An empty line before piece i and the comments that stand right above it.
void Layout::leave_blank_before(size_t i) {
  Piece& piece = pieces_[i];
  const auto first = std::ranges::find_if(piece.before, &Comment::begins_line);
  (first == piece.before.end() ? piece.blank_before : first->blank_before) = true;
}

void Layout::definition(size_t begin, size_t end) {
  const TokenKind kind = at(begin).kind;
  if (stands_alone(kind)) return put(at(begin).text);
  if (kind == TokenKind::kAttachWord || kind == TokenKind::kAttachAssign) return clause(begin, end);
  statement(begin, end, 0);
}

/// `attach points /predicate/ {`: in one line where it fits, else the predicate in a line of its
/// own, else each attach point.
void Layout::clause(size_t begin, size_t end) {
  if (stays_in_one_line(begin, end, 0)) return flat(begin, end);
  size_t points = begin;
  while (points < end && at(points).kind != TokenKind::kPredicateBegin &&
         at(points).kind != TokenKind::kLeftBrace)
    points++;
  size_t open = points;
  if (at(points).kind == TokenKind::kPredicateBegin)
    while (open < end && at(open).kind != TokenKind::kPredicateEnd) open++;
  while (open < end && at(open).kind != TokenKind::kLeftBrace) open++;
  const bool has_none = !has_comments(begin + 1, open + 1);
  if (has_none && flat_width(begin, open + 1) <= width_) {
    flat(begin, open + 1);
  } else {
    const bool in_one = !has_comments(begin + 1, points) && flat_width(begin, points) <= width_;
    if (in_one)
      flat(begin, points);
    else
      attach_points(begin, points);
    predicate(points, open + 1, in_one && points < open);
  }
  block(open, brace_end(open), 0);
}

void Layout::attach_points(size_t begin, size_t end) {
  for (size_t i = begin; i < end; i++) {
    if (i > begin && at(i).kind == TokenKind::kAttachWord &&
        at(i - 1).kind != TokenKind::kAttachAssign)
      begin_line(i, 0, false);
    else if (i > begin)
      comments_inside(i, 0);
    put(at(i).text);
  }
}

/// What is left of a clause's head, its `{` included.
void Layout::predicate(size_t begin, size_t end, bool own_line) {
  const bool fits = column() + 1 + flat_width(begin, end) <= width_;
  if (own_line || !fits) begin_line(begin, 0, false);
  line(begin, end, 0);
}

/// A statement, a setting, or a definition that is no clause.
void Layout::statement(size_t begin, size_t end, uint32_t indent) {
  if (stays_in_one_line(begin, end, indent)) return flat(begin, end);
  while (begin < end) {
    size_t open = begin;
    while (open < end && at(open).kind != TokenKind::kLeftBrace) open++;
    line(begin, std::min(open + 1, end), indent);
    if (open >= end) return;
    const size_t close = brace_end(open);
    block(open, close, indent);
    begin = close + 1;
  }
}

/// What follows the '{' at `open`, and the '}' at `close`.
void Layout::block(size_t open, size_t close, uint32_t indent) {
  if (open + 1 == close && at(close).before.empty()) return put("}");
  for (size_t i = open + 1; i < close;) {
    const size_t end = std::clamp(statement_end(i, false), i + 1, close);
    begin_line(i, indent + kIndent, i > open + 1);
    statement(i, end, indent + kIndent);
    i = end;
  }
  comments_before(close, indent + kIndent, close > open + 1);
  new_line(indent);
  put("}");
}

void Layout::flat(size_t begin, size_t end) {
  for (size_t i = begin; i < end; i++) {
    if (!at_start_ && at(i).spaced) put(" ");
    put(at(i).text);
  }
}

/// Pieces up to a brace or the end of a statement, broken where they are too long.
void Layout::line(size_t begin, size_t end, uint32_t indent) {
  const std::vector<int> ranks = this->ranks(begin, end);
  const bool goes_on = !at_start_;
  for (size_t i = begin; i < end; i++) {
    if (i > begin || goes_on) {
      if (!at(i).before.empty())
        comments_inside(i, i > begin ? indent + kContinuation : indent);
      else if (i > begin && must_break(ranks, begin, i, indent))
        new_line(indent + kContinuation);
    }
    if (!at_start_ && at(i).spaced) put(" ");
    put(at(i).text);
  }
}

/// For each piece how readily the line is broken before it; the outermost brackets first.
std::vector<int> Layout::ranks(size_t begin, size_t end) const {
  constexpr int kRanksOfADepth = 8;
  std::vector<int> out(end - begin, kNoBreak);
  int depth = 0;
  for (size_t i = begin + 1; i < end; i++) {
    const Piece& left = at(i - 1);
    if (is_open(left.kind)) depth++;
    if (is_close(left.kind)) depth--;
    const bool opens_call = left.kind == TokenKind::kLeftParen && i > begin + 1 &&
                            at(i - 2).kind == TokenKind::kIdentifier && !left.spaced &&
                            at(i).kind != TokenKind::kRightParen;
    if (is_open(left.kind) && !opens_call) continue;
    const int rank = rank_between(left, at(i));
    if (rank != kNoBreak) out[i - begin] = std::max(depth, 0) * kRanksOfADepth + rank;
  }
  return out;
}

/// True where what follows up to the next break of this rank fits no more, but does in a new line,
/// or can not be broken inside.
bool Layout::must_break(const std::vector<int>& ranks,
                        size_t begin,
                        size_t i,
                        uint32_t indent) const {
  const int rank = ranks[i - begin];
  if (rank == kNoBreak) return false;
  bool has_inner = false;
  uint32_t width = 0;
  for (size_t k = i; k - begin < ranks.size(); k++) {
    const int other = ranks[k - begin];
    if (k > i && other <= rank) break;
    has_inner |= k > i && other != kNoBreak;
    width += static_cast<uint32_t>(at(k).text.size()) + (k > i && at(k).spaced ? 1 : 0);
    if (width > width_ && has_inner) return false;
  }
  if (column() + (at(i).spaced ? 1 : 0) + width <= width_) return false;
  return indent + kContinuation + width <= width_ || !has_inner;
}

}  // namespace

std::string lay_out(std::vector<Piece> pieces, uint32_t width) {
  return Layout(std::move(pieces), width).script();
}

}  // namespace spile::lang
