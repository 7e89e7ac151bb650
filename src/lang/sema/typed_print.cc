#include "lang/sema/typed_print.h"

#include <fmt/format.h>

#include "lang/sema/catalog.h"

namespace spile::lang {

namespace {

using typed::Expr;
using typed::ExprKind;
using typed::Stmt;
using typed::StmtKind;

std::string quoted(std::string_view text) {
  std::string out = "\"";
  for (unsigned char c : text) {
    if (c == '\n') {
      out += "\\n";
    } else if (c == '\t') {
      out += "\\t";
    } else if (c == '"' || c == '\\') {
      out += {'\\', static_cast<char>(c)};
    } else if (c < 0x20 || c == 0x7f) {
      out += fmt::format("\\x{:02x}", c);
    } else {
      out += static_cast<char>(c);
    }
  }
  return out + "\"";
}

std::string_view kind_name(ExprKind kind) {
  switch (kind) {
    case ExprKind::kNumber: return "number";
    case ExprKind::kText: return "text";
    case ExprKind::kVariable: return "variable";
    case ExprKind::kMapRead: return "map-read";
    case ExprKind::kAggregateRead: return "aggregate-read";
    case ExprKind::kContext: return "context";
    case ExprKind::kEntryArgument: return "entry-argument";
    case ExprKind::kDuration: return "duration";
    case ExprKind::kContextString: return "context-string";
    case ExprKind::kContextDataLoc: return "context-data-loc";
    case ExprKind::kBuiltin: return "builtin";
    case ExprKind::kStr: return "str";
    case ExprKind::kBuf: return "buf";
    case ExprKind::kLoad: return "load";
    case ExprKind::kTuple: return "tuple";
    case ExprKind::kTupleField: return "tuple-field";
    case ExprKind::kStack: return "stack";
    case ExprKind::kSymbol: return "symbol";
    case ExprKind::kInet: return "inet";
    case ExprKind::kConvert: return "convert";
    case ExprKind::kCopy: return "copy";
    case ExprKind::kPart: return "part";
    case ExprKind::kBytes: return "bytes";
    case ExprKind::kBytesOf: return "bytes-of";
    case ExprKind::kContextBytes: return "context-bytes";
    case ExprKind::kCompareBytes: return "compare-bytes";
    case ExprKind::kFind: return "find";
    case ExprKind::kErrorf: return "errorf";
    case ExprKind::kWarnf: return "warnf";
    case ExprKind::kByteSwap: return "byte-swap";
    case ExprKind::kStrlen: return "strlen";
    case ExprKind::kTextDiffers: return "text-differs";
    case ExprKind::kCompareMemory: return "compare-memory";
    case ExprKind::kContains: return "contains";
    case ExprKind::kSystem: return "system";
    case ExprKind::kCat: return "cat";
    case ExprKind::kSignal: return "signal";
    case ExprKind::kNegate: return "negate";
    case ExprKind::kBitNot: return "bit-not";
    case ExprKind::kNot: return "not";
    case ExprKind::kArithmetic: return "arithmetic";
    case ExprKind::kCompare: return "compare";
    case ExprKind::kCompareText: return "compare-text";
    case ExprKind::kAnd: return "and";
    case ExprKind::kOr: return "or";
    case ExprKind::kConditional: return "conditional";
    case ExprKind::kElvis: return "elvis";
    case ExprKind::kTruncate: return "truncate";
    case ExprKind::kHasKey: return "has-key";
    case ExprKind::kModifyVariable: return "modify-variable";
    case ExprKind::kModifyMap: return "modify-map";
    case ExprKind::kBlock: return "block";
    case ExprKind::kPrintf: return "printf";
    case ExprKind::kPrintMap: return "print-map";
    case ExprKind::kPrintValue: return "print-value";
    case ExprKind::kClear: return "clear";
    case ExprKind::kZero: return "zero";
    case ExprKind::kDelete: return "delete";
    case ExprKind::kExit: return "exit";
    case ExprKind::kTime: return "time";
    case ExprKind::kJoin: return "join";
    case ExprKind::kOverride: return "override";
  }
  return "";
}

/// Prints one node a line, children two columns further in.
class Printer {
 public:
  explicit Printer(const typed::Program& program) : program_(program) {}

