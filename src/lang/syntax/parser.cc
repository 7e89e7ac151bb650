#include "lang/syntax/parser.h"

#include <algorithm>
#include <array>
#include <initializer_list>

#include "lang/syntax/attach_point.h"
#include "lang/syntax/lexer.h"

namespace spile::lang {
namespace {

using namespace ast;

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

template <typename Table>
auto find_token(const Table& table, TokenKind kind) -> decltype(table.data()) {
  const auto it = std::ranges::find_if(table, [&](const auto& row) { return row.token == kind; });
  return it == table.end() ? nullptr : &*it;
}

/// Rules of this class: a function that returns a pointer returns null after it has reported a
/// fault, and callers pass that up without another report; the statement or the definition that it
/// belongs to is then skipped.
class Parser {
 public:
  Parser(const Source& source,
         std::vector<Token> tokens,
         const ParseOptions& options,
         Program& program,
         Diagnostics& diagnostics)
      : source_(source),
        tokens_(std::move(tokens)),
        options_(options),
        program_(program),
        diagnostics_(diagnostics) {}

  void script();
  ExprPtr lone_expression();
  std::vector<AttachPoint> lone_attach_point();

 private:
  // Tokens.
  const Token& peek(size_t ahead = 0) const {
    return tokens_[std::min(at_ + ahead, tokens_.size() - 1)];
  }
  bool at(TokenKind kind) const { return peek().kind == kind; }
  bool at_word(std::string_view word, size_t ahead = 0) const;
  const Token& take();
  bool accept(TokenKind kind);
  bool expect(TokenKind kind, std::string_view where);
  void unexpected(std::string_view wanted);
  Span previous_span() const { return at_ == 0 ? Span{} : tokens_[at_ - 1].span; }

  // Nodes.
  template <typename T>
  std::unique_ptr<T> make(Span begin);
  uint32_t height(const Expr* node) const { return node == nullptr ? 0 : heights_[node->id]; }
  uint32_t height(const ExprPtr& node) const { return height(node.get()); }
  uint32_t height(const Stmt* node) const { return node == nullptr ? 0 : heights_[node->id]; }
  uint32_t height(const std::vector<ExprPtr>& nodes) const;
  uint32_t height(const Block& block) const;
  uint32_t height(const std::optional<Block>& block) const { return block ? height(*block) : 0; }
  uint32_t height(const TypeName& type) const;
  template <typename T>
  std::unique_ptr<T> finish(std::unique_ptr<T> node, std::initializer_list<uint32_t> child_heights);

  // Recovery.
  void skip_balanced();
  void skip_statement();
  void skip_definition();

  // The top of a script.
  void definition();
  void c_directive();
  void c_definition();
  bool config_block();
  bool config_entry();
  bool config_value(ConfigEntry& entry);
  bool import();
  bool map_declaration();
  bool routine(Routine::Kind kind);
  bool parameters(Routine& routine);
  bool parameter(Routine& routine);
  bool clause();
  bool attach_points(Clause& clause);
  void attach_word(Clause& clause);
  bool predicate(Clause& clause);

  // Statements.
  bool block(Block& out, std::string_view of);
  void statements(Block& out);
  StmtPtr statement();
  StmtPtr plain_statement();
  bool statement_end(Stmt& statement);
  StmtPtr if_statement();
  StmtPtr else_branch(std::unique_ptr<If> node);
  StmtPtr while_statement();
  StmtPtr for_statement();
  StmtPtr for_range(Span begin, const Token& variable, ExprPtr first, bool has_parentheses);
  StmtPtr for_map(Span begin, const Token& variable, ExprPtr map, bool has_parentheses);
  StmtPtr unroll_statement();
  StmtPtr return_statement();
  StmtPtr let_statement();
  StmtPtr import_statement();
  StmtPtr discard_statement();
  StmtPtr block_statement();
  StmtPtr assignment_or_expression();
  template <typename T>
  StmtPtr keyword_statement();

  // Expressions.
  ExprPtr expression();
  ExprPtr ternary();
  ExprPtr ternary_tail(ExprPtr condition);
  ExprPtr binary(int lowest);
  ExprPtr unary();
  ExprPtr prefix_inc_dec();
  ExprPtr cast();
  ExprPtr postfix(ExprPtr base);
  ExprPtr postfix_index(ExprPtr base);
  ExprPtr postfix_dot(ExprPtr base);
  ExprPtr postfix_inc_dec(ExprPtr base);
  ExprPtr primary();
  ExprPtr literal();
  ExprPtr map();
  ExprPtr parenthesised();
  ExprPtr tuple(Span begin, ExprPtr first);
  ExprPtr record(Span begin);
  ExprPtr block_expression();
  ExprPtr if_expression();
  ExprPtr name();
  ExprPtr call();
  ExprPtr argument();
  ExprPtr sizeof_call();
  ExprPtr offsetof_call();
  ExprPtr comptime();
  bool expression_list(std::vector<ExprPtr>& out, TokenKind close, std::string_view where);

