#include "lang/syntax/print.h"

#include <iterator>

namespace spile::lang {
namespace {

using namespace ast;

/// Bytes as a script would write them in quotes.
std::string quoted(std::string_view text) {
  std::string out = "\"";
  for (const char c : text) {
    switch (c) {
      case '\n': out += "\\n"; break;
      case '\t': out += "\\t"; break;
      case '\r': out += "\\r"; break;
      case '"': out += "\\\""; break;
      case '\\': out += "\\\\"; break;
      default:
        if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) {
          out += fmt::format("\\x{:02x}", static_cast<unsigned char>(c));
        } else {
          out += c;
        }
    }
  }
  return out + "\"";
}

/// Prints a tree: one node a line, children one blank further right.
class TreePrinter {
 public:
  std::string take() { return std::move(out_); }

  void program(const Program& program);
  void expr(const Expr& node);

 private:
  /// Indents what is printed while it lives.
  class Deeper {
   public:
    explicit Deeper(TreePrinter& printer) : printer_(printer) { printer_.indent_++; }
    ~Deeper() { printer_.indent_--; }
    Deeper(const Deeper&) = delete;
    Deeper& operator=(const Deeper&) = delete;

   private:
    TreePrinter& printer_;
  };

  template <typename... Args>
  void line(fmt::format_string<Args...> format, Args&&... args) {
    out_.append(indent_, ' ');
    fmt::format_to(std::back_inserter(out_), format, std::forward<Args>(args)...);
    out_ += '\n';
  }
  void child(const ExprPtr& node) {
    const Deeper deeper(*this);
    if (node) expr(*node);
  }
  void children(const std::vector<ExprPtr>& nodes) {
    for (const ExprPtr& node : nodes) child(node);
  }
  void labelled(std::string_view label, const ExprPtr& node);
  void block(const Block& block);
  void labelled(std::string_view label, const Block& block);
  void record(const Record& node);

  void config(const ConfigEntry& entry);
  void c_definition(const CDefinition& definition);
  void map_declaration(const MapDeclaration& declaration);
  void routine(const Routine& routine);
  void clause(const Clause& clause);
  void attach_point(const AttachPoint& point);

  void stmt(const Stmt& node);
  void if_stmt(const If& node);
  void let(const Let& node);
  void assign(const Assign& node);
  void leaf(const Expr& node);
  void access(const Expr& node);
  void operation(const Expr& node);
  void special(const Expr& node);

