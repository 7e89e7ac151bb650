// The script as a tree: what was written, nothing of what it means.
//
// The tree covers the whole language. Whatever is not built yet is parsed all the same and refused
// by name later, so that nobody is told "syntax error" about a correct script.
//
// Every node knows its span and has a dense id (0 .. Program::node_count - 1), so that later stages
// keep what they learn in vectors beside the tree and never change it. Trees are at most
// kMaxTreeDepth high: recursion over them is safe. Nodes are owned by their parents; switch over
// `kind`, then `as<T>(node)`.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "base/error.h"
#include "lang/syntax/source.h"

namespace spile::lang::ast {

using NodeId = uint32_t;

/// The parser refuses scripts whose tree would be higher than this.
inline constexpr uint32_t kMaxTreeDepth = 500;

// ---- expressions
// ----------------------------------------------------------------------------------------------------

enum class ExprKind : uint8_t {
  kInteger,          ///< 1, 0x1f, 1e6, 500ms
  kString,           ///< "text"
  kBool,             ///< true, false
  kIdentifier,       ///< pid, arg0, an enum constant, a macro name: any bare name
  kPositional,       ///< $1
  kPositionalCount,  ///< $#
  kVariable,         ///< $x
  kMap,              ///< @x, @x[key, ...]
  kIndex,            ///< base[index], of anything but a map's first index
  kField,            ///< base.name, base->name
  kTupleField,       ///< base.0
  kUnary,            ///< -x !x ~x *x &x
  kIncDec,           ///< ++x x++ --x x--
  kBinary,           ///< x + y
  kTernary,          ///< c ? x : y, c ?: y
  kCast,             ///< (type)x
  kTuple,            ///< (1, "a"), (1,), ()
  kRecord,           ///< (a=1, b="x")
  kCall,             ///< f(x, ...)
  kSizeof,           ///< sizeof(type or expression)
  kOffsetof,         ///< offsetof(struct X, a.b)
  kTypeArgument,     ///< a type where a call takes one: typeinfo(struct X)
  kBlock,            ///< { statements; value }
  kIf,               ///< if c { x } else { y }, used as a value
  kComptime,         ///< comptime x
};

struct Expr {
  const ExprKind kind;
  NodeId id = 0;
  Span span;

  explicit Expr(ExprKind k) : kind(k) {}
  virtual ~Expr() = default;
  Expr(const Expr&) = delete;
  Expr& operator=(const Expr&) = delete;
};
using ExprPtr = std::unique_ptr<Expr>;

enum class StmtKind : uint8_t {
  kExpr,     ///< printf(...);  @x++;
  kAssign,   ///< $x = e;  @x[k] += e;
  kDiscard,  ///< _ = e;
  kLet,      ///< let $x : type = e;
  kIf,
  kWhile,
  kForRange,  ///< for ($i : a..b) {}
  kForMap,    ///< for ($kv : @m) {}
  kUnroll,
  kBreak,
  kContinue,
  kReturn,
  kImport,  ///< import "stdlib/..." inside a block
  kBlock,   ///< { ... }
};

struct Stmt {
  const StmtKind kind;
  NodeId id = 0;
  Span span;

