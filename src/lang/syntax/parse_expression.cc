// Expressions, by precedence climbing.
#include <algorithm>
#include <array>

#include "lang/syntax/descent.h"

namespace spile::lang {

namespace {

struct BinaryToken {
  TokenKind token;
  BinaryOp op;
  int precedence;  ///< C's, higher binds tighter
};
constexpr auto kBinaryTokens = std::to_array<BinaryToken>({
    {TokenKind::kLogOr, BinaryOp::kLogOr, 1},
    {TokenKind::kLogAnd, BinaryOp::kLogAnd, 2},
    {TokenKind::kPipe, BinaryOp::kBitOr, 3},
    {TokenKind::kCaret, BinaryOp::kBitXor, 4},
    {TokenKind::kAmp, BinaryOp::kBitAnd, 5},
    {TokenKind::kEq, BinaryOp::kEq, 6},
    {TokenKind::kNe, BinaryOp::kNe, 6},
    {TokenKind::kLt, BinaryOp::kLt, 7},
    {TokenKind::kGt, BinaryOp::kGt, 7},
    {TokenKind::kLe, BinaryOp::kLe, 7},
    {TokenKind::kGe, BinaryOp::kGe, 7},
    {TokenKind::kShl, BinaryOp::kShl, 8},
    {TokenKind::kShr, BinaryOp::kShr, 8},
    {TokenKind::kPlus, BinaryOp::kAdd, 9},
    {TokenKind::kMinus, BinaryOp::kSub, 9},
    {TokenKind::kStar, BinaryOp::kMul, 10},
    {TokenKind::kSlash, BinaryOp::kDiv, 10},
    {TokenKind::kPercent, BinaryOp::kMod, 10},
});

struct PrefixToken {
  TokenKind token;
  UnaryOp op;
};
constexpr auto kPrefixTokens = std::to_array<PrefixToken>({
    {TokenKind::kMinus, UnaryOp::kNegate},
    {TokenKind::kNot, UnaryOp::kNot},
    {TokenKind::kTilde, UnaryOp::kBitNot},
    {TokenKind::kStar, UnaryOp::kDeref},
    {TokenKind::kAmp, UnaryOp::kAddressOf},
    {TokenKind::kPlus, UnaryOp::kPlus},
});

}  // namespace

ExprPtr Parser::expression() {
  Nest nest(*this);
  return nest.ok() ? ternary() : nullptr;
}

ExprPtr Parser::ternary() {
  ExprPtr condition = binary(1);
  if (!condition || !accept(TokenKind::kQuestion)) return condition;
  return ternary_tail(std::move(condition));
}

/// After the '?'. `c ?: y` has no middle.
ExprPtr Parser::ternary_tail(ExprPtr condition) {
  Nest nest(*this);
  if (!nest.ok()) return nullptr;
  auto node = make<Ternary>(condition->span);
  node->condition = std::move(condition);
  if (!at(TokenKind::kColon) && !(node->then_value = ternary())) return nullptr;
  if (!expect(TokenKind::kColon, "between the two values of '?'")) return nullptr;
  if (!(node->else_value = ternary())) return nullptr;
  const uint32_t below =
      std::max({height(node->condition), height(node->then_value), height(node->else_value)});
  return finish(std::move(node), {below});
}

/// Precedence climbing: everything that binds at least as tightly as `lowest`.
ExprPtr Parser::binary(int lowest) {
  ExprPtr left = unary();
  while (left) {
    const auto* row = find_token(kBinaryTokens, peek().kind);
    if (row == nullptr || row->precedence < lowest) break;
    take();
    auto node = make<Binary>(left->span);
    node->op = row->op;
    node->left = std::move(left);
    node->right = binary(row->precedence + 1);
    if (!node->right) return nullptr;
    const uint32_t below = std::max(height(node->left), height(node->right));
    left = finish(std::move(node), {below});
  }
  return left;
}

ExprPtr Parser::unary() {
  Nest nest(*this);
  if (!nest.ok()) return nullptr;
  if (at(TokenKind::kPlusPlus) || at(TokenKind::kMinusMinus)) return prefix_inc_dec();
  if (at_word("comptime")) return comptime();
  if (at(TokenKind::kLeftParen) && starts_cast()) return cast();
  const auto* row = find_token(kPrefixTokens, peek().kind);
  if (row == nullptr) return postfix(primary());
  auto node = make<Unary>(take().span);
  node->operator_at = node->span.begin;
  node->op = row->op;
  node->operand = unary();
  if (!node->operand) return nullptr;
  const uint32_t below = height(node->operand);
  return finish(std::move(node), {below});
}

ExprPtr Parser::comptime() {
  auto node = make<Comptime>(take().span);
  node->operand = unary();
  if (!node->operand) return nullptr;
  const uint32_t below = height(node->operand);
  return finish(std::move(node), {below});
}

ExprPtr Parser::prefix_inc_dec() {
  const Token& token = take();
  auto node = make<IncDec>(token.span);
  node->operator_at = token.span.begin;
  node->is_increment = token.kind == TokenKind::kPlusPlus;
  node->is_prefix = true;
  node->target = unary();
  if (!node->target) return nullptr;
  if (!is_assignable(*node->target)) {
    diagnostics_.error(node->target->span, "syntax error: {} needs a variable ($x) or a map (@x)",
                       describe(token.kind));
    return nullptr;
  }
  const uint32_t below = height(node->target);
  return finish(std::move(node), {below});
}

ExprPtr Parser::cast() {
  auto node = make<Cast>(take().span);
  if (!type_name(node->type) || !expect(TokenKind::kRightParen, "after the type")) return nullptr;
  node->operand = unary();
  if (!node->operand) return nullptr;
  const uint32_t below = std::max(height(node->operand), height(node->type));
  return finish(std::move(node), {below});
}

ExprPtr Parser::postfix(ExprPtr base) {
  while (base) {
    if (at(TokenKind::kLeftBracket)) {
      base = postfix_index(std::move(base));
    } else if (at(TokenKind::kDot) || at(TokenKind::kArrow)) {
      base = postfix_dot(std::move(base));
    } else if (at(TokenKind::kPlusPlus) || at(TokenKind::kMinusMinus)) {
      if (!is_assignable(*base)) break;
      base = postfix_inc_dec(std::move(base));
    } else {
      break;
    }
  }
  return base;
}

ExprPtr Parser::postfix_index(ExprPtr base) {
  auto node = make<Index>(base->span);
  node->base = std::move(base);
  take();
  node->index = expression();
  if (!node->index || !expect(TokenKind::kRightBracket, "after the index")) return nullptr;
  const uint32_t below = std::max(height(node->base), height(node->index));
  return finish(std::move(node), {below});
}

/// base.name, base->name, base.0
ExprPtr Parser::postfix_dot(ExprPtr base) {
  const bool is_arrow = take().kind == TokenKind::kArrow;
  const uint32_t below = height(base);
  if (!is_arrow && at(TokenKind::kInteger)) {
    const Token& number = take();
    if (base->kind == ExprKind::kInteger) {
      diagnostics_.error(cover(base->span, number.span),
                         "syntax error: there are no floating-point numbers");
      return nullptr;
    }
    constexpr uint64_t kMostFields = 65535;
    if (number.value > kMostFields) {
      diagnostics_.error(number.span, "a tuple has no field {}", number.value);
      return nullptr;
    }
    auto node = make<TupleField>(base->span);
    node->base = std::move(base);
    node->index = static_cast<uint32_t>(number.value);
    return finish(std::move(node), {below});
  }
  if (!at(TokenKind::kIdentifier)) {
    unexpected(is_arrow ? "a field's name after '->'" : "a field's name or number after '.'");
    return nullptr;
  }
  auto node = make<Field>(base->span);
  node->base = std::move(base);
  node->is_arrow = is_arrow;
  node->name_span = peek().span;
  node->name = take().text;
  return finish(std::move(node), {below});
}

ExprPtr Parser::postfix_inc_dec(ExprPtr base) {
  auto node = make<IncDec>(base->span);
  node->is_increment = take().kind == TokenKind::kPlusPlus;
  node->target = std::move(base);
  const uint32_t below = height(node->target);
  return finish(std::move(node), {below});
}

ExprPtr Parser::primary() {
  switch (peek().kind) {
    case TokenKind::kInteger:
    case TokenKind::kString:
    case TokenKind::kVariable:
    case TokenKind::kPositional:
    case TokenKind::kPositionalCount: return literal();
    case TokenKind::kMap: return map();
    case TokenKind::kLeftParen: return parenthesised();
    case TokenKind::kLeftBrace: return block_expression();
    case TokenKind::kIdentifier: return name();
    default: unexpected("an expression"); return nullptr;
  }
}

/// The leaves that are one token.
ExprPtr Parser::literal() {
  const Token& token = take();
  switch (token.kind) {
    case TokenKind::kInteger: {
      auto node = make<Integer>(token.span);
      node->value = token.value;
      node->is_duration = token.is_duration;
      node->is_unsigned = token.is_unsigned;
      return finish(std::move(node), {});
    }
    case TokenKind::kString: {
      auto node = make<String>(token.span);
      node->value = token.text;
      return finish(std::move(node), {});
    }
    case TokenKind::kVariable: {
      auto node = make<Variable>(token.span);
      node->name = token.text;
      return finish(std::move(node), {});
    }
    case TokenKind::kPositional: {
      auto node = make<Positional>(token.span);
      node->index = static_cast<uint32_t>(token.value);
      return finish(std::move(node), {});
    }
    default: return finish(make<PositionalCount>(token.span), {});
  }
}

ExprPtr Parser::map() {
  const Token& token = take();
  auto node = make<Map>(token.span);
  node->name = token.text;
  node->name_span = token.span;
  if (accept(TokenKind::kLeftBracket) &&
      !expression_list(node->keys, TokenKind::kRightBracket, "after the map's key"))
    return nullptr;
  const uint32_t below = height(node->keys);
  return finish(std::move(node), {below});
}

/// One expression or more between commas, and the closing token.
bool Parser::expression_list(std::vector<ExprPtr>& out, TokenKind close, std::string_view where) {
  do {
    ExprPtr node = expression();
    if (!node) return false;
    out.push_back(std::move(node));
  } while (accept(TokenKind::kComma));
  return expect(close, where);
}

/// (e), (), (e,), (e, e), (name=e, ...)
ExprPtr Parser::parenthesised() {
  const Span begin = take().span;
  if (at(TokenKind::kRightParen)) return tuple(begin, nullptr);
  if (at(TokenKind::kIdentifier) && peek(1).kind == TokenKind::kAssign) return record(begin);
  ExprPtr inner = expression();
  if (!inner) return nullptr;
  if (at(TokenKind::kComma)) return tuple(begin, std::move(inner));
  if (!expect(TokenKind::kRightParen, "to close the parenthesis")) return nullptr;
  inner->span = cover(begin, previous_span());
  return inner;
}

ExprPtr Parser::tuple(Span begin, ExprPtr first) {
  auto node = make<Tuple>(begin);
  if (first) node->elements.push_back(std::move(first));
  while (accept(TokenKind::kComma)) {
    if (at(TokenKind::kRightParen)) break;
    ExprPtr element = expression();
    if (!element) return nullptr;
    node->elements.push_back(std::move(element));
  }
  if (!expect(TokenKind::kRightParen, "to close the tuple")) return nullptr;
  const uint32_t below = height(node->elements);
  return finish(std::move(node), {below});
}

ExprPtr Parser::record(Span begin) {
  auto node = make<Record>(begin);
  uint32_t below = 0;
  do {
    if (at(TokenKind::kRightParen)) break;
    if (!at(TokenKind::kIdentifier)) {
      unexpected("a field's name");
      return nullptr;
    }
    Record::Member member;
    member.name_span = peek().span;
    member.name = take().text;
    if (!expect(TokenKind::kAssign, "after the field's name") || !(member.value = expression()))
      return nullptr;
    below = std::max(below, height(member.value));
    node->members.push_back(std::move(member));
  } while (accept(TokenKind::kComma));
  if (!expect(TokenKind::kRightParen, "to close the record")) return nullptr;
  return finish(std::move(node), {below});
}

ExprPtr Parser::block_expression() {
  auto node = make<BlockExpr>(peek().span);
  if (!block(node->block, "here")) return nullptr;
  const uint32_t below = height(node->block);
  return finish(std::move(node), {below});
}

ExprPtr Parser::if_expression() {
  auto node = make<IfExpr>(peek().span);
  node->statement = if_statement();
  if (!node->statement) return nullptr;
  const uint32_t below = height(node->statement.get());
  return finish(std::move(node), {below});
}

/// A bare name, or what starts with one.
ExprPtr Parser::name() {
  constexpr auto kStatementWords =
      std::to_array<std::string_view>({"else", "while", "for", "unroll", "break", "continue",
                                       "return", "let", "struct", "union", "enum"});
  const Token& token = peek();
  if (token.text == "if") return if_expression();
  const bool called = peek(1).kind == TokenKind::kLeftParen;
  if (token.text == "sizeof" && called) return sizeof_call();
  if (token.text == "offsetof" && called) return offsetof_call();
  if (std::ranges::find(kStatementWords, token.text) != kStatementWords.end()) {
    unexpected("an expression");
    return nullptr;
  }
  if (called) return call();
  if (token.text == "true" || token.text == "false") {
    auto node = make<Bool>(take().span);
    node->value = token.text == "true";
    return finish(std::move(node), {});
  }
  auto node = make<Identifier>(take().span);
  node->name = token.text;
  return finish(std::move(node), {});
}

ExprPtr Parser::call() {
  const Token& token = take();
  auto node = make<Call>(token.span);
  node->name = token.text;
  node->name_span = token.span;
  take();  // (
  while (!at(TokenKind::kRightParen)) {
    ExprPtr value = argument();
    if (!value) return nullptr;
    node->arguments.push_back(std::move(value));
    if (!accept(TokenKind::kComma)) break;
  }
  if (!expect(TokenKind::kRightParen, "after the arguments")) return nullptr;
  const uint32_t below = height(node->arguments);
  return finish(std::move(node), {below});
}

ExprPtr Parser::argument() {
  if (!starts_type()) return expression();
  auto node = make<TypeArgument>(peek().span);
  if (!type_name(node->type)) return nullptr;
  const uint32_t below = height(node->type);
  return finish(std::move(node), {below});
}

ExprPtr Parser::sizeof_call() {
  auto node = make<Sizeof>(take().span);
  take();  // (
  if (starts_type()) {
    if (!type_name(node->type.emplace())) return nullptr;
  } else if (!(node->operand = expression())) {
    return nullptr;
  }
  if (!expect(TokenKind::kRightParen, "after sizeof")) return nullptr;
  const uint32_t below = std::max(height(node->operand), node->type ? height(*node->type) : 0);
  return finish(std::move(node), {below});
}

/// offsetof(struct X, a.b)
ExprPtr Parser::offsetof_call() {
  auto node = make<Offsetof>(take().span);
  take();  // (
  if (starts_type()) {
    if (!type_name(node->type.emplace())) return nullptr;
  } else if (!(node->operand = expression())) {
    return nullptr;
  }
  if (!expect(TokenKind::kComma, "and a field after the type")) return nullptr;
  do {
    if (!at(TokenKind::kIdentifier)) {
      unexpected("a field's name");
      return nullptr;
    }
    node->path.push_back(take().text);
  } while (accept(TokenKind::kDot));
  if (!expect(TokenKind::kRightParen, "after offsetof")) return nullptr;
  const uint32_t below = std::max(height(node->operand), node->type ? height(*node->type) : 0);
  return finish(std::move(node), {below});
}

}  // namespace spile::lang
