#include "lang/syntax/parser.h"

#include "lang/syntax/attach_point.h"
#include "lang/syntax/descent.h"
#include "lang/syntax/lexer.h"

namespace spile::lang {

// ---- tokens
// -----------------------------------------------------------------------------------------------------------------

bool Parser::at_word(std::string_view word, size_t ahead) const {
  const Token& token = peek(ahead);
  return token.kind == TokenKind::kIdentifier && token.text == word;
}

const Token& Parser::take() {
  const Token& token = peek();
  if (at_ + 1 < tokens_.size()) at_++;
  return token;
}

bool Parser::accept(TokenKind kind) {
  if (!at(kind)) return false;
  take();
  return true;
}

/// `where` completes the sentence "expected ';' ...": "after this statement".
bool Parser::expect(TokenKind kind, std::string_view where) {
  if (accept(kind)) return true;
  unexpected(fmt::format("{} {}", describe(kind), where));
  return false;
}

void Parser::unexpected(std::string_view wanted) {
  const Token& token = peek();
  if (token.kind == TokenKind::kError) return;  // the lexer said it already
  const bool shows_text = token.kind == TokenKind::kIdentifier ||
                          token.kind == TokenKind::kVariable || token.kind == TokenKind::kInteger ||
                          token.kind == TokenKind::kMap || token.kind == TokenKind::kAttachWord;
  constexpr size_t kShown = 40;
  const std::string_view text = std::string_view(token.text).substr(0, kShown);
  diagnostics_.error(token.span, "syntax error: expected {}, found {}", wanted,
                     shows_text ? fmt::format("'{}'", text) : std::string(describe(token.kind)));
}

// ---- nodes
// ------------------------------------------------------------------------------------------------------------------

uint32_t Parser::height(const std::vector<ExprPtr>& nodes) const {
  uint32_t most = 0;
  for (const ExprPtr& node : nodes) most = std::max(most, height(node));
  return most;
}

uint32_t Parser::height(const Block& block) const {
  uint32_t most = 0;
  for (const StmtPtr& node : block.statements) most = std::max(most, height(node.get()));
  return most;
}

uint32_t Parser::height(const TypeName& type) const {
  uint32_t most =
      std::max(height(type.typeof_operand), type.typeof_type ? 1 + height(*type.typeof_type) : 0);
  for (const TypeName::Suffix& suffix : type.suffixes) most = std::max(most, height(suffix.size));
  return most;
}

bool Parser::Nest::ok() {
  if (parser_.nesting_ <= kMaxNesting) return true;
  parser_.diagnostics_.error(parser_.peek().span,
                             "the script is nested more than {} levels deep here", kMaxNesting);
  return false;
}

// ---- recovery
// ---------------------------------------------------------------------------------------------------------------

/// From a '{' past its '}'.
void Parser::skip_balanced() {
  size_t depth = 0;
  while (!at(TokenKind::kEnd)) {
    if (at(TokenKind::kLeftBrace)) depth++;
    if (at(TokenKind::kRightBrace)) depth--;
    take();
    if (depth == 0) return;
  }
}

/// To the next statement: past a ';', or to the '}' of the block.
void Parser::skip_statement() {
  while (!at(TokenKind::kEnd) && !at(TokenKind::kRightBrace)) {
    if (at(TokenKind::kLeftBrace)) {
      skip_balanced();
      return;
    }
    if (take().kind == TokenKind::kSemicolon) return;
  }
}

/// To the next definition: past the block or the ';' of this one.
void Parser::skip_definition() {
  while (!at(TokenKind::kEnd)) {
    if (at(TokenKind::kLeftBrace)) return skip_balanced();
    const TokenKind kind = take().kind;
    if (kind == TokenKind::kSemicolon || kind == TokenKind::kRightBrace) return;
  }
}

// ---- entries
// ----------------------------------------------------------------------------------------------------------------

ExprPtr Parser::lone_expression() {
  ExprPtr node = expression();
  if (node && !at(TokenKind::kEnd)) {
    unexpected("an operator or the end");
    return nullptr;
  }
  return node;
}

std::vector<AttachPoint> Parser::lone_attach_point() {
  if (!at(TokenKind::kAttachWord) || peek(1).kind != TokenKind::kEnd) {
    if (at(TokenKind::kAttachWord)) take();
    unexpected("one probe");
    return {};
  }
  return read_attach_point(peek().text, peek().span, options_.positional, diagnostics_);
}

ast::Program parse(const Source& source, const ParseOptions& options, Diagnostics& diagnostics) {
  ast::Program program;
  if (source.was_cut())
    diagnostics.error({0, 1}, "the script is longer than {} MiB", Source::kMaxBytes >> 20);
  for (const size_t part : source.order())
    Parser(source, lex(source, source.part_span(part), diagnostics), options, program, diagnostics)
        .script();
  if (program.clauses.empty() && program.routines.empty() && !options.is_import &&
      !diagnostics.has_errors()) {
    const uint32_t end = source.part_span(0).end;
    diagnostics.error({end, end}, "the script has no probe")
        .with_hint("for example: BEGIN {{ printf(\"hello\\n\"); }}");
  }
  return program;
}

std::vector<ast::AttachPoint> parse_attach_point(const Source& source,
                                                 const ParseOptions& options,
                                                 Diagnostics& diagnostics) {
  ast::Program program;
  return Parser(source, lex(source, diagnostics), options, program, diagnostics)
      .lone_attach_point();
}

ast::ExprPtr parse_expression(const Source& source,
                              Span span,
                              ast::Program& program,
                              Diagnostics& diagnostics) {
  const ParseOptions options;
  return Parser(source, lex_expression(source, span, diagnostics), options, program, diagnostics)
      .lone_expression();
}

}  // namespace spile::lang
