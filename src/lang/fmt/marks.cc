#include "lang/fmt/marks.h"

namespace spile::lang {
namespace {

using namespace ast;

/// Visits every node once. Trees are at most kMaxTreeDepth high.
class Marker {
 public:
  explicit Marker(uint32_t size) : marks_(size + 1) {}
  std::vector<uint8_t> take() { return std::move(marks_); }

  void program(const Program& program);

 private:
  void set(uint32_t at, Mark mark) {
    if (at < marks_.size()) marks_[at] |= mark;
  }
  void in_type(Span span, bool is_type) {
    for (uint32_t at = span.begin; at < span.end && at < marks_.size(); at++)
      marks_[at] = static_cast<uint8_t>(is_type ? marks_[at] | kInType : marks_[at] & ~kInType);
  }
  void type(const TypeName& type);
  void optional_type(const std::optional<TypeName>& maybe) {
    if (maybe) type(*maybe);
  }
  void block(const Block& block);
  void stmt(const Stmt& node);
  void if_stmt(const If& node);
  void let(const Let& node);
  void expr(const ExprPtr& node) {
    if (node) expr(*node);
  }
  void exprs(const std::vector<ExprPtr>& nodes) {
    for (const ExprPtr& node : nodes) expr(node);
  }
  void expr(const Expr& node);
  void compound(const Expr& node);

  std::vector<uint8_t> marks_;
};

void Marker::program(const Program& program) {
  for (const ConfigEntry& entry : program.config) set(entry.key_span.begin, kStatement);
  for (const MapDeclaration& declaration : program.map_declarations) expr(declaration.max_entries);
  for (const Routine& routine : program.routines) {
    for (const Parameter& parameter : routine.parameters) {
      if (parameter.type) set(parameter.span.begin, kDeclared);
      optional_type(parameter.type);
    }
    optional_type(routine.return_type);
    block(routine.body);
  }
  for (const Clause& clause : program.clauses) {
    expr(clause.predicate);
    block(clause.body);
  }
}

/// The operand of typeof and the size of an array are expressions again: their '*' multiplies.
void Marker::type(const TypeName& type) {
  in_type(type.span, true);
  if (type.typeof_operand) {
    in_type(type.typeof_operand->span, false);
    expr(*type.typeof_operand);
  }
  if (type.typeof_type) this->type(*type.typeof_type);
  for (const TypeName::Suffix& suffix : type.suffixes) {
    if (!suffix.size) continue;
    in_type(suffix.size->span, false);
    expr(*suffix.size);
  }
}

void Marker::block(const Block& block) {
  for (const StmtPtr& statement : block.statements) {
    set(statement->span.begin, kStatement);
    stmt(*statement);
  }
}

void Marker::if_stmt(const If& node) {
  expr(node.condition);
  block(node.then_block);
  if (!node.else_block) return;
  const auto& inner = node.else_block->statements;
  // `else if` goes on in its line; only a braced block holds statements.
  const bool is_chain = inner.size() == 1 && inner[0]->kind == StmtKind::kIf &&
                        inner[0]->span.begin == node.else_block->span.begin;
  if (is_chain)
    if_stmt(as<If>(*inner[0]));
  else
    block(*node.else_block);
}

void Marker::let(const Let& node) {
  if (node.type) set(node.name_span.begin, kDeclared);
  optional_type(node.type);
  expr(node.value);
}

void Marker::stmt(const Stmt& node) {
  switch (node.kind) {
    case StmtKind::kExpr: return expr(as<ExprStmt>(node).expr);
    case StmtKind::kAssign: expr(as<Assign>(node).target); return expr(as<Assign>(node).value);
    case StmtKind::kDiscard: return expr(as<Discard>(node).value);
    case StmtKind::kLet: return let(as<Let>(node));
    case StmtKind::kIf: return if_stmt(as<If>(node));
    case StmtKind::kWhile: expr(as<While>(node).condition); return block(as<While>(node).body);
    case StmtKind::kForRange:
      expr(as<ForRange>(node).first);
      expr(as<ForRange>(node).last);
      return block(as<ForRange>(node).body);
    case StmtKind::kForMap: expr(as<ForMap>(node).map); return block(as<ForMap>(node).body);
    case StmtKind::kUnroll: expr(as<Unroll>(node).count); return block(as<Unroll>(node).body);
    case StmtKind::kReturn: return expr(as<Return>(node).value);
    case StmtKind::kBlock: return block(as<BlockStmt>(node).block);
    case StmtKind::kBreak:
    case StmtKind::kContinue:
    case StmtKind::kImport: return;
  }
}

void Marker::expr(const Expr& node) {
  switch (node.kind) {
    case ExprKind::kMap: return exprs(as<Map>(node).keys);
    case ExprKind::kIndex: expr(as<Index>(node).base); return expr(as<Index>(node).index);
    case ExprKind::kField: return expr(as<Field>(node).base);
    case ExprKind::kTupleField: return expr(as<TupleField>(node).base);
    case ExprKind::kUnary:
      set(as<Unary>(node).operator_at, kPrefix);
      return expr(as<Unary>(node).operand);
    case ExprKind::kIncDec:
      if (as<IncDec>(node).is_prefix) set(as<IncDec>(node).operator_at, kPrefix);
      return expr(as<IncDec>(node).target);
    case ExprKind::kBinary: expr(as<Binary>(node).left); return expr(as<Binary>(node).right);
    case ExprKind::kTernary:
      expr(as<Ternary>(node).condition);
      expr(as<Ternary>(node).then_value);
      return expr(as<Ternary>(node).else_value);
    case ExprKind::kCast:
      type(as<Cast>(node).type);
      set(as<Cast>(node).type.span.end, kTypeEnd);
      return expr(as<Cast>(node).operand);
    default: return compound(node);
  }
}

/// Those that hold a list, a type or statements.
void Marker::compound(const Expr& node) {
  switch (node.kind) {
    case ExprKind::kTuple: return exprs(as<Tuple>(node).elements);
    case ExprKind::kRecord:
      for (const Record::Member& member : as<Record>(node).members) expr(member.value);
      return;
    case ExprKind::kCall: return exprs(as<Call>(node).arguments);
    case ExprKind::kSizeof:
      optional_type(as<Sizeof>(node).type);
      return expr(as<Sizeof>(node).operand);
    case ExprKind::kOffsetof:
      optional_type(as<Offsetof>(node).type);
      return expr(as<Offsetof>(node).operand);
    case ExprKind::kTypeArgument: return type(as<TypeArgument>(node).type);
    case ExprKind::kBlock: return block(as<BlockExpr>(node).block);
    case ExprKind::kIf: return stmt(*as<IfExpr>(node).statement);
    case ExprKind::kComptime: return expr(as<Comptime>(node).operand);
    default: return;  // leaves
  }
}

}  // namespace

std::vector<uint8_t> marks_of(const Program& program, uint32_t source_size) {
  Marker marker(source_size);
  marker.program(program);
  return marker.take();
}

}  // namespace spile::lang