  std::string out_;
  size_t indent_ = 0;
};

// ---- the top of a script
// ----------------------------------------------------------------------------------------------------

std::string_view kind_name(CDefinition::Kind kind) {
  switch (kind) {
    case CDefinition::Kind::kInclude: return "include";
    case CDefinition::Kind::kDefine: return "define";
    case CDefinition::Kind::kConditional: return "conditional";
    case CDefinition::Kind::kOtherDirective: return "directive";
    case CDefinition::Kind::kStruct: return "struct";
    case CDefinition::Kind::kUnion: return "union";
    case CDefinition::Kind::kEnum: return "enum";
    case CDefinition::Kind::kTypedef: return "typedef";
  }
  return "?";
}

void TreePrinter::program(const Program& program) {
  line("program");
  const Deeper deeper(*this);
  for (const CDefinition& definition : program.c_definitions) c_definition(definition);
  for (const ConfigEntry& entry : program.config) config(entry);
  for (const Import& import : program.imports) line("import: {}", quoted(import.path));
  for (const MapDeclaration& declaration : program.map_declarations) map_declaration(declaration);
  for (const Routine& r : program.routines) routine(r);
  for (const Clause& c : program.clauses) clause(c);
}

void TreePrinter::c_definition(const CDefinition& definition) {
  line("{}: {}", kind_name(definition.kind), definition.name);
}

void TreePrinter::config(const ConfigEntry& entry) {
  switch (entry.kind) {
    case ConfigEntry::Kind::kInteger: return line("config: {} = {}", entry.key, entry.integer);
    case ConfigEntry::Kind::kString: return line("config: {} = {}", entry.key, quoted(entry.text));
    case ConfigEntry::Kind::kBool:
    case ConfigEntry::Kind::kName: return line("config: {} = {}", entry.key, entry.text);
  }
}

void TreePrinter::map_declaration(const MapDeclaration& declaration) {
  line("map: {} {}", declaration.name, declaration.type);
  child(declaration.max_entries);
}

void TreePrinter::routine(const Routine& routine) {
  std::string parameters;
  for (const Parameter& p : routine.parameters) {
    if (!parameters.empty()) parameters += ", ";
    parameters += p.type ? fmt::format("{} : {}", p.name, ast::to_string(*p.type)) : p.name;
  }
  line("{}: {}({}){}", routine.kind == Routine::Kind::kMacro ? "macro" : "fn", routine.name,
       parameters, routine.return_type ? " : " + ast::to_string(*routine.return_type) : "");
  block(routine.body);
}

void TreePrinter::clause(const Clause& clause) {
  line("clause{}{}", clause.name.empty() ? "" : ": ", clause.name);
  const Deeper deeper(*this);
  for (const AttachPoint& point : clause.attach_points) attach_point(point);
  if (clause.predicate) labelled("predicate", clause.predicate);
  labelled("body", clause.body);
}

void TreePrinter::attach_point(const AttachPoint& p) {
  line("{}", ast::to_string(p.type));
  const Deeper deeper(*this);
  if (p.is_excluded) line("excluded");
  if (!p.target.empty()) line("target: {}", quoted(p.target));
  if (!p.usdt_namespace.empty()) line("namespace: {}", quoted(p.usdt_namespace));
  if (!p.bpf_id.empty()) line("bpf-id: {}", quoted(p.bpf_id));
  if (!p.function.empty()) line("function: {}{}", quoted(p.function), p.is_cpp ? " cpp" : "");
  if (p.offset != 0) line("offset: {}", p.offset);
  if (p.address) line("address: {:#x}", *p.address);
  if (!p.source_file.empty())
    line("source: {}:{}:{}", quoted(p.source_file), p.source_line, p.source_column);
  if (p.period_ns != 0) line("period: {} ns", p.period_ns);
  if (p.frequency_hz != 0) line("frequency: {} hz", p.frequency_hz);
  if (p.count != 0) line("count: {}", p.count);
  if (p.watch_length != 0) line("watch: {} {}", p.watch_length, p.watch_mode);
  if (!p.pin.empty()) line("pin: {}", quoted(p.pin));
}

// ---- statements
// -------------------------------------------------------------------------------------------------------------

void TreePrinter::labelled(std::string_view label, const ExprPtr& node) {
  line("{}", label);
  child(node);
}

void TreePrinter::block(const Block& block) {
  const Deeper deeper(*this);
  for (const StmtPtr& statement : block.statements) stmt(*statement);
}

void TreePrinter::labelled(std::string_view label, const Block& b) {
  line("{}", label);
  block(b);
}

void TreePrinter::if_stmt(const If& node) {
  line("if{}", node.is_comptime ? " comptime" : "");
  const Deeper deeper(*this);
  expr(*node.condition);
  labelled("then", node.then_block);
  if (node.else_block) labelled("else", *node.else_block);
}

void TreePrinter::let(const Let& node) {
  line("let: {}{}", node.name, node.type ? " : " + ast::to_string(*node.type) : "");
  child(node.value);
}

void TreePrinter::assign(const Assign& node) {
  line("{}=", node.op ? ast::to_string(*node.op) : "");
  child(node.target);
  child(node.value);
}

void TreePrinter::stmt(const Stmt& node) {
  switch (node.kind) {
    case StmtKind::kExpr: return expr(*as<ExprStmt>(node).expr);
    case StmtKind::kAssign: return assign(as<Assign>(node));
    case StmtKind::kDiscard: return labelled("discard", as<Discard>(node).value);
    case StmtKind::kLet: return let(as<Let>(node));
    case StmtKind::kIf: return if_stmt(as<If>(node));
    case StmtKind::kWhile:
      labelled("while", as<While>(node).condition);
      return labelled("do", as<While>(node).body);
    case StmtKind::kForRange:
      line("for: {} in range", as<ForRange>(node).variable);
      child(as<ForRange>(node).first);
      child(as<ForRange>(node).last);
      return labelled("do", as<ForRange>(node).body);
    case StmtKind::kForMap:
      line("for: {} in map", as<ForMap>(node).variable);
      child(as<ForMap>(node).map);
      return labelled("do", as<ForMap>(node).body);
    case StmtKind::kUnroll:
      labelled("unroll", as<Unroll>(node).count);
      return labelled("do", as<Unroll>(node).body);
    case StmtKind::kBreak: return line("break");
    case StmtKind::kContinue: return line("continue");
    case StmtKind::kReturn: return labelled("return", as<Return>(node).value);
    case StmtKind::kImport: return line("import: {}", quoted(as<ImportStmt>(node).path));
    case StmtKind::kBlock: return labelled("block", as<BlockStmt>(node).block);
  }
}

// ---- expressions
// ------------------------------------------------------------------------------------------------------------

void TreePrinter::expr(const Expr& node) {
  switch (node.kind) {
    case ExprKind::kInteger:
    case ExprKind::kString:
    case ExprKind::kBool:
    case ExprKind::kIdentifier:
    case ExprKind::kPositional:
    case ExprKind::kPositionalCount:
    case ExprKind::kVariable: return leaf(node);
    case ExprKind::kMap:
    case ExprKind::kIndex:
    case ExprKind::kField:
    case ExprKind::kTupleField: return access(node);
    case ExprKind::kUnary:
    case ExprKind::kIncDec:
    case ExprKind::kBinary:
    case ExprKind::kTernary:
    case ExprKind::kCast: return operation(node);
    default: return special(node);
  }
}

void TreePrinter::leaf(const Expr& node) {
  switch (node.kind) {
    case ExprKind::kInteger:
      return line("int: {}{}", as<Integer>(node).value, as<Integer>(node).is_duration ? " ns" : "");
    case ExprKind::kString: return line("string: {}", quoted(as<String>(node).value));
    case ExprKind::kBool: return line("bool: {}", as<Bool>(node).value);
    case ExprKind::kIdentifier: return line("name: {}", as<Identifier>(node).name);
    case ExprKind::kPositional: return line("param: ${}", as<Positional>(node).index);
    case ExprKind::kVariable: return line("variable: {}", as<Variable>(node).name);
    default: return line("param: $#");
  }
}

void TreePrinter::access(const Expr& node) {
  if (const auto* map = try_as<Map>(&node)) {
    line("map: {}", map->name);
    children(map->keys);
  } else if (const auto* index = try_as<Index>(&node)) {
    line("[]");
    child(index->base);
    child(index->index);
  } else if (const auto* field = try_as<Field>(&node)) {
    line("{}{}", field->is_arrow ? "->" : ".", field->name);
    child(field->base);
  } else {
    line(".{}", as<TupleField>(node).index);
    child(as<TupleField>(node).base);
  }
}

void TreePrinter::operation(const Expr& node) {
  switch (node.kind) {
    case ExprKind::kUnary:
      line("unary {}", ast::to_string(as<Unary>(node).op));
      return child(as<Unary>(node).operand);
    case ExprKind::kIncDec: {
      const auto& n = as<IncDec>(node);
      line("{} {}", n.is_prefix ? "prefix" : "postfix", n.is_increment ? "++" : "--");
      return child(n.target);
    }
    case ExprKind::kBinary:
      line("{}", ast::to_string(as<Binary>(node).op));
      child(as<Binary>(node).left);
      return child(as<Binary>(node).right);
    case ExprKind::kTernary:
      line("{}", as<Ternary>(node).then_value ? "?:" : "?: same");
      child(as<Ternary>(node).condition);
      child(as<Ternary>(node).then_value);
      return child(as<Ternary>(node).else_value);
    default:
      line("cast: {}", ast::to_string(as<Cast>(node).type));
      return child(as<Cast>(node).operand);
  }
}

void TreePrinter::record(const Record& node) {
  line("record");
  const Deeper deeper(*this);
  for (const Record::Member& member : node.members) labelled(member.name, member.value);
}

std::string dotted(const std::vector<std::string>& path) {
  return fmt::format("{}", fmt::join(path, "."));
}

void TreePrinter::special(const Expr& node) {
  switch (node.kind) {
    case ExprKind::kTuple: line("tuple"); return children(as<Tuple>(node).elements);
    case ExprKind::kRecord: return record(as<Record>(node));
    case ExprKind::kCall:
      line("call: {}", as<Call>(node).name);
      return children(as<Call>(node).arguments);
    case ExprKind::kSizeof:
      line("sizeof{}", as<Sizeof>(node).type ? ": " + ast::to_string(*as<Sizeof>(node).type) : "");
      return child(as<Sizeof>(node).operand);
    case ExprKind::kOffsetof: {
      const auto& n = as<Offsetof>(node);
      line("offsetof: {}{}.{}", n.type ? ast::to_string(*n.type) : "", n.type ? " " : "",
           dotted(n.path));
      return child(n.operand);
    }
    case ExprKind::kTypeArgument:
      return line("type: {}", ast::to_string(as<TypeArgument>(node).type));
    case ExprKind::kBlock: return labelled("block", as<BlockExpr>(node).block);
    case ExprKind::kIf: return stmt(*as<IfExpr>(node).statement);
    default: line("comptime"); return child(as<Comptime>(node).operand);
  }
}

// ---- one line
// -----------------------------------------------------------------------------------------------------------------

std::string list(const std::vector<ExprPtr>& nodes) {
  std::string out;
  for (const ExprPtr& node : nodes) {
    if (!out.empty()) out += ", ";
    out += to_source(*node);
  }
  return out;
}

std::string operation_source(const Expr& node) {
  switch (node.kind) {
    case ExprKind::kUnary:
      return fmt::format("{}{}", ast::to_string(as<Unary>(node).op),
                         to_source(*as<Unary>(node).operand));
    case ExprKind::kIncDec: {
      const auto& n = as<IncDec>(node);
      const std::string_view op = n.is_increment ? "++" : "--";
      return n.is_prefix ? fmt::format("{}{}", op, to_source(*n.target))
                         : fmt::format("{}{}", to_source(*n.target), op);
    }
    case ExprKind::kBinary: {
      const auto& n = as<Binary>(node);
      return fmt::format("({} {} {})", to_source(*n.left), ast::to_string(n.op),
                         to_source(*n.right));
    }
    case ExprKind::kTernary: {
      const auto& n = as<Ternary>(node);
      if (!n.then_value)
        return fmt::format("({} ?: {})", to_source(*n.condition), to_source(*n.else_value));
      return fmt::format("({} ? {} : {})", to_source(*n.condition), to_source(*n.then_value),
                         to_source(*n.else_value));
    }
    default:
      return fmt::format("({}){}", ast::to_string(as<Cast>(node).type),
                         to_source(*as<Cast>(node).operand));
  }
}

std::string access_source(const Expr& node) {
  if (const auto* map = try_as<Map>(&node))
    return map->keys.empty() ? map->name : fmt::format("{}[{}]", map->name, list(map->keys));
  if (const auto* index = try_as<Index>(&node))
    return fmt::format("{}[{}]", to_source(*index->base), to_source(*index->index));
  if (const auto* field = try_as<Field>(&node))
    return fmt::format("{}{}{}", to_source(*field->base), field->is_arrow ? "->" : ".",
                       field->name);
  return fmt::format("{}.{}", to_source(*as<TupleField>(node).base), as<TupleField>(node).index);
}

std::string record_source(const Record& node) {
  std::string out;
  for (const Record::Member& member : node.members)
    out += fmt::format("{}{}={}", out.empty() ? "" : ", ", member.name, to_source(*member.value));
  return fmt::format("({})", out);
}

}  // namespace