  // Types.
  bool type_name(TypeName& out);
  bool typeof_base(TypeName& out);
  bool type_suffixes(TypeName& out);
  bool starts_type() const;
  bool starts_cast() const;
  bool is_operand_start(const Token& token) const;

  /// Counts nesting while it lives.
  class Nest {
   public:
    explicit Nest(Parser& parser) : parser_(parser) { parser_.nesting_++; }
    ~Nest() { parser_.nesting_--; }
    Nest(const Nest&) = delete;
    Nest& operator=(const Nest&) = delete;
    /// Reports it and returns false when the script is nested too deeply.
    bool ok();

   private:
    Parser& parser_;
  };

  const Source& source_;
  const std::vector<Token> tokens_;
  const ParseOptions& options_;
  Program& program_;
  Diagnostics& diagnostics_;
  size_t at_ = 0;
  uint32_t nesting_ = 0;
  std::vector<uint32_t> heights_;  ///< of finished nodes, by id
};

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

template <typename T>
std::unique_ptr<T> Parser::make(Span begin) {
  auto node = std::make_unique<T>();
  node->id = program_.node_count++;
  node->span = begin;
  heights_.resize(std::max<size_t>(heights_.size(), node->id + size_t{1}));
  return node;
}

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

/// Closes a node at the last token taken. Chains (a + b + c ...) grow trees without recursion here,
/// but everything that walks the tree recurses, so their height is limited as well.
template <typename T>
std::unique_ptr<T> Parser::finish(std::unique_ptr<T> node,
                                  std::initializer_list<uint32_t> child_heights) {
  node->span = cover(node->span, previous_span());
  const uint32_t height = 1 + (child_heights.size() == 0 ? 0 : std::max(child_heights));
  heights_[node->id] = height;
  if (height <= kMaxTreeDepth) return node;
  diagnostics_.error(node->span, "this expression has more than {} levels", kMaxTreeDepth)
      .with_hint("split it into several statements");
  return nullptr;
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

// ---- the top of a script
// ----------------------------------------------------------------------------------------------------

void Parser::script() {
  if (at(TokenKind::kShebang)) program_.shebang = take().span;
  while (!at(TokenKind::kEnd)) definition();
  if (program_.clauses.empty() && program_.routines.empty() && !diagnostics_.has_errors())
    diagnostics_.error({source_.size(), source_.size()}, "the script has no probe")
        .with_hint("for example: BEGIN {{ printf(\"hello\\n\"); }}");
}

void Parser::definition() {
  const size_t before = at_;
  bool ok = true;
  if (at(TokenKind::kDirective)) {
    c_directive();
  } else if (at(TokenKind::kCDefinition)) {
    c_definition();
  } else if (at(TokenKind::kError)) {
    ok = false;
  } else if (at_word("config")) {
    ok = config_block();
  } else if (at_word("import")) {
    ok = import();
  } else if (at_word("let")) {
    ok = map_declaration();
  } else if (at_word("macro")) {
    ok = routine(Routine::Kind::kMacro);
  } else if (at_word("fn")) {
    ok = routine(Routine::Kind::kFunction);
  } else if (at(TokenKind::kRightBrace)) {
    diagnostics_.error(take().span, "syntax error: this '}}' closes nothing");
  } else if (at(TokenKind::kSemicolon)) {
    diagnostics_.error(take().span, "syntax error: a ';' between probes");
  } else {
    ok = clause();
  }
  if (!ok) skip_definition();
  if (at_ == before) take();
}

std::string_view trim(std::string_view text) {
  constexpr std::string_view kBlanks = " \t\r\n\v\f\\";
  const size_t first = text.find_first_not_of(kBlanks);
  if (first == std::string_view::npos) return {};
  return text.substr(first, text.find_last_not_of(kBlanks) - first + 1);
}

bool is_name_byte(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_';
}

std::string_view leading_name(std::string_view text) {
  size_t n = 0;
  while (n < text.size() && is_name_byte(text[n])) n++;
  return text.substr(0, n);
}

Span span_of(const Source& source, std::string_view part) {
  const auto begin = static_cast<uint32_t>(part.data() - source.text().data());
  return {begin, begin + static_cast<uint32_t>(part.size())};
}

CDefinition::Kind directive_kind(std::string_view word) {
  constexpr auto kConditionals =
      std::to_array<std::string_view>({"if", "ifdef", "ifndef", "else", "elif", "endif"});
  if (word == "include") return CDefinition::Kind::kInclude;
  if (word == "define") return CDefinition::Kind::kDefine;
  return std::ranges::find(kConditionals, word) != kConditionals.end()
             ? CDefinition::Kind::kConditional
             : CDefinition::Kind::kOtherDirective;
}

/// `#word rest`. Of `#define NAME rest` the name and the rest are told apart.
void Parser::c_directive() {
  CDefinition& out = program_.c_definitions.emplace_back();
  out.span = take().span;
  std::string_view rest = trim(source_.text(out.span).substr(1));
  const std::string_view word = leading_name(rest);
  out.kind = directive_kind(word);
  out.name = word;
  rest.remove_prefix(word.size());
  if (out.kind == CDefinition::Kind::kInclude) {
    out.name = trim(rest);
  } else if (out.kind == CDefinition::Kind::kDefine) {
    rest = trim(rest);
    out.name = leading_name(rest);
    rest.remove_prefix(out.name.size());
    if (out.name.empty()) diagnostics_.error(out.span, "#define needs a name");
    if (rest.starts_with('('))
      out.kind = CDefinition::Kind::kOtherDirective;  // a macro with parameters
  }
  rest = trim(rest);
  out.body = rest.empty() ? Span{out.span.end, out.span.end} : span_of(source_, rest);
}

void Parser::c_definition() {
  CDefinition& out = program_.c_definitions.emplace_back();
  out.span = take().span;
  std::string_view rest = source_.text(out.span);
  const std::string_view word = leading_name(rest);
  out.kind = word == "struct"  ? CDefinition::Kind::kStruct
             : word == "union" ? CDefinition::Kind::kUnion
             : word == "enum"  ? CDefinition::Kind::kEnum
                               : CDefinition::Kind::kTypedef;
  const size_t open = rest.find('{'), close = rest.rfind('}');
  out.body = {out.span.end, out.span.end};
  if (open != std::string_view::npos && close != std::string_view::npos && close > open)
    out.body = span_of(source_, rest.substr(open + 1, close - open - 1));
  rest.remove_prefix(word.size());
  if (out.kind != CDefinition::Kind::kTypedef) out.name = leading_name(trim(rest));
}

bool Parser::config_block() {
  take();
  if (!expect(TokenKind::kAssign, "after config") ||
      !expect(TokenKind::kLeftBrace, "after config ="))
    return false;
  while (!at(TokenKind::kRightBrace) && !at(TokenKind::kEnd)) {
    if (!config_entry()) skip_statement();
  }
  const bool closed = expect(TokenKind::kRightBrace, "at the end of config");
  accept(TokenKind::kSemicolon);
  return closed;
}

bool Parser::config_entry() {
  ConfigEntry entry;
  entry.key_span = peek().span;
  if (!at(TokenKind::kIdentifier)) {
    unexpected("a setting's name");
    return false;
  }
  entry.key = take().text;
  std::ranges::transform(entry.key, entry.key.begin(), [](char c) {
    return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
  });
  constexpr std::string_view kPrefix = "bpftrace_";
  if (entry.key.starts_with(kPrefix)) entry.key.erase(0, kPrefix.size());
  if (!expect(TokenKind::kAssign, "after a setting's name") || !config_value(entry)) return false;
  program_.config.push_back(std::move(entry));
  if (at(TokenKind::kRightBrace)) return true;
  return expect(TokenKind::kSemicolon, "after a setting");
}

bool Parser::config_value(ConfigEntry& entry) {
  const Token& token = peek();
  entry.value_span = token.span;
  switch (token.kind) {
    case TokenKind::kInteger:
      entry.kind = ConfigEntry::Kind::kInteger;
      entry.integer = token.value;
      break;
    case TokenKind::kString:
      entry.kind = ConfigEntry::Kind::kString;
      entry.text = token.text;
      break;
    case TokenKind::kIdentifier:
      entry.text = token.text;
      entry.integer = token.text == "true";
      entry.kind = token.text == "true" || token.text == "false" ? ConfigEntry::Kind::kBool
                                                                 : ConfigEntry::Kind::kName;
      break;
    default: unexpected("a number, a string, a name, true or false"); return false;
  }
  take();
  return true;
}

bool Parser::import() {
  Import out;
  out.span = take().span;
  if (!at(TokenKind::kString)) {
    unexpected("a file name in quotes after import");
    return false;
  }
  out.path = take().text;
  if (!expect(TokenKind::kSemicolon, "after import")) return false;
  out.span = cover(out.span, previous_span());
  program_.imports.push_back(std::move(out));
  return true;
}

/// let @a = lruhash(100);
bool Parser::map_declaration() {
  MapDeclaration out;
  out.span = take().span;
  if (!at(TokenKind::kMap)) {
    unexpected("a map after let");
    return false;
  }
  out.name_span = peek().span;
  out.name = take().text;
  if (!expect(TokenKind::kAssign, "after the map's name")) return false;
  if (!at(TokenKind::kIdentifier)) {
    unexpected("a kind of map: hash, lruhash, percpuhash or percpulruhash");
    return false;
  }
  out.type_span = peek().span;
  out.type = take().text;
  if (!expect(TokenKind::kLeftParen, "after the kind of map")) return false;
  if (!at(TokenKind::kRightParen) && !(out.max_entries = expression())) return false;
  if (!expect(TokenKind::kRightParen, "after the number of entries") ||
      !expect(TokenKind::kSemicolon, "after a map declaration"))
    return false;
  out.span = cover(out.span, previous_span());
  program_.map_declarations.push_back(std::move(out));
  return true;
}

bool Parser::routine(Routine::Kind kind) {
  Routine out;
  out.kind = kind;
  out.span = take().span;
  out.name_span = peek().span;
  out.name = take().text;  // the lexer saw that it is a name
  if (!parameters(out)) return false;
  if (accept(TokenKind::kColon) && !type_name(out.return_type.emplace())) return false;
  if (!block(out.body, kind == Routine::Kind::kMacro ? "of the macro" : "of the function"))
    return false;
  out.span = cover(out.span, previous_span());
  program_.routines.push_back(std::move(out));
  return true;
}

bool Parser::parameters(Routine& routine) {
  routine.has_parentheses = accept(TokenKind::kLeftParen);
  if (!routine.has_parentheses) return true;
  while (!at(TokenKind::kRightParen)) {
    if (!parameter(routine)) return false;
    if (!accept(TokenKind::kComma)) break;
  }
  return expect(TokenKind::kRightParen, "after the parameters");
}

bool Parser::parameter(Routine& routine) {
  if (!at(TokenKind::kVariable) && !at(TokenKind::kMap) && !at(TokenKind::kIdentifier)) {
    unexpected("a parameter");
    return false;
  }
  Parameter out;
  out.span = peek().span;
  out.name = take().text;
  if (accept(TokenKind::kColon) && !type_name(out.type.emplace())) return false;
  routine.parameters.push_back(std::move(out));
  return true;
}

bool Parser::clause() {
  Clause out;
  out.span = peek().span;
  if (!attach_points(out) || !predicate(out)) return false;
  if (!block(out.body, "after the probe")) return false;
  out.span = cover(out.span, previous_span());
  if (!out.attach_points.empty()) program_.clauses.push_back(std::move(out));
  return true;
}

/// A list between commas; a wrong one does not keep the others and the body from being read.
bool Parser::attach_points(Clause& clause) {
  if (at(TokenKind::kAttachAssign)) clause.name = take().text;
  if (!at(TokenKind::kAttachWord)) {
    unexpected("a probe");
    return false;
  }
  while (at(TokenKind::kAttachWord)) {
    attach_word(clause);
    if (!accept(TokenKind::kComma)) break;
  }
  if (!at(TokenKind::kAttachWord)) return true;
  unexpected("',', a predicate or '{' after a probe");
  return false;
}

void Parser::attach_word(Clause& clause) {
  const Token& token = take();
  auto points = read_attach_point(token.text, token.span, options_.positional, diagnostics_);
  for (AttachPoint& point : points) clause.attach_points.push_back(std::move(point));
}

bool Parser::predicate(Clause& clause) {
  const Span begin = peek().span;
  if (!accept(TokenKind::kPredicateBegin)) return true;
  clause.predicate = expression();
  if (!clause.predicate) {
    while (!at(TokenKind::kPredicateEnd) && !at(TokenKind::kLeftBrace) && !at(TokenKind::kEnd))
      take();
  }
  if (accept(TokenKind::kPredicateEnd)) return true;
  if (clause.predicate) {
    if (at(TokenKind::kLeftBrace)) {
      diagnostics_.error(begin, "syntax error: this predicate is not closed before '{{'")
          .with_hint("write /condition/");
      return true;
    }
    unexpected("an operator or the '/' that closes the predicate");
  }
  return at(TokenKind::kLeftBrace);
}

// ---- statements
// -------------------------------------------------------------------------------------------------------------

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

bool is_assignable(const Expr& node) {
  return node.kind == ExprKind::kVariable || node.kind == ExprKind::kMap;
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

// ---- expressions
// ------------------------------------------------------------------------------------------------------------

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

// ---- types
// ------------------------------------------------------------------------------------------------------------------

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

}  // namespace

ast::Program parse(const Source& source, const ParseOptions& options, Diagnostics& diagnostics) {
  ast::Program program;
  Parser(source, lex(source, diagnostics), options, program, diagnostics).script();
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
