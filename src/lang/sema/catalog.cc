#include "lang/sema/catalog.h"

#include <algorithm>
#include <array>
#include <vector>

#include "lang/syntax/diagnostic.h"

namespace spile::lang {

namespace {

using F = Function;

constexpr FunctionEntry kFunctions[] = {
    {"printf", F::kPrintf, 1, 128},
    {"print", F::kPrint, 1, 3},
    {"clear", F::kClear, 1, 1},
    {"zero", F::kZero, 1, 1},
    {"delete", F::kDelete, 1, 2},
    {"has_key", F::kHasKey, 2, 2},
    {"exit", F::kExit, 0, 1},
    {"time", F::kTime, 0, 1},
    {"join", F::kJoin, 1, 2},
    {"str", F::kStr, 1, 2},
    {"buf", F::kBuf, 1, 2},
    {"count", F::kCount, 0, 0},
    {"sum", F::kSum, 1, 1},
    {"min", F::kMin, 1, 1},
    {"max", F::kMax, 1, 1},
    {"avg", F::kAvg, 1, 1},
    {"hist", F::kHist, 1, 2},
    {"lhist", F::kLhist, 4, 4},
    {"stats", F::kStats, 1, 1},
    {"tseries", F::kTimeSeries, 3, 4},
    {"len", F::kLen, 1, 1},
    {"find", F::kFind, 3, 3},
    {"for_each"},
    {"cat", F::kCat, 1, 128},
    {"system", F::kSystem, 1, 128},
    {"errorf", F::kErrorf, 1, 128},
    {"warnf", F::kWarnf, 1, 128},
    {"debugf"},
    {"assert", F::kAssert, 2, 2},
    {"fail", F::kFail, 1, 128},
    {"static_assert", F::kStaticAssert, 2, 2},
    {"strftime", F::kStrftime, 2, 2},
    {"strerror", F::kNamedValue, 1, 1},
    {"syscall_name", F::kNamedValue, 1, 1},
    {"signal_name", F::kNamedValue, 1, 1},
    {"strlen", F::kStrlen, 1, 1},
    {"strcap", F::kStrcap, 1, 1},
    {"strstr", F::kStrstr, 2, 2},
    {"strcontains", F::kStrcontains, 2, 2},
    {"str_concat"},
    {"strncmp", F::kStrncmp, 3, 3},
    {"memcmp", F::kMemcmp, 3, 3},
    {"default_str_length", F::kDefaultStringLength, 0, 0},
    {"ntop", F::kNtop, 1, 2},
    {"pton", F::kPton, 1, 1},
    {"bswap", F::kByteSwap, 1, 1},
    {"macaddr", F::kMacaddr, 1, 1},
    {"cgroupid", F::kCgroupId, 1, 1},
    {"cgroup_path", F::kCgroupPath, 1, 2},
    {"kaddr", F::kKernelAddress, 1, 1},
    {"uaddr", F::kUserAddress, 1, 1},
    {"ksym", F::kKernelSymbol, 1, 1},
    {"usym", F::kUserSymbol, 1, 1},
    {"kptr", F::kSamePointer, 1, 1},
    {"uptr", F::kSamePointer, 1, 1},
    {"reg", F::kReg, 1, 1},
    {"kstack", F::kKernelStack, 0, 2},
    {"ustack", F::kUserStack, 0, 2},
    {"dw_ustack"},
    {"signal", F::kSignal, 1, 1},
    {"signal_thread", F::kSignalThread, 1, 1},
    {"override", F::kOverride, 1, 1},
    {"write_user"},
    {"skboutput"},
    {"socket_cookie"},
    {"path"},
    {"percpu_kaddr", F::kPerCpuAddress, 1, 2},
    {"kfunc_exist", F::kKernelFunctionExists, 1, 1},
    {"kfunc_allowed"},
    {"unwatch"},
    {"getopt", F::kGetopt, 1, 3},
    {"container_of", F::kContainerOf, 3, 3},
    {"typeinfo", F::kTypeinfo, 1, 1},
    {"is_str", F::kTypeQuestion, 1, 1},
    {"is_ptr", F::kTypeQuestion, 1, 1},
    {"is_array", F::kTypeQuestion, 1, 1},
    {"is_integer", F::kTypeQuestion, 1, 1},
    {"is_unsigned_integer", F::kTypeQuestion, 1, 1},
    {"is_literal", F::kTypeQuestion, 1, 1},
    {"is_err", F::kIsError, 1, 1},
    {"globmatch"},
};

constexpr BuiltinEntry kBuiltins[] = {
    {"pid", true, typed::Builtin::kPid},
    {"tid", true, typed::Builtin::kTid},
    {"uid", true, typed::Builtin::kUid},
    {"gid", true, typed::Builtin::kGid},
    {"nsecs", true, typed::Builtin::kNsecs},
    {"elapsed", true, typed::Builtin::kElapsed},
    {"cpu", true, typed::Builtin::kCpu},
    {"comm", true, typed::Builtin::kComm},
    {"probe", true, typed::Builtin::kProbe},
    {"func", true, typed::Builtin::kFunc},
    {"curtask", true, typed::Builtin::kCurtask},
    {"ppid"},
    {"pcomm"},
    {"leader_tid"},
    {"leader_comm"},
    {"cpid"},
    {"has_cpid"},
    {"cgroup", true, typed::Builtin::kCgroup},
    {"rand", true, typed::Builtin::kRand},
    {"ncpus"},
    {"numaid", true, typed::Builtin::kNumaNode},
    {"jiffies", true, typed::Builtin::kJiffies},
    {"usermode"},
    {"username"},
    {"config"},
    {"ctx"},
    {"probetype"},
    {"sarg0"},
    {"sarg1"},
    {"sarg2"},
    {"sarg3"},
    {"sarg4"},
    {"sarg5"},
};

// The counts are bpftrace's.
constexpr CounterEvent kSoftwareEvents[] = {
    {"alignment-faults", "", 1},     {"bpf-output", "", 1},     {"context-switches", "cs", 1000},
    {"cpu-clock", "cpu", 1'000'000}, {"cpu-migrations", "", 1}, {"dummy", "", 1},
    {"emulation-faults", "", 1},     {"major-faults", "", 1},   {"minor-faults", "", 100},
    {"page-faults", "faults", 100},  {"task-clock", "", 1},
};
constexpr CounterEvent kHardwareEvents[] = {
    {"backend-stalls", "", 1'000'000},   {"branch-instructions", "branches", 100'000},
    {"branch-misses", "", 100'000},      {"bus-cycles", "", 100'000},
    {"cache-misses", "", 1'000'000},     {"cache-references", "", 1'000'000},
    {"cpu-cycles", "cycles", 1'000'000}, {"frontend-stalls", "", 1'000'000},
    {"instructions", "", 1'000'000},     {"ref-cycles", "", 1'000'000},
};

/// Names for "did you mean" only: handled apart because they depend on the probe.
constexpr std::string_view kContextNames[] = {"ustack", "kstack", "args",    "arg0",
                                              "arg1",   "arg2",   "arg3",    "arg4",
                                              "arg5",   "retval", "duration"};

}  // namespace

const FunctionEntry* find_function(std::string_view name) {
  for (const FunctionEntry& entry : kFunctions) {
    if (entry.name == name) return &entry;
  }
  return nullptr;
}

std::string_view nearest_function(std::string_view name) {
  std::vector<std::string_view> names;
  for (const FunctionEntry& entry : kFunctions) names.push_back(entry.name);
  return nearest(name, names);
}

std::span<const CounterEvent> counter_events(bundle::ProbeKind kind) {
  if (kind == bundle::ProbeKind::kHardware) return kHardwareEvents;
  return kSoftwareEvents;
}

const CounterEvent* find_counter_event(bundle::ProbeKind kind, std::string_view name) {
  for (const CounterEvent& event : counter_events(kind)) {
    if (event.name == name || (!event.alias.empty() && event.alias == name)) return &event;
  }
  return nullptr;
}

std::string_view nearest_counter_event(bundle::ProbeKind kind, std::string_view name) {
  std::vector<std::string_view> names;
  for (const CounterEvent& event : counter_events(kind)) names.push_back(event.name);
  return nearest(name, names);
}

bool is_aggregation(Function function) {
  return function >= F::kCount && function <= F::kTimeSeries;
}

bundle::MapRole role_of(Function aggregation) {
  using bundle::MapRole;
  switch (aggregation) {
    case F::kCount: return MapRole::kCount;
    case F::kSum: return MapRole::kSum;
    case F::kMin: return MapRole::kMin;
    case F::kMax: return MapRole::kMax;
    case F::kAvg: return MapRole::kAvg;
    case F::kStats: return MapRole::kStats;
    case F::kHist: return MapRole::kHist;
    case F::kLhist: return MapRole::kLhist;
    case F::kTimeSeries: return MapRole::kSeries;
    default: return MapRole::kValue;
  }
}

std::string_view describe(bundle::MapRole role) {
  using bundle::MapRole;
  switch (role) {
    case MapRole::kCount: return "count()";
    case MapRole::kSum: return "sum()";
    case MapRole::kMin: return "min()";
    case MapRole::kMax: return "max()";
    case MapRole::kAvg: return "avg()";
    case MapRole::kStats: return "stats()";
    case MapRole::kHist: return "hist()";
    case MapRole::kLhist: return "lhist()";
    case MapRole::kSeries: return "tseries()";
    default: return "a value";
  }
}

const BuiltinEntry* find_builtin(std::string_view name) {
  for (const BuiltinEntry& entry : kBuiltins) {
    if (entry.name == name) return &entry;
  }
  return nullptr;
}

std::string_view nearest_builtin(std::string_view name) {
  std::vector<std::string_view> names(std::begin(kContextNames), std::end(kContextNames));
  for (const BuiltinEntry& entry : kBuiltins) names.push_back(entry.name);
  return nearest(name, names);
}

Type type_of(typed::Builtin builtin) {
  using typed::Builtin;
  switch (builtin) {
    case Builtin::kPid:
    case Builtin::kTid:
    case Builtin::kUid:
    case Builtin::kGid:
    case Builtin::kCpu: return Type::integer(4, false);
    case Builtin::kNsecs:
    case Builtin::kBootNsecs:
    case Builtin::kCgroup:
    case Builtin::kJiffies:
    case Builtin::kElapsed: return Type::uint64();
    case Builtin::kRand:
    case Builtin::kChildPid:
    case Builtin::kNumaNode: return Type::integer(4, false);
    case Builtin::kCurtask: return Type::pointer_to(Type::structure("struct task_struct"));
    case Builtin::kComm: return Type::string(16);  // TASK_COMM_LEN
    case Builtin::kProbe: return Type::probe();
    case Builtin::kFunc: return Type::func();
  }
  return {};
}

bool is_standard_module(std::string_view path) {
  constexpr std::string_view kFolder = "stdlib", kEnding = ".bt";
  constexpr auto kModules = std::to_array<std::string_view>(
      {"arch", "base", "cgroups", "kfunc", "map", "meta", "network", "path", "process", "socket",
       "strings", "system", "task", "usdt"});
  if (path == kFolder) return true;
  if (!path.starts_with(kFolder) || path.size() <= kFolder.size() + 1) return false;
  if (path[kFolder.size()] != '/') return false;
  path.remove_prefix(kFolder.size() + 1);
  if (path.ends_with(kEnding)) path.remove_suffix(kEnding.size());
  return std::ranges::find(kModules, path) != kModules.end();
}

bool probe_kind_of(ast::ProbeType type, bundle::ProbeKind& kind) {
  using ast::ProbeType;
  using bundle::ProbeKind;
  switch (type) {
    case ProbeType::kBegin: kind = ProbeKind::kBegin; return true;
    case ProbeType::kEnd: kind = ProbeKind::kEnd; return true;
    case ProbeType::kInterval: kind = ProbeKind::kInterval; return true;
    case ProbeType::kUprobe: kind = ProbeKind::kUprobe; return true;
    case ProbeType::kUretprobe: kind = ProbeKind::kUretprobe; return true;
    case ProbeType::kKprobe: kind = ProbeKind::kKprobe; return true;
    case ProbeType::kKretprobe: kind = ProbeKind::kKretprobe; return true;
    case ProbeType::kUsdt: kind = ProbeKind::kUsdt; return true;
    case ProbeType::kTracepoint: kind = ProbeKind::kTracepoint; return true;
    case ProbeType::kProfile: kind = ProbeKind::kProfile; return true;
    case ProbeType::kSoftware: kind = ProbeKind::kSoftware; return true;
    case ProbeType::kHardware: kind = ProbeKind::kHardware; return true;
    case ProbeType::kWatchpoint: kind = ProbeKind::kWatchpoint; return true;
    case ProbeType::kRawTracepoint: kind = ProbeKind::kRawTracepoint; return true;
    case ProbeType::kFentry: kind = ProbeKind::kFentry; return true;
    case ProbeType::kFexit: kind = ProbeKind::kFexit; return true;
    case ProbeType::kIter: kind = ProbeKind::kIter; return true;
    case ProbeType::kSelf: kind = ProbeKind::kSelf; return true;
    case ProbeType::kTest: kind = ProbeKind::kTest; return true;
    case ProbeType::kBench: kind = ProbeKind::kBench; return true;
    default: return false;
  }
}

}  // namespace spile::lang
