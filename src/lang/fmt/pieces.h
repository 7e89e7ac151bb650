// The words of a script with the comments between them: what the formatter puts in lines.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "lang/fmt/marks.h"
#include "lang/syntax/source.h"
#include "lang/syntax/token.h"

namespace spile::lang {

struct Comment {
  std::string text;  ///< with its // or /* */, without blanks at the ends of its lines
  bool is_line = false;
  bool begins_line = false;   ///< nothing but blanks stands before it in its line
  bool blank_before = false;  ///< an empty line stands before it
};

/// A token as written, and what stands between it and the one before.
struct Piece {
  TokenKind kind = TokenKind::kEnd;
  std::string text;
  uint8_t marks = kNoMark;
  bool closes_cast = false;  ///< the ')' of `(type)x`
  std::vector<Comment> before;
  bool begins_line = false;
  bool blank_before = false;  ///< an empty line between the last comment (or token) and this
  bool spaced = false;        ///< a blank before it, where it does not begin a line

  bool has(Mark mark) const { return (marks & mark) != 0; }
};

/// `tokens` are all those of the source, the last one kEnd; `marks` as marks_of gives them.
std::vector<Piece> pieces_of(const Source& source,
                             const std::vector<Token>& tokens,
                             const std::vector<uint8_t>& marks);

/// The comments in blanks between two tokens.
std::vector<Comment> comments_in(std::string_view gap, bool at_line_start);

}  // namespace spile::lang