std::string to_source(const ast::Expr& node) {
  switch (node.kind) {
    case ExprKind::kInteger: return fmt::format("{}", as<Integer>(node).value);
    case ExprKind::kString: return quoted(as<String>(node).value);
    case ExprKind::kBool: return as<Bool>(node).value ? "true" : "false";
    case ExprKind::kIdentifier: return as<Identifier>(node).name;
    case ExprKind::kPositional: return fmt::format("${}", as<Positional>(node).index);
    case ExprKind::kPositionalCount: return "$#";
    case ExprKind::kVariable: return as<Variable>(node).name;
    case ExprKind::kMap:
    case ExprKind::kIndex:
    case ExprKind::kField:
    case ExprKind::kTupleField: return access_source(node);
    case ExprKind::kUnary:
    case ExprKind::kIncDec:
    case ExprKind::kBinary:
    case ExprKind::kTernary:
    case ExprKind::kCast: return operation_source(node);
    case ExprKind::kTuple: {
      const auto& elements = as<Tuple>(node).elements;
      return fmt::format("({}{})", list(elements), elements.size() == 1 ? "," : "");
    }
    case ExprKind::kRecord: return record_source(as<Record>(node));
    case ExprKind::kCall:
      return fmt::format("{}({})", as<Call>(node).name, list(as<Call>(node).arguments));
    case ExprKind::kSizeof: {
      const auto& n = as<Sizeof>(node);
      return fmt::format("sizeof({})", n.type ? ast::to_string(*n.type) : to_source(*n.operand));
    }
    case ExprKind::kOffsetof: {
      const auto& n = as<Offsetof>(node);
      return fmt::format("offsetof({}, {})",
                         n.type ? ast::to_string(*n.type) : to_source(*n.operand), dotted(n.path));
    }
    case ExprKind::kTypeArgument: return ast::to_string(as<TypeArgument>(node).type);
    case ExprKind::kBlock: return "{ ... }";
    case ExprKind::kIf: return "if ... { ... }";
    case ExprKind::kComptime: return "comptime " + to_source(*as<Comptime>(node).operand);
  }
  return "?";
}

std::string print_ast(const ast::Program& program) {
  TreePrinter printer;
  printer.program(program);
  return printer.take();
}

std::string print_ast(const ast::Expr& expr) {
  TreePrinter printer;
  printer.expr(expr);
  return printer.take();
}

std::string print_tokens(const Source& source, std::span<const Token> tokens) {
  std::string out;
  for (const Token& token : tokens) {
    const Position at = source.position(token.span.begin);
    std::string text;
    if (token.kind == TokenKind::kInteger) {
      text = fmt::format("{}{}", token.value, token.is_duration ? " ns" : "");
    } else if (token.kind == TokenKind::kString || token.kind == TokenKind::kCDefinition ||
               token.kind == TokenKind::kDirective) {
      text = quoted(token.text);
    } else {
      text = token.text;
    }
    out += fmt::format("{}:{} {}{}{}\n", at.line, at.column, to_string(token.kind),
                       text.empty() ? "" : " ", text);
  }
  return out;
}

}  // namespace spile::lang