  explicit Stmt(StmtKind k) : kind(k) {}
  virtual ~Stmt() = default;
  Stmt(const Stmt&) = delete;
  Stmt& operator=(const Stmt&) = delete;
};
using StmtPtr = std::unique_ptr<Stmt>;

/// `{ statements }`. The last statement may be an expression without `;`: the block's value where
/// one is wanted.
struct Block {
  Span span;
  std::vector<StmtPtr> statements;
};

enum class UnaryOp : uint8_t { kNegate, kNot, kBitNot, kDeref, kAddressOf, kPlus };
enum class BinaryOp : uint8_t {
  kMul,
  kDiv,
  kMod,
  kAdd,
  kSub,
  kShl,
  kShr,
  kLt,
  kGt,
  kLe,
  kGe,
  kEq,
  kNe,
  kBitAnd,
  kBitXor,
  kBitOr,
  kLogAnd,
  kLogOr,
};
/// "-", "<<=" without the "=": as written in a script.
std::string_view to_string(UnaryOp op);
std::string_view to_string(BinaryOp op);

/// A type as written: a base, then `*` and `[N]` from left to right: `struct X *[4]` is {kPointer,
/// kArray 4}. string[64], buffer[N] and inet[N] are written alike: base "string" and one kArray.
struct TypeName {
  enum class Base : uint8_t { kNamed, kStruct, kUnion, kEnum, kTypeof };
  struct Suffix {
    bool is_array = false;  ///< else a pointer
    ExprPtr size;           ///< of an array; null for `[]`
  };
  Base base = Base::kNamed;
  std::string name;                       ///< "uint32", "task_struct"; "" for kTypeof
  ExprPtr typeof_operand;                 ///< kTypeof of an expression
  std::unique_ptr<TypeName> typeof_type;  ///< kTypeof of a type
  std::vector<Suffix> suffixes;
  Span span;
};
/// The type as a script writes it, in normal spacing: "struct task_struct *".
std::string to_string(const TypeName& type);
/// True for the names that are types by themselves: uint8 .. int64, bool, void, string, buffer,
/// inet, sum_t, ...
bool is_builtin_type(std::string_view name);

struct Integer : Expr {
  static constexpr ExprKind kKind = ExprKind::kInteger;
  Integer() : Expr(kKind) {}
  uint64_t value = 0;
  bool is_duration = false;  ///< written with ns us ms s m h d; value is then in ns
  bool is_unsigned = false;  ///< written with a u suffix
};

struct String : Expr {
  static constexpr ExprKind kKind = ExprKind::kString;
  String() : Expr(kKind) {}
  std::string value;  ///< escapes replaced; may hold NULs
};

struct Bool : Expr {
  static constexpr ExprKind kKind = ExprKind::kBool;
  Bool() : Expr(kKind) {}
  bool value = false;
};

struct Identifier : Expr {
  static constexpr ExprKind kKind = ExprKind::kIdentifier;
  Identifier() : Expr(kKind) {}
  std::string name;
};

struct Positional : Expr {
  static constexpr ExprKind kKind = ExprKind::kPositional;
  Positional() : Expr(kKind) {}
  uint32_t index = 0;  ///< from 1
};

struct PositionalCount : Expr {
  static constexpr ExprKind kKind = ExprKind::kPositionalCount;
  PositionalCount() : Expr(kKind) {}
};

struct Variable : Expr {
  static constexpr ExprKind kKind = ExprKind::kVariable;
  Variable() : Expr(kKind) {}
  std::string name;  ///< with its sigil: "$x"
};

struct Map : Expr {
  static constexpr ExprKind kKind = ExprKind::kMap;
  Map() : Expr(kKind) {}
  std::string name;           ///< with its sigil: "@", "@x"
  std::vector<ExprPtr> keys;  ///< empty: written without [...]
  Span name_span;
};

struct Index : Expr {
  static constexpr ExprKind kKind = ExprKind::kIndex;
  Index() : Expr(kKind) {}
  ExprPtr base, index;
};

struct Field : Expr {
  static constexpr ExprKind kKind = ExprKind::kField;
  Field() : Expr(kKind) {}
  ExprPtr base;
  std::string name;
  Span name_span;
  bool is_arrow = false;  ///< written ->
};

struct TupleField : Expr {
  static constexpr ExprKind kKind = ExprKind::kTupleField;
  TupleField() : Expr(kKind) {}
  ExprPtr base;
  uint32_t index = 0;
};

struct Unary : Expr {
  static constexpr ExprKind kKind = ExprKind::kUnary;
  Unary() : Expr(kKind) {}
  uint32_t operator_at = 0;  ///< `span` may begin at a '(' before it
  UnaryOp op = UnaryOp::kNegate;
  ExprPtr operand;
};

struct IncDec : Expr {
  static constexpr ExprKind kKind = ExprKind::kIncDec;
  IncDec() : Expr(kKind) {}
  ExprPtr target;  ///< Variable or Map: the parser refuses others
  bool is_increment = true;
  bool is_prefix = false;
  uint32_t operator_at = 0;  ///< of a prefix
};

struct Binary : Expr {
  static constexpr ExprKind kKind = ExprKind::kBinary;
  Binary() : Expr(kKind) {}
  BinaryOp op = BinaryOp::kAdd;
  ExprPtr left, right;
};

struct Ternary : Expr {
  static constexpr ExprKind kKind = ExprKind::kTernary;
  Ternary() : Expr(kKind) {}
  ExprPtr condition;
  ExprPtr then_value;  ///< null for `c ?: y`: the condition's own value, evaluated once
  ExprPtr else_value;
};

struct Cast : Expr {
  static constexpr ExprKind kKind = ExprKind::kCast;
  Cast() : Expr(kKind) {}
  TypeName type;
  ExprPtr operand;
};

struct Tuple : Expr {
  static constexpr ExprKind kKind = ExprKind::kTuple;
  Tuple() : Expr(kKind) {}
  std::vector<ExprPtr> elements;
};

struct Record : Expr {
  static constexpr ExprKind kKind = ExprKind::kRecord;
  Record() : Expr(kKind) {}
  struct Member {
    std::string name;
    Span name_span;
    ExprPtr value;
  };
  std::vector<Member> members;
};

struct Call : Expr {
  static constexpr ExprKind kKind = ExprKind::kCall;
  Call() : Expr(kKind) {}
  std::string name;
  Span name_span;
  std::vector<ExprPtr> arguments;
};

struct Sizeof : Expr {
  static constexpr ExprKind kKind = ExprKind::kSizeof;
  Sizeof() : Expr(kKind) {}
  std::optional<TypeName> type;  ///< else `operand`; a bare name (`sizeof(pid_t)`) is an operand
  ExprPtr operand;
};

struct Offsetof : Expr {
  static constexpr ExprKind kKind = ExprKind::kOffsetof;
  Offsetof() : Expr(kKind) {}
  std::optional<TypeName> type;  ///< else `operand`
  ExprPtr operand;
  std::vector<std::string> path;  ///< a.b is {"a", "b"}
};

struct TypeArgument : Expr {
  static constexpr ExprKind kKind = ExprKind::kTypeArgument;
  TypeArgument() : Expr(kKind) {}
  TypeName type;
};

struct BlockExpr : Expr {
  static constexpr ExprKind kKind = ExprKind::kBlock;
  BlockExpr() : Expr(kKind) {}
  Block block;
};

/// `if` where a value is wanted; an `if` at the start of a statement is a statement (ast::If).
struct IfExpr : Expr {
  static constexpr ExprKind kKind = ExprKind::kIf;
  IfExpr() : Expr(kKind) {}
  StmtPtr statement;  ///< an ast::If
};

struct Comptime : Expr {
  static constexpr ExprKind kKind = ExprKind::kComptime;
  Comptime() : Expr(kKind) {}
  ExprPtr operand;
};

// ---- statements
// -----------------------------------------------------------------------------------------------------

struct ExprStmt : Stmt {
  static constexpr StmtKind kKind = StmtKind::kExpr;
  ExprStmt() : Stmt(kKind) {}
  ExprPtr expr;
  bool has_semicolon = true;  ///< false: the value of its block, where one is wanted
};

struct Assign : Stmt {
  static constexpr StmtKind kKind = StmtKind::kAssign;
  Assign() : Stmt(kKind) {}
  ExprPtr target;              ///< Variable or Map: the parser refuses others
  std::optional<BinaryOp> op;  ///< `+=` is kAdd; none for `=`
  ExprPtr value;
};

struct Discard : Stmt {
  static constexpr StmtKind kKind = StmtKind::kDiscard;
  Discard() : Stmt(kKind) {}
  ExprPtr value;
};

struct Let : Stmt {
  static constexpr StmtKind kKind = StmtKind::kLet;
  Let() : Stmt(kKind) {}
  std::string name;  ///< "$x"
  Span name_span;
  std::optional<TypeName> type;
  ExprPtr value;  ///< null: none given
};

struct If : Stmt {
  static constexpr StmtKind kKind = StmtKind::kIf;
  If() : Stmt(kKind) {}
  ExprPtr condition;
  bool is_comptime = false;
  Block then_block;
  std::optional<Block> else_block;  ///< `else if` is a block with one If
};

struct While : Stmt {
  static constexpr StmtKind kKind = StmtKind::kWhile;
  While() : Stmt(kKind) {}
  ExprPtr condition;
  Block body;
};

struct ForRange : Stmt {
  static constexpr StmtKind kKind = StmtKind::kForRange;
  ForRange() : Stmt(kKind) {}
  std::string variable;  ///< "$i"
  Span variable_span;
  ExprPtr first, last;  ///< `last` itself is not reached
  Block body;
};

struct ForMap : Stmt {
  static constexpr StmtKind kKind = StmtKind::kForMap;
  ForMap() : Stmt(kKind) {}
  std::string variable;  ///< "$kv"
  Span variable_span;
  ExprPtr map;  ///< any expression; only a Map without keys makes sense
  Block body;
};

struct Unroll : Stmt {
  static constexpr StmtKind kKind = StmtKind::kUnroll;
  Unroll() : Stmt(kKind) {}
  ExprPtr count;
  Block body;
};

struct Break : Stmt {
  static constexpr StmtKind kKind = StmtKind::kBreak;
  Break() : Stmt(kKind) {}
};

struct Continue : Stmt {
  static constexpr StmtKind kKind = StmtKind::kContinue;
  Continue() : Stmt(kKind) {}
};

struct Return : Stmt {
  static constexpr StmtKind kKind = StmtKind::kReturn;
  Return() : Stmt(kKind) {}
  ExprPtr value;  ///< null: none given
};

struct ImportStmt : Stmt {
  static constexpr StmtKind kKind = StmtKind::kImport;
  ImportStmt() : Stmt(kKind) {}
  std::string path;
};

struct BlockStmt : Stmt {
  static constexpr StmtKind kKind = StmtKind::kBlock;
  BlockStmt() : Stmt(kKind) {}
  Block block;
};

/// The node as what it is: `as<Call>(expr)`. Checked: a wrong kind is our own bug.
template <typename T>
const T& as(const Expr& node) {
  SPILE_CHECK(node.kind == T::kKind);
  return static_cast<const T&>(node);
}
template <typename T>
const T& as(const Stmt& node) {
  SPILE_CHECK(node.kind == T::kKind);
  return static_cast<const T&>(node);
}
/// Null when the node is something else.
template <typename T>
const T* try_as(const Expr* node) {
  return node != nullptr && node->kind == T::kKind ? static_cast<const T*>(node) : nullptr;
}
template <typename T>
const T* try_as(const Stmt* node) {
  return node != nullptr && node->kind == T::kKind ? static_cast<const T*>(node) : nullptr;
}

// ---- probes
// ---------------------------------------------------------------------------------------------------------

enum class ProbeType : uint8_t {
  kBegin,
  kEnd,
  kUprobe,
  kUretprobe,
  kUsdt,
  kTracepoint,
  kKprobe,
  kKretprobe,
  kFentry,
  kFexit,
  kRawTracepoint,
  kInterval,
  kProfile,
  kSoftware,
  kHardware,
  kWatchpoint,
  kAsyncWatchpoint,
  kIter,
  kSelf,
  kTest,
  kBench,
};
/// The canonical name: "BEGIN", "uprobe", "rawtracepoint".
std::string_view to_string(ProbeType type);

/// One part of an attach point, between separators.
struct AttachPart {
  std::string text;  ///< quotes removed, $N replaced
  Span span;
  bool is_quoted = false;  ///< some of it was quoted
  char separator = ':';    ///< what stands before it: ':' or '@'
};

/// `provider:part:...`. A wildcard in the provider (`k*:f`) makes one AttachPoint for each type it
/// matches.
///
/// The typed fields below `parts` are filled by type, as said beside each. '*' in them is a
/// wildcard.
struct AttachPoint {
  Span span;
  std::string
      text;  ///< with the canonical type, quotes removed, $N replaced: "uprobe:/bin/bash:readline"
  ProbeType type = ProbeType::kBegin;
  Span type_span;
  std::vector<AttachPart> parts;  ///< without the type

