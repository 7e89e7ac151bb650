// The typed program: what a script means, with every name resolved and every sugar gone. Codegen
// reads nothing else.
//
// Compound assignments, predicates, positional parameters, alternative spellings and constant
// expressions have been rewritten; each node says exactly what to do. One struct a category with a
// kind, since the tree is only ever walked by a switch.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "bundle/bundle.h"
#include "lang/sema/type.h"
#include "lang/syntax/ast.h"

namespace spile::lang::typed {

using ast::BinaryOp;

enum class ExprKind : uint8_t {
  // Values.
  kNumber,          ///< number
  kText,            ///< text: a string literal
  kVariable,        ///< variable
  kMapRead,         ///< map; args: the parts of the key. 0 or "" where there is no such key
  kAggregateRead,   ///< map; args: the parts of the key. What count(), sum(), avg(), min() or max()
                    ///< is so far
  kContext,         ///< offset: a number of type.size bytes in the context
  kEntryArgument,   ///< offset: of the register in the context that the entry of this call had
  kDuration,        ///< nanoseconds since the entry of this call
  kContextString,   ///< offset: a char array of type.size bytes in the context
  kContextDataLoc,  ///< offset: of the u32 that says where the string is; is_relative: __rel_loc
  kContextBytes,    ///< offset: of type.size bytes in the context, a kObject
  kBuiltin,         ///< builtin
  kStr,             ///< args: address, [length]; number: most bytes, the NUL included
  kBuf,             ///< args: address, [length]; number: most bytes
  kLoad,            ///< args: address of a number of type.size bytes in memory; text: not empty:
                    ///< what of the kernel alone can be read there
  kTuple,           ///< args: elements
  kTupleField,      ///< args: a tuple; number: which element
  kStack,           ///< the call stack; type says whose, how deep and how it is printed
  kSymbol,          ///< args: address; type says whose
  kInet,  ///< args: address or number, [family]; number: 16 or 4 bytes at an address, 0: the number
  kConvert,  ///< args: a number; type says how it is printed
  kCopy,     ///< args: address; type.size bytes that are there
  kPart,     ///< args: a kObject; offset: where in it; type says what is there
  kBytes,    ///< text: the bytes of a kObject
  kBytesOf,  ///< args: a number, a string or a kObject; its first type.size bytes as another type
  // Calculations on numbers; the result has 64 bits.
  kNegate,
  kBitNot,
  kNot,           ///< args: one
  kArithmetic,    ///< op; args: two. type.is_signed: signed division and right shift
  kCompare,       ///< op; args: two numbers; is_unsigned
  kCompareText,   ///< op kEq or kNe; args: two strings
  kCompareBytes,  ///< op kEq or kNe; args: two of types that one place can hold
  kAnd,
  kOr,             ///< args: two; the second only where it matters
  kConditional,    ///< args: condition, value if true, value if not
  kElvis,          ///< args: condition and value, value if that is 0
  kTruncate,       ///< args: one; to type.size and type.is_signed
  kHasKey,         ///< map; args: key
  kByteSwap,       ///< args: one; number: how many bits
  kStrlen,         ///< args: a string
  kTextDiffers,    ///< args: two strings; number: most bytes compared. strncmp(): 0 where they are
                   ///< equal
  kCompareMemory,  ///< args: two of strings and copies; number: bytes. Below 0, 0 or above it, as
                   ///< the first byte that differs is
  kContains,       ///< args: a string; text: what is looked for, at most 32 bytes
  kFind,           ///< the same: where it begins, or -1
  // With an effect and, where `yields` says so, a value.
  kModifyVariable,  ///< variable op= args[0]
  kModifyMap,       ///< map[args[1..]] op= args[0]; a missing key starts at 0
  kBlock,           ///< block, then its value: args[0], or none
  // With an effect, no value.
  kPrintf,  ///< text: the format; args
  kSystem,
  kCat,  ///< text: the format; args
  kErrorf,
  kWarnf,       ///< text: the format; args; place
  kSignal,      ///< args: the number of the signal; is_thread: to this thread alone
  kPrintMap,    ///< map, top, div
  kPrintValue,  ///< args: one
  kClear,
  kZero,    ///< map
  kDelete,  ///< map; args: key, none: the scalar. Where its type is a number: whether it was there
  kExit,    ///< args: none or the code; the clause ends here
  kTime,    ///< text: the format
  kJoin,    ///< text: the separator; args: address of an array of addresses of strings
  kOverride,  ///< args: what the probed function returns, without having run
};

enum class Builtin : uint8_t {
  kPid,
  kTid,
  kUid,
  kGid,
  kNsecs,
  kBootNsecs,
  kElapsed,
  kCpu,
  kComm,
  kProbe,
  kFunc,
  kCurtask,
  kCgroup,
  kRand,
  kNumaNode,
  kJiffies,
  kChildPid,  ///< of -c, where it is not known yet
};
std::string_view to_string(Builtin builtin);

enum class Yields : uint8_t { kNothing, kOld, kNew };

struct Expr;
struct Block;
using ExprPtr = std::unique_ptr<Expr>;

struct Expr {
  ExprKind kind = ExprKind::kNumber;
  Type type;
  Span span;
  std::vector<ExprPtr> args;
  std::shared_ptr<Block> block;  ///< kBlock
  uint64_t number = 0;
  std::string text;
  int variable = -1;  ///< index into Clause::variables
  int map = -1;       ///< index into Program::maps
  BinaryOp op = BinaryOp::kAdd;
  Builtin builtin = Builtin::kPid;
  Yields yields = Yields::kNothing;
  uint32_t offset = 0;             ///< in the context, bytes
  bool is_relative = false;        ///< kContextDataLoc
  bool is_copied = false;          ///< kContext: never loaded directly
  bool is_unsigned = false;        ///< kCompare
  bool is_array = false;           ///< kStr: of a char array, whose bytes are the string
  bool is_thread = false;          ///< kSignal
  bundle::ScriptPlace place = {};  ///< kErrorf, kWarnf
  uint64_t top = 0, div = 0;
};

/// Calculating it changes something, so it must happen exactly once and in order.
bool has_effects(const Expr& expr);
/// Calculating it takes a loop, which may not be while a record is held.
bool has_loops(const Expr& expr);

enum class StmtKind : uint8_t {
  kEval,         ///< expr
  kDeclare,      ///< variable becomes 0 or ""
  kSetVariable,  ///< variable = expr
  kSetMap,       ///< map[keys] = expr
  kAggregate,  ///< map[keys] = count(), sum(expr), ...: the map's role says which; expr is null for
               ///< count
  kIf,         ///< expr, body, other
  kWhile,      ///< expr, body
  kForRange,   ///< variable from first (or keys[0]) up to last - 1 (or keys[1] - 1), body
  kForMap,     ///< variable (key, value) for each element of map, body; first: CPUs there may be
  kUnroll,     ///< body, `first` times
  kBlock,      ///< body
  kBreak,
  kContinue,
  kReturn,  ///< expr: of a test, its result; else null
  kLeave,   ///< to the end of the kBlock that `variable`, its result, is of
};

struct Stmt;
/// A scope: its variables exist from here to its end.
struct Block {
  std::vector<int> variables;
  std::vector<Stmt> statements;
};

struct Stmt {
  StmtKind kind = StmtKind::kEval;
  Span span;
  ExprPtr expr;
  int variable = -1;
  int map = -1;
  std::vector<ExprPtr> keys;  ///< kForRange: the bounds, where they are no constants
  Block body, other;
  int64_t first = 0, last = 0;
};

/// True if `wanted` holds for a node of the block, whatever its depth.
bool any_expr(const Block& block, const std::function<bool(const Expr&)>& wanted);
bool any_expr(const Expr& expr, const std::function<bool(const Expr&)>& wanted);

/// The first loop in it, at whatever depth, that may make more than `rounds` rounds. Null: none.
const Stmt* find_loop(const Block& block, uint64_t rounds);
inline bool any_loop(const Block& block, uint64_t rounds) {
  return find_loop(block, rounds) != nullptr;
}

struct Variable {
  std::string name;  ///< "$x"
  Type type;
};

struct Map {
  std::string name;  ///< "@", "@x"
  bundle::MapRole role = bundle::MapRole::kValue;
  Type key;    ///< kNone for a scalar map; kTuple for several parts
  Type value;  ///< of aggregations: the number that is put in (its sign matters)
  int64_t lhist_min = 0, lhist_max = 0, lhist_step = 1;
  uint32_t hist_bits = 0;     ///< hist(n, k): powers of two are cut into 2^k
  uint64_t series_ns = 0;     ///< tseries(): of one interval
  uint32_t series_count = 0;  ///< intervals that are kept
  bundle::SeriesOf series_of = bundle::SeriesOf::kLast;
  int64_t real_time_offset_ns = 0;  ///< tseries(): CLOCK_REALTIME less CLOCK_MONOTONIC
  uint32_t max_entries = 0;         ///< 0: CompileOptions::max_map_keys
  bool drops_oldest = false;        ///< declared as lruhash or percpulruhash
  Span span;                        ///< where it first appears

  bool is_scalar() const { return key.is_none(); }
  /// One key of the script is several of the map, each with a number behind it.
  bool has_buckets() const {
    return role == bundle::MapRole::kHist || role == bundle::MapRole::kLhist ||
           role == bundle::MapRole::kSeries;
  }
};

/// What a program is called for; decides how addresses are read and what the context holds.
struct Context {
  bundle::ProbeKind probe = bundle::ProbeKind::kBegin;
  bundle::ContextKind kind = bundle::ContextKind::kNone;
  uint32_t size_bytes = 0;
};

/// One clause for one sort of context: becomes one program, shared by `probes`.
struct Clause {
  Span span;
  Context context;
  std::vector<int> probes;  ///< indices into Program::probes
  std::vector<Variable> variables;
  Block body;
};

struct Program {
  std::vector<Map> maps;  ///< in name order
  std::vector<bundle::Probe> probes;
  std::vector<Clause> clauses;
};

}  // namespace spile::lang::typed
