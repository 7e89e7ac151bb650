// Every name of the language, and whether it is built: so that each one is either done or refused
// by name.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "bundle/bundle.h"
#include "lang/sema/typed.h"
#include "lang/syntax/ast.h"

namespace spile::lang {

enum class Function : uint8_t {
  kPrintf,
  kPrint,
  kClear,
  kZero,
  kDelete,
  kHasKey,
  kExit,
  kTime,
  kJoin,
  kStr,
  kBuf,
  kUserStack,
  kKernelStack,
  kUserSymbol,
  kKernelSymbol,
  kKernelAddress,
  kPerCpuAddress,
  kUserAddress,
  kKernelFunctionExists,
  kIsError,
  kReg,
  kOverride,
  kNtop,
  kByteSwap,
  kStrftime,
  kMacaddr,
  kStrlen,
  kStrcap,
  kDefaultStringLength,
  kMemcmp,
  kStrncmp,
  kStrcontains,
  kStrstr,
  kLen,
  kPton,
  kErrorf,
  kWarnf,
  kAssert,
  kStaticAssert,
  kFail,
  kFind,
  kTypeQuestion,  ///< is_str() and the like
  kTypeinfo,
  kContainerOf,
  kCgroupId,
  kCgroupPath,
  kSignal,
  kSignalThread,
  kNamedValue,   ///< strerror() and the like: the argument, printed as a name
  kSamePointer,  ///< kptr(), uptr()
  kSystem,
  kCat,
  kGetopt,
  kCount,
  kSum,
  kMin,
  kMax,
  kAvg,
  kStats,
  kHist,
  kLhist,
  kTimeSeries,
  kNotBuilt,
};

struct FunctionEntry {
  std::string_view name;
  Function function = Function::kNotBuilt;
  uint8_t min_args = 0, max_args = 0;
};

/// Null: no such function.
const FunctionEntry* find_function(std::string_view name);
/// The nearest name of a function, or "".
std::string_view nearest_function(std::string_view name);

/// count(), sum(), ...: what a map can be assigned once and for all.
bool is_aggregation(Function function);
bundle::MapRole role_of(Function aggregation);
/// "count()", "hist()"; "a value" for kValue.
std::string_view describe(bundle::MapRole role);

struct BuiltinEntry {
  std::string_view name;
  bool is_built = false;
  typed::Builtin builtin = typed::Builtin::kPid;
};

/// Names that are the same in every probe. Null: none of these.
const BuiltinEntry* find_builtin(std::string_view name);
/// The nearest builtin variable, or "".
std::string_view nearest_builtin(std::string_view name);
Type type_of(typed::Builtin builtin);

/// An event of the `software` or `hardware` probe.
struct CounterEvent {
  std::string_view name, alias;
  uint64_t default_count;  ///< the probe fires every so many events
};
std::span<const CounterEvent> counter_events(bundle::ProbeKind kind);
/// By name or alias; null: no such event.
const CounterEvent* find_counter_event(bundle::ProbeKind kind, std::string_view name);
std::string_view nearest_counter_event(bundle::ProbeKind kind, std::string_view name);

/// `import "stdlib/strings"`: what bpftrace's modules hold is always there, as far as it is built.
bool is_standard_module(std::string_view path);

/// Which engines' probe this is; false for those that are not built.
bool probe_kind_of(ast::ProbeType type, bundle::ProbeKind& kind);

}  // namespace spile::lang
