#include "lang/fmt/format.h"

#include "lang/fmt/layout.h"
#include "lang/fmt/marks.h"
#include "lang/fmt/pieces.h"
#include "lang/syntax/lexer.h"
#include "lang/syntax/parser.h"

namespace spile::lang {
namespace {

bool is_blank(char c) {
  return c == ' ' || c == '\t' || c == '\r' || c == '\v' || c == '\f' || c == '\n';
}

/// With every run of blanks as one, none at the ends.
std::string squeezed(std::string_view text) {
  std::string out;
  for (const char c : text) {
    if (!is_blank(c))
      out += c;
    else if (!out.empty() && out.back() != ' ')
      out += ' ';
  }
  if (out.ends_with(' ')) out.pop_back();
  return out;
}

}  // namespace

std::string words_and_comments(const Source& source) {
  Diagnostics unread;
  std::string words, comments;
  uint32_t end = 0;
  for (const Token& token : lex(source, unread)) {
    for (const Comment& comment : comments_in(source.text({end, token.span.begin}), end == 0))
      comments += squeezed(comment.text) + "\n";
    const bool is_line = token.kind == TokenKind::kDirective || token.kind == TokenKind::kShebang;
    const std::string_view text = source.text(token.span);
    words += fmt::format("{} {}\n", to_string(token.kind), is_line ? squeezed(text) : text);
    end = token.span.end;
  }
  return words + comments;
}

Result<std::string> format_script(const Source& source, Diagnostics& diagnostics) {
  const ast::Program program = parse(source, {.keeps_attach_words = true}, diagnostics);
  if (diagnostics.has_errors())
    return fail(ErrorCode::kInvalid, "{} is not a script", source.name());
  Diagnostics unread;
  const std::vector<Token> tokens = lex(source, unread);
  std::string text =
      lay_out(pieces_of(source, tokens, marks_of(program, source.size())), kFormatWidth);
  if (words_and_comments(Source(source.name(), text)) != words_and_comments(source))
    return fail(ErrorCode::kInternal,
                "{} would be another script when formatted; nothing was changed. This is a defect "
                "of spile: please report it with the script",
                source.name());
  return text;
}

}  // namespace spile::lang