  std::string run() {
    for (const typed::Map& map : program_.maps) print_map(map);
    for (size_t i = 0; i < program_.probes.size(); ++i)
      line(0, "probe {}: {}", i, program_.probes[i].name);
    for (const typed::Clause& clause : program_.clauses) print_clause(clause);
    return std::move(out_);
  }

 private:
  template <typename... Args>
  void line(int depth, fmt::format_string<Args...> format, Args&&... args) {
    out_.append(static_cast<size_t>(depth) * 2, ' ');
    fmt::format_to(std::back_inserter(out_), format, std::forward<Args>(args)...);
    out_ += '\n';
  }

  void print_map(const typed::Map& map) {
    line(0, "map {}[{}] : {} {}{}", map.name, map.is_scalar() ? "" : to_string(map.key),
         map.role == bundle::MapRole::kValue ? "value" : describe(map.role), to_string(map.value),
         map.role == bundle::MapRole::kLhist
             ? fmt::format(" from {} to {} by {}", map.lhist_min, map.lhist_max, map.lhist_step)
         : map.role == bundle::MapRole::kSeries
             ? fmt::format(" every {} ns, the last {}", map.series_ns, map.series_count)
             : "");
  }

  void print_clause(const typed::Clause& clause) {
    clause_ = &clause;
    std::string probes;
    for (int probe : clause.probes) probes += fmt::format(" {}", probe);
    static constexpr std::string_view kContexts[] = {"no context", "registers", "event",
                                                     "typed arguments"};
    line(0, "clause for probes{} ({}, {} bytes)", probes,
         kContexts[static_cast<int>(clause.context.kind)], clause.context.size_bytes);
    print_block(clause.body, 1);
  }

  void print_block(const typed::Block& block, int depth) {
    for (int variable : block.variables) {
      line(depth, "let {} : {}", clause_->variables[variable].name,
           to_string(clause_->variables[variable].type));
    }
    for (const Stmt& stmt : block.statements) print_statement(stmt, depth);
  }

  void print_statement(const Stmt& stmt, int depth) {
    switch (stmt.kind) {
      case StmtKind::kEval: return print_expr(*stmt.expr, depth);
      case StmtKind::kDeclare:
        return line(depth, "declare {}", clause_->variables[stmt.variable].name);
      case StmtKind::kSetVariable:
        line(depth, "set {}", clause_->variables[stmt.variable].name);
        return print_expr(*stmt.expr, depth + 1);
      case StmtKind::kSetMap:
      case StmtKind::kAggregate:
        line(depth, "{} {}", stmt.kind == StmtKind::kSetMap ? "set" : "aggregate",
             program_.maps[stmt.map].name);
        for (const typed::ExprPtr& key : stmt.keys) print_expr(*key, depth + 1, "key ");
        if (stmt.expr != nullptr) print_expr(*stmt.expr, depth + 1);
        return;
      case StmtKind::kIf:
        line(depth, "if");
        print_expr(*stmt.expr, depth + 1);
        line(depth, "then");
        print_block(stmt.body, depth + 1);
        if (!stmt.other.statements.empty()) line(depth, "else");
        return print_block(stmt.other, depth + 1);
      case StmtKind::kWhile:
        line(depth, "while");
        print_expr(*stmt.expr, depth + 1);
        line(depth, "do");
        return print_block(stmt.body, depth + 1);
      case StmtKind::kForRange:
        line(depth, "for {} in {}..{}", clause_->variables[stmt.variable].name, stmt.first,
             stmt.last);
        for (const typed::ExprPtr& bound : stmt.keys) print_expr(*bound, depth + 1, "bound ");
        return print_block(stmt.body, depth + 1);
      case StmtKind::kForMap:
        line(depth, "for {} in {}", clause_->variables[stmt.variable].name,
             program_.maps[stmt.map].name);
        return print_block(stmt.body, depth + 1);
      case StmtKind::kUnroll:
        line(depth, "unroll {}", stmt.first);
        return print_block(stmt.body, depth + 1);
      case StmtKind::kBlock: line(depth, "block"); return print_block(stmt.body, depth + 1);
      case StmtKind::kBreak: return line(depth, "break");
      case StmtKind::kContinue: return line(depth, "continue");
      case StmtKind::kReturn:
        line(depth, "return");
        if (stmt.expr != nullptr) print_expr(*stmt.expr, depth + 1);
        return;
      case StmtKind::kLeave: return line(depth, "leave {}", stmt.variable);
    }
  }

