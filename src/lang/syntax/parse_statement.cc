// Statements.
#include <array>

#include "lang/syntax/descent.h"

namespace spile::lang {

namespace {

struct AssignToken {
  TokenKind token;
  BinaryOp op;
};
constexpr auto kAssignTokens = std::to_array<AssignToken>({
    {TokenKind::kPlusAssign, BinaryOp::kAdd},
    {TokenKind::kMinusAssign, BinaryOp::kSub},
    {TokenKind::kStarAssign, BinaryOp::kMul},
    {TokenKind::kSlashAssign, BinaryOp::kDiv},
    {TokenKind::kPercentAssign, BinaryOp::kMod},
    {TokenKind::kAmpAssign, BinaryOp::kBitAnd},
    {TokenKind::kPipeAssign, BinaryOp::kBitOr},
    {TokenKind::kCaretAssign, BinaryOp::kBitXor},
    {TokenKind::kShlAssign, BinaryOp::kShl},
    {TokenKind::kShrAssign, BinaryOp::kShr},
});

}  // namespace

/// `of` completes the sentence "expected '{' ...".
bool Parser::block(Block& out, std::string_view of) {
  Nest nest(*this);
  if (!nest.ok()) return false;
  out.span = peek().span;
  const Span open = peek().span;
  if (!expect(TokenKind::kLeftBrace, of)) return false;
  statements(out);
  if (!accept(TokenKind::kRightBrace)) {
    diagnostics_.error(open, "syntax error: this '{{' is never closed");
    return false;
  }
  out.span = cover(out.span, previous_span());
  return true;
}

void Parser::statements(Block& out) {
  while (!at(TokenKind::kRightBrace) && !at(TokenKind::kEnd)) {
    if (accept(TokenKind::kSemicolon)) continue;
    const size_t before = at_;
    if (StmtPtr node = statement()) {
      out.statements.push_back(std::move(node));
    } else {
      skip_statement();
    }
    if (at_ == before) take();
  }
}

StmtPtr Parser::statement() {
  Nest nest(*this);
  if (!nest.ok()) return nullptr;
  if (at(TokenKind::kLeftBrace)) return block_statement();
  if (at_word("if")) return if_statement();
  if (at_word("while")) return while_statement();
  if (at_word("for")) return for_statement();
  if (at_word("unroll")) return unroll_statement();
  StmtPtr node = plain_statement();
  return node && statement_end(*node) ? std::move(node) : nullptr;
}

/// Those that need a ';'.
StmtPtr Parser::plain_statement() {
  if (at_word("break")) return keyword_statement<Break>();
  if (at_word("continue")) return keyword_statement<Continue>();
  if (at_word("return")) return return_statement();
  if (at_word("let")) return let_statement();
  if (at_word("import") && peek(1).kind == TokenKind::kString) return import_statement();
  if (at_word("_") && peek(1).kind == TokenKind::kAssign) return discard_statement();
  return assignment_or_expression();
}

/// A ';' is needed unless the block ends.
bool Parser::statement_end(Stmt& statement) {
  if (at(TokenKind::kRightBrace)) {
    if (statement.kind == StmtKind::kExpr) static_cast<ExprStmt&>(statement).has_semicolon = false;
    return true;
  }
  if (accept(TokenKind::kSemicolon)) return true;
  // What starts on a later line is a statement of its own: say where the ';' is missing and lose
  // nothing.
  const Span last = previous_span();
  if (!at(TokenKind::kEnd) &&
      source_.position(peek().span.begin).line != source_.position(last.begin).line) {
    diagnostics_.error({last.end, last.end},
                       "syntax error: expected ';' at the end of this statement");
    return true;
  }
  unexpected("an operator or ';'");
  return false;
}

template <typename T>
StmtPtr Parser::keyword_statement() {
  auto node = make<T>(take().span);
  return finish(std::move(node), {});
}

StmtPtr Parser::block_statement() {
  auto node = make<BlockStmt>(peek().span);
  if (!block(node->block, "here")) return nullptr;
  const uint32_t below = height(node->block);
  return finish(std::move(node), {below});
}

StmtPtr Parser::if_statement() {
  auto node = make<If>(take().span);
  node->is_comptime = at_word("comptime");
  if (node->is_comptime) take();
  node->condition = expression();
  if (!node->condition || !block(node->then_block, "after the condition")) return nullptr;
  return else_branch(std::move(node));
}

StmtPtr Parser::else_branch(std::unique_ptr<If> node) {
  if (at_word("else")) {
    take();
    Block& branch = node->else_block.emplace();
    if (at_word("if")) {
      Nest nest(*this);
      if (!nest.ok()) return nullptr;
      StmtPtr inner = if_statement();
      if (!inner) return nullptr;
      branch.span = inner->span;
      branch.statements.push_back(std::move(inner));
    } else if (!block(branch, "or 'if' after else")) {
      return nullptr;
    }
  }
  const uint32_t below =
      std::max({height(node->condition), height(node->then_block), height(node->else_block)});
  return finish(std::move(node), {below});
}

StmtPtr Parser::while_statement() {
  auto node = make<While>(take().span);
  node->condition = expression();
  if (!node->condition || !block(node->body, "after the condition")) return nullptr;
  const uint32_t below = std::max(height(node->condition), height(node->body));
  return finish(std::move(node), {below});
}

/// for ($i : a..b) {}, for $i : a..b {}, for ($kv : @m) {}
StmtPtr Parser::for_statement() {
  const Span begin = take().span;
  const bool has_parentheses = accept(TokenKind::kLeftParen);
  if (!at(TokenKind::kVariable)) {
    unexpected("a variable after for");
    return nullptr;
  }
  const Token& variable = take();
  if (!expect(TokenKind::kColon, "after the loop's variable")) return nullptr;
  ExprPtr first = expression();
  if (!first) return nullptr;
  if (accept(TokenKind::kDotDot))
    return for_range(begin, variable, std::move(first), has_parentheses);
  return for_map(begin, variable, std::move(first), has_parentheses);
}

StmtPtr Parser::for_range(Span begin, const Token& variable, ExprPtr first, bool has_parentheses) {
  auto node = make<ForRange>(begin);
  node->variable = variable.text;
  node->variable_span = variable.span;
  node->first = std::move(first);
  node->last = expression();
  if (!node->last || (has_parentheses && !expect(TokenKind::kRightParen, "after the range")))
    return nullptr;
  if (!block(node->body, "after the range")) return nullptr;
  const uint32_t below = std::max({height(node->first), height(node->last), height(node->body)});
  return finish(std::move(node), {below});
}

StmtPtr Parser::for_map(Span begin, const Token& variable, ExprPtr map, bool has_parentheses) {
  auto node = make<ForMap>(begin);
  node->variable = variable.text;
  node->variable_span = variable.span;
  node->map = std::move(map);
  if (has_parentheses && !expect(TokenKind::kRightParen, "after the map")) return nullptr;
  if (!block(node->body, "after the map")) return nullptr;
  const uint32_t below = std::max(height(node->map), height(node->body));
  return finish(std::move(node), {below});
}

StmtPtr Parser::unroll_statement() {
  auto node = make<Unroll>(take().span);
  node->count = expression();
  if (!node->count || !block(node->body, "after the number of rounds")) return nullptr;
  const uint32_t below = std::max(height(node->count), height(node->body));
  return finish(std::move(node), {below});
}

StmtPtr Parser::return_statement() {
  auto node = make<Return>(take().span);
  if (!at(TokenKind::kSemicolon) && !at(TokenKind::kRightBrace) && !(node->value = expression()))
    return nullptr;
  const uint32_t below = height(node->value);
  return finish(std::move(node), {below});
}

/// let $x; let $x = e; let $x : type = e;
StmtPtr Parser::let_statement() {
  auto node = make<Let>(take().span);
  if (!at(TokenKind::kVariable)) {
    unexpected("a variable after let");
    return nullptr;
  }
  node->name_span = peek().span;
  node->name = take().text;
  if (accept(TokenKind::kColon) && !type_name(node->type.emplace())) return nullptr;
  if (accept(TokenKind::kAssign) && !(node->value = expression())) return nullptr;
  const uint32_t below = std::max(height(node->value), node->type ? height(*node->type) : 0);
  return finish(std::move(node), {below});
}

StmtPtr Parser::import_statement() {
  auto node = make<ImportStmt>(take().span);
  node->path = take().text;
  return finish(std::move(node), {});
}

StmtPtr Parser::discard_statement() {
  auto node = make<Discard>(take().span);
  take();  // =
  node->value = expression();
  if (!node->value) return nullptr;
  const uint32_t below = height(node->value);
  return finish(std::move(node), {below});
}

StmtPtr Parser::assignment_or_expression() {
  const Span begin = peek().span;
  ExprPtr first = expression();
  if (!first) return nullptr;
  const auto* compound = find_token(kAssignTokens, peek().kind);
  if (compound == nullptr && !at(TokenKind::kAssign)) {
    auto node = make<ExprStmt>(begin);
    node->expr = std::move(first);
    const uint32_t below = height(node->expr);
    return finish(std::move(node), {below});
  }
  if (!is_assignable(*first)) {
    diagnostics_.error(first->span,
                       "syntax error: only variables ($x) and maps (@x) can be assigned to");
    return nullptr;
  }
  take();
  auto node = make<Assign>(begin);
  if (compound != nullptr) node->op = compound->op;
  node->target = std::move(first);
  node->value = expression();
  if (!node->value) return nullptr;
  const uint32_t below = std::max(height(node->target), height(node->value));
  return finish(std::move(node), {below});
}

}  // namespace spile::lang