  /// uprobe, uretprobe, usdt: path or library, "" when left out (then -p says it). kprobe,
  /// fentry...: module or "". tracepoint, rawtracepoint: category or "". iter: "".
  std::string target;
  /// uprobe..., kprobe..., fentry...: function. tracepoint, rawtracepoint, usdt, software,
  /// hardware: event. iter: what to iterate. self: the signal. test, bench: the name. "" where
  /// `address` or `source_file` says it.
  std::string function;
  std::string usdt_namespace;  ///< usdt: the middle part, or ""
  bool is_excluded = false;    ///< written `!provider:...`: what others name and this does, too,
                               ///< is left out
  bool is_cpp = false;         ///< uprobe:PATH:cpp:"demangled*"
  uint64_t offset = 0;         ///< function+offset, bytes
  std::optional<uint64_t> address;  ///< uprobe:PATH:0x123, kprobe:0x123, watchpoint:0x123:...
  std::string source_file;          ///< uprobe:PATH@file:line[:col]
  uint32_t source_line = 0, source_column = 0;
  uint64_t period_ns = 0;     ///< interval, profile; of hz:N too (1e9 / N)
  uint64_t frequency_hz = 0;  ///< interval:hz:N, profile:hz:N; else 0
  uint64_t count = 0;         ///< software, hardware: events a sample; 0: not given
  uint32_t watch_length = 0;  ///< watchpoint: bytes, 1 2 4 8
  std::string watch_mode;     ///< watchpoint: of "rwx"
  std::string pin;            ///< iter: where to pin it, or ""
  std::string bpf_id;         ///< fentry:bpf[:id]:program; target is then "bpf"
};

/// `attach points /predicate/ { body }`
struct Clause {
  Span span;
  std::string name;  ///< `name=kprobe:f`, or ""
  std::vector<AttachPoint> attach_points;
  ExprPtr predicate;  ///< null: none
  Block body;
};

// ---- the other things at the top of a script
// --------------------------------------------------------------------------

/// C text before the probes, unread.
struct CDefinition {
  enum class Kind : uint8_t {
    kInclude,
    kDefine,
    kConditional /* #if #ifdef #ifndef #else #elif #endif */,
    kOtherDirective,
    kStruct,
    kUnion,
    kEnum,
    kTypedef,
  };
  Kind kind = Kind::kOtherDirective;
  std::string name;  ///< kDefine, kStruct, kUnion, kEnum: what is defined; kInclude: the file;
                     ///< others: the directive
  Span span;         ///< all of it
  Span body;  ///< kDefine: the replacement text; kConditional: the condition; structs: between the
              ///< braces
  std::string text;  ///< kConditional: the condition; kDefine: the replacement; others: all of it
  ExprPtr value;     ///< kDefine: the replacement as an expression; null where it is none
};

struct ConfigEntry {
  enum class Kind : uint8_t { kInteger, kString, kBool, kName };
  std::string key;  ///< lower case, without the BPFTRACE_ prefix
  Span key_span;
  Kind kind = Kind::kInteger;
  uint64_t integer = 0;  ///< kInteger; kBool: 0 or 1
  std::string text;      ///< kString, kName
  Span value_span;
};

struct Import {
  std::string path;
  Span span;
};

/// `let @a = lruhash(100);`
struct MapDeclaration {
  std::string name;  ///< "@a"
  Span name_span;
  std::string type;  ///< "hash", "lruhash", "percpuhash", "percpulruhash", or what was written
  Span type_span;
  ExprPtr max_entries;  ///< null: `hash()`
  Span span;
};

struct Parameter {
  std::string name;  ///< macro: with its sigil where it has one. fn: "$a"
  Span span;
  std::optional<TypeName> type;  ///< fn
};

/// `macro name($a, @b, expr) { ... }`, `fn name($a : type) : type { ... }`
struct Routine {
  enum class Kind : uint8_t { kMacro, kFunction };
  Kind kind = Kind::kMacro;
  std::string name;
  Span name_span;
  std::vector<Parameter> parameters;
  bool has_parentheses = true;
  std::optional<TypeName> return_type;  ///< fn
  Block body;
  Span span;
};

/// A whole script. With errors in the diagnostics it holds what could be read.
struct Program {
  std::optional<Span> shebang;
  std::vector<CDefinition> c_definitions;
  std::vector<ConfigEntry> config;
  std::vector<Import> imports;
  std::vector<MapDeclaration> map_declarations;
  std::vector<Routine> routines;
  std::vector<Clause> clauses;
  NodeId node_count = 0;  ///< ids of all nodes are below
};

}  // namespace spile::lang::ast