  std::string details(const Expr& expr) const {
    switch (expr.kind) {
      case ExprKind::kNumber:
        return expr.type.is_unsigned_number()
                   ? fmt::format(" {}", expr.number)
                   : fmt::format(" {}", static_cast<int64_t>(expr.number));
      case ExprKind::kText:
      case ExprKind::kContains:
      case ExprKind::kFind:
      case ExprKind::kErrorf:
      case ExprKind::kWarnf:
      case ExprKind::kPrintf:
      case ExprKind::kTime:
      case ExprKind::kJoin: return " " + quoted(expr.text);
      case ExprKind::kVariable: return " " + clause_->variables[expr.variable].name;
      case ExprKind::kModifyVariable:
        return fmt::format(" {} {}=", clause_->variables[expr.variable].name,
                           ast::to_string(expr.op));
      case ExprKind::kModifyMap:
        return fmt::format(" {} {}=", program_.maps[expr.map].name, ast::to_string(expr.op));
      case ExprKind::kMapRead:
      case ExprKind::kHasKey:
      case ExprKind::kClear:
      case ExprKind::kZero:
      case ExprKind::kDelete: return " " + program_.maps[expr.map].name;
      case ExprKind::kPrintMap:
        return fmt::format(" {} top {} div {}", program_.maps[expr.map].name, expr.top, expr.div);
      case ExprKind::kContext:
      case ExprKind::kEntryArgument:
      case ExprKind::kContextString:
      case ExprKind::kContextBytes:
      case ExprKind::kContextDataLoc: return fmt::format(" at {}", expr.offset);
      case ExprKind::kBuiltin: return fmt::format(" {}", typed::to_string(expr.builtin));
      case ExprKind::kStr:
      case ExprKind::kBuf: return fmt::format(" at most {}", expr.number);
      case ExprKind::kTupleField: return fmt::format(" .{}", expr.number);
      case ExprKind::kCompare:
        return fmt::format(" {}{}", ast::to_string(expr.op), expr.is_unsigned ? " unsigned" : "");
      case ExprKind::kPart: return fmt::format(" at {}", expr.offset);
      case ExprKind::kArithmetic:
      case ExprKind::kCompareBytes:
      case ExprKind::kCompareText: return fmt::format(" {}", ast::to_string(expr.op));
      default: return "";
    }
  }

  void print_expr(const Expr& expr, int depth, std::string_view prefix = "") {
    std::string type = expr.type.is_none() ? "" : " : " + to_string(expr.type);
    line(depth, "{}{}{}{}", prefix, kind_name(expr.kind), details(expr), type);
    if (expr.block != nullptr) print_block(*expr.block, depth + 1);
    for (const typed::ExprPtr& arg : expr.args) print_expr(*arg, depth + 1);
  }

  const typed::Program& program_;
  const typed::Clause* clause_ = nullptr;
  std::string out_;
};

}  // namespace

std::string print_typed(const typed::Program& program) {
  return Printer(program).run();
}

}  // namespace spile::lang
