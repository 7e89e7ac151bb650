// The parser's class, shared by the files that define it: parser.cc (tokens, nodes, recovery,
// entries), parse_script.cc (the top of a script), parse_statement.cc, parse_expression.cc and
// parse_type.cc.
#pragma once

#include <algorithm>
#include <initializer_list>
#include <memory>
#include <optional>
#include <string_view>
#include <utility>
#include <vector>

#include "lang/syntax/parser.h"
#include "lang/syntax/token.h"

namespace spile::lang {

using namespace ast;

template <typename Table>
auto find_token(const Table& table, TokenKind kind) -> decltype(table.data()) {
  const auto it = std::ranges::find_if(table, [&](const auto& row) { return row.token == kind; });
  return it == table.end() ? nullptr : &*it;
}

/// What may stand left of `=`.
inline bool is_assignable(const Expr& node) {
  return node.kind == ExprKind::kVariable || node.kind == ExprKind::kMap;
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
  void c_macro(CDefinition& out, std::string_view rest);
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

template <typename T>
std::unique_ptr<T> Parser::make(Span begin) {
  auto node = std::make_unique<T>();
  node->id = program_.node_count++;
  node->span = begin;
  heights_.resize(std::max<size_t>(heights_.size(), node->id + size_t{1}));
  return node;
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

}  // namespace spile::lang
