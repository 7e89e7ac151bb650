// The waist of spile: everything an engine needs to run a script, and everything output needs to
// print it.
//
// A front end makes a Bundle and forgets it; an engine runs it without knowing the language.
// Programs refer to maps and records refer to actions by index. A Bundle holds no addresses,
// descriptors or process ids.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "bpf/insn.h"

namespace spile::bundle {

// ---- values: how bytes in keys, map values and records are to be read
// -------------------------------------------

enum class ValueKind : uint8_t {
  kNone,
  kInt,           ///< size 1, 2, 4, 8; is_signed
  kString,        ///< size bytes, NUL-padded
  kBuffer,        ///< u32 length, then size - 4 bytes: buf()
  kPointer,       ///< 8 bytes, printed as 0x...
  kProbe,         ///< u64 index into Bundle::probes: prints its name
  kFunc,          ///< u64 index into Bundle::probes: prints its function
  kTuple,         ///< fields one after the other, each at its own offset: multi-part keys
  kUserStack,     ///< i64 id in the stack map of `frames` (negative: none), u64 process id
  kKernelStack,   ///< i64 id alone
  kUserSymbol,    ///< u64 address, u64 process id: usym()
  kKernelSymbol,  ///< u64 address: ksym()
  kInet,          ///< u64 address family (2 or 10), then 16 bytes of address: ntop()
  kMac,           ///< 6 bytes of a u64: macaddr()
  kTimestamp,     ///< u64 nanoseconds on CLOCK_MONOTONIC: strftime(); format says how it looks
  kNamed,  ///< i64 that stands for a name; format says which names: "errno", "signal", "user"
  kBool,   ///< a number: 0 is false
  kArray,  ///< fields[0] is one element, offsets[0] says how many
  kEnum,   ///< a number as kInt; values[i] is called names[i], others are printed as numbers
};

/// How the lines of a stack look.
enum class StackMode : uint8_t {
  kBpftrace,  ///< name+offset
  kPerf,      ///< address name+offset (file)
  kRaw,       ///< address
};

struct ValueType {
  ValueKind kind = ValueKind::kNone;
  uint32_t size = 0;  ///< bytes, whole value
  bool is_signed = true;
  std::vector<ValueType> fields;                ///< kTuple
  std::vector<uint32_t> offsets;                ///< kTuple: of each field, in bytes
  StackMode stack_mode = StackMode::kBpftrace;  ///< stacks
  uint32_t frames = 0;                          ///< stacks: the most that were asked for
  std::string format = {};                      ///< kTimestamp, kNamed
  std::vector<std::string> names = {};  ///< kTuple: of the fields, when it is a record; kEnum
  std::vector<int64_t> values = {};     ///< kEnum: of the names
  uint8_t shift = 0, bits = 0;          ///< kInt: of a bitfield in `size` bytes; 0: none
  bool operator==(const ValueType&) const = default;
};

// ---- maps
// --------------------------------------------------------------------------------------------------------

/// The storage: what both engines provide. Numbers in comments are the kernel's bpf_map_type.
enum class MapKind : uint8_t {
  kHash,         ///< 1
  kArray,        ///< 2, u32 key
  kPerCpuHash,   ///< 5
  kPerCpuArray,  ///< 6, u32 key
  kRing,         ///< 27; max_entries is the size in bytes, a power of two of at least a page
  kStacks,       ///< 7; u32 key, value_size is 8 bytes a frame
  /// 1; calls under way. Key: u64 stack slot, not 0; u64 which call there, not 0. max_entries is a
  /// power of two
  kCalls,
  kLruHash,        ///< 9; the kernel engine's
  kLruPerCpuHash,  ///< 10; the kernel engine's
};

/// What the script keeps in it: how per-CPU values are merged and how it is printed.
enum class MapRole : uint8_t {
  kValue,     ///< @x = ..., one value a key
  kCount,     ///< u64 a CPU, added up
  kSum,       ///< i64 or u64 a CPU, added up
  kMin,       ///< {u64 rank, u64 is_set} a CPU: see rank_for_max
  kMax,       ///< the same
  kAvg,       ///< {u64 count, i64 sum} a CPU
  kStats,     ///< the same; count, average and total are printed
  kHist,      ///< u64 a CPU and bucket; the bucket is the last part of the key
  kLhist,     ///< the same
  kSeries,    ///< {u64 interval, u64, u64} a CPU and slot; the slot is the last part of the key
  kRing,      ///< records
  kCounters,  ///< array indexed by Counter, u64 a CPU
  kStacks,    ///< addresses by stack id
};

/// kMin and kMax keep numbers as ranks: u64 whose largest is the number sought, so that the 0 of
/// fresh memory loses against every number and one compare-and-swap suffices however hits nest.
/// Merge CPUs with is_set != 0 by the largest rank, then turn it back with number_of_rank (read as
/// i64 where value.is_signed).
constexpr uint64_t rank_for_max(MapRole role, bool is_signed, uint64_t number) {
  uint64_t rank = is_signed ? number ^ (uint64_t{1} << 63) : number;
  return role == MapRole::kMin ? ~rank : rank;
}
constexpr uint64_t number_of_rank(MapRole role, bool is_signed, uint64_t rank) {
  uint64_t number = role == MapRole::kMin ? ~rank : rank;
  return is_signed ? number ^ (uint64_t{1} << 63) : number;
}

/// Buckets of hist(n, bits): 0 is for negative numbers, then one for each number below 2^bits, then
/// 2^bits for each power of two up to 2^62.
constexpr uint32_t hist_bucket_count(uint32_t bits) {
  return 1 + (1u << bits) + ((63 - bits) << bits);
}
/// The smallest number of a bucket from 1 on; that of the bucket behind it is its end.
constexpr uint64_t hist_bucket_low(uint32_t bits, uint32_t bucket) {
  uint64_t exact = uint64_t{1} << bits, n = bucket - 1;
  if (n < exact) return n;
  uint64_t power = (n - exact) >> bits, part = (n - exact) & (exact - 1);
  return (exact + part) << power;
}

/// Indices into the kCounters map: what was lost, by reason. kExit is none: there an exit() leaves
/// its status that found the ring full.
enum class Counter : uint32_t {
  kRingLost,
  kMapFull,
  kReadFailed,
  kStackLost,
  kLoopCut,
  kExit,
  kCount
};

/// What kExit holds: the status in the low half, and this beside it.
inline constexpr uint64_t kExitAsked = uint64_t{1} << 32;

/// What of the numbers of one interval a tseries() keeps, and in which words of the value.
enum class SeriesOf : uint8_t {
  kLast,  ///< the number, when it came (CLOCK_MONOTONIC)
  kAvg,   ///< how many, their sum
  kSum,   ///< 0, their sum
  kMin,   ///< rank, 1: see rank_for_max
  kMax,   ///< the same
};

/// The first word of a slot of kSeries: 0 in fresh memory, the interval's number and 1, or all bits
/// of that inverted while whoever came first sets the other words to 0.
struct SeriesWord {
  static constexpr uint64_t of(uint64_t interval) { return interval + 1; }
  static constexpr bool is_ready(uint64_t word) { return static_cast<int64_t>(word) > 0; }
  static constexpr uint64_t interval(uint64_t word) { return word - 1; }
};

struct MapSpec {
  std::string name;  ///< "@", "@x"; "" for internal maps
  MapKind kind = MapKind::kHash;
  MapRole role = MapRole::kValue;
  uint32_t key_size = 0;
  uint32_t value_size = 0;  ///< of one CPU
  uint32_t max_entries = 0;
  /// The user's key (kNone for a scalar map). For kHist and kLhist a bucket number follows the key:
  /// for keyed maps a u64 at offset key_size - 8, for scalar ones the u32 array index itself.
  ValueType key;
  ValueType
      value;  ///< kValue: the value. Others: an int that says signedness of the aggregated number.
  // kLhist: buckets are [min + i*step, min + (i+1)*step); bucket 0 is below min, the last is from
  // max on.
  int64_t lhist_min = 0, lhist_max = 0, lhist_step = 1;
  // kHist: bucket 0 negative, 1 zero, 2 is [1], 3 is [2,4), n is [2^(n-2), 2^(n-1)). With
  // hist_bits k > 0 each power of two is cut into 2^k: hist_bucket_low.
  uint32_t hist_bits = 0;
  // kSeries: intervals of so many ns, of which the last so many are kept, each in the slot that its
  // number (since 1970) leaves when divided by series_count: see SeriesWord.
  uint64_t series_ns = 0;
  uint32_t series_count = 0;
  SeriesOf series_of = SeriesOf::kLast;
  bool operator==(const MapSpec&) const = default;
};

// ---- records: what goes through the ring
// ---------------------------------------------------------------------------

/// Every record starts with this; fields follow at the offsets that the Action names.
struct RecordHeader {
  uint32_t action;  ///< index into Bundle::actions
  uint32_t size;    ///< of the whole record, in bytes
};

enum class ActionKind : uint8_t {
  kPrintf,      ///< format with fields
  kPrintMap,    ///< print(@x[, top[, div]])
  kPrintValue,  ///< print(expression), print(@x[key]): field 0
  kClearMap,    ///< clear(@x)
  kZeroMap,     ///< zero(@x)
  kExit,        ///< exit([code]): field 0 is the code where given
  kTime,        ///< time([format]): format
  kSystem,      ///< system(format, ...): the text is a command for the shell
  kCat,         ///< cat(format, ...): the text is a file's name
  kJoin,  ///< join(argv[, separator]): format is the separator, field 0 says how many of the others
          ///< (strings) count
  kErrorf,  ///< errorf(format, ...): told on standard error, with its place
  kWarnf,   ///< warnf(format, ...)
};

/// Where in the script something is told from.
struct ScriptPlace {
  std::string file;
  uint32_t line = 0, column = 0;
  std::string text;  ///< "stdin:1:9-14"
};

struct RecordField {
  ValueType type;
  uint32_t offset = 0;  ///< from the start of the record
};

struct Action {
  ActionKind kind = ActionKind::kPrintf;
  std::string format;  ///< kPrintf: checked against fields by the front end; kTime, kJoin
  std::vector<RecordField> fields;
  int map = -1;               ///< kPrintMap, kClearMap, kZeroMap
  uint64_t top = 0, div = 0;  ///< kPrintMap; 0: not given
  uint32_t record_size = 0;   ///< bytes, header included, multiple of 8
  ScriptPlace place = {};     ///< kErrorf, kWarnf
};

// ---- probes
// ----------------------------------------------------------------------------------------------------------

enum class ProbeKind : uint8_t {
  kBegin,
  kEnd,
  kInterval,
  kUprobe,
  kUretprobe,
  kKprobe,
  kKretprobe,
  kTracepoint,
  kUsdt,
  kProfile,        ///< every interval_ns on every CPU
  kSoftware,       ///< every event_count-th event `symbol` of the kernel's counters
  kHardware,       ///< the same of the CPU's
  kWatchpoint,     ///< watch_length bytes at `address` are used as watch_mode says
  kRawTracepoint,  ///< arguments as the kernel's BTF types them
  kFentry,
  kFexit,
  kIter,  ///< once for each object of the kernel's iterator `symbol`, at attach
  kSelf,  ///< when spile itself gets the signal `symbol`: Trace::run_probe
  kTest,  ///< called by name, its result is the test's: Trace::run_probe
  kBench,
};

/// Fires by the clock or a counter, wherever the CPU then is.
inline bool is_sampling(ProbeKind kind) {
  return kind == ProbeKind::kProfile || kind == ProbeKind::kSoftware ||
         kind == ProbeKind::kHardware || kind == ProbeKind::kWatchpoint;
}
/// Nothing fires it: spile calls its program.
inline bool is_called(ProbeKind kind) {
  return kind == ProbeKind::kBegin || kind == ProbeKind::kEnd || kind == ProbeKind::kSelf ||
         kind == ProbeKind::kTest || kind == ProbeKind::kBench;
}
/// Its program takes ContextKind::kTyped.
inline bool is_typed(ProbeKind kind) {
  return kind == ProbeKind::kRawTracepoint || kind == ProbeKind::kFentry ||
         kind == ProbeKind::kFexit || kind == ProbeKind::kIter;
}

/// One attach point after glob expansion; inlined copies of a static tracepoint are several.
struct Probe {
  ProbeKind kind = ProbeKind::kBegin;
  std::string name;  ///< as `probe` prints it: "uprobe:/usr/lib/x86_64-linux-gnu/libc.so.6:fopen"
  std::string function;  ///< as `func` prints it
  std::string
      path;  ///< uprobes: the file as the user's name resolved, seen from our mount namespace
  /// uprobe, kprobe, fentry: function. tracepoint, software, hardware, iter: the event. usdt: its
  /// name
  std::string symbol;
  /// tracepoint: the category. kprobe, fentry: the module, or empty. usdt: the provider
  std::string module;
  uint64_t offset = 0;  ///< bytes after the symbol
  /// uprobe by address, usdt: link address. kprobe by raw address. watchpoint: what is watched
  std::optional<uint64_t> address;
  uint64_t semaphore = 0;  ///< usdt: link address of a 16-bit counter to hold above 0; 0: none
  uint64_t interval_ns = 0;
  uint64_t event_count = 1;     ///< software, hardware
  uint32_t watch_length = 0;    ///< watchpoint: 1, 2, 4, 8 bytes
  std::string watch_mode = "";  ///< watchpoint: of r, w, x
  int program = -1;             ///< index into Bundle::programs
  /// Its cookie, what helper get_attach_cookie gives: the index of the first probe of the same
  /// name, so that in maps they are one. -1: its own index.
  int cookie = -1;
  /// Not -1: nobody asked for it. It notes the calls for the uretprobe of this index, shares its
  /// cookie, and is placed where and only where that is.
  int entry_of = -1;
};

/// Which context a program takes: fixes what the checker allows it to read.
enum class ContextKind : uint8_t {
  kNone,        ///< BEGIN, END, interval, self, test, bench: reads nothing
  kRegs,        ///< struct pt_regs, bpf::x86_64_regs
  kTracepoint,  ///< the event's record, context_size bytes
  kTyped,       ///< u64 each: the arguments, for fexit then the result
};

struct Program {
  std::string name;  ///< for dumps and the kernel: [A-Za-z0-9_], <= 15 bytes
  bpf::Program code;
  ContextKind context = ContextKind::kNone;
  uint32_t context_size = 0;
  /// Where functions that it calls begin in `code`: bodies of loops, for the kernel engine alone.
  std::vector<uint32_t> functions = {};
};

struct Bundle {
  std::vector<MapSpec> maps;  ///< script maps in name order first, then internal ones
  std::vector<Program> programs;
  std::vector<Probe> probes;  ///< in the script's order
  std::vector<Action> actions;
  int ring_map = -1;      ///< -1: the script sends no records
  int counters_map = -1;  ///< -1: nothing can be lost
  bool uses_elapsed =
      false;  ///< `elapsed` is nsecs - start; the engine stores the start time in start_map
  int start_map =
      -1;  ///< kArray, one u64: CLOCK_MONOTONIC at attach, written before any program runs
  bool prints_maps = true;         ///< when the trace ends
  uint32_t max_cat_bytes = 10240;  ///< of a file that cat() prints
  /// Not empty: a construct that only the kernel engine can carry ("kstack").
  std::string needs_kernel;
  bool has_loops = false;      ///< some program jumps back, or calls the body of a loop
  bool reads_symbols = false;  ///< something is printed as a symbol of a process: its files matter

  /// Those that the script names.
  size_t named_probes() const {
    size_t count = 0;
    for (const Probe& probe : probes) count += probe.entry_of < 0 ? 1 : 0;
    return count;
  }

  uint64_t cookie_of(size_t probe) const {
    int cookie = probes.at(probe).cookie;
    return cookie < 0 ? probe : static_cast<uint64_t>(cookie);
  }
};

/// The map that holds stacks of at most `frames` addresses; -1: there is none.
inline int stack_map(const Bundle& bundle, uint32_t frames) {
  for (size_t i = 0; i < bundle.maps.size(); i++) {
    if (bundle.maps[i].kind == MapKind::kStacks && bundle.maps[i].value_size == 8 * frames)
      return static_cast<int>(i);
  }
  return -1;
}

}  // namespace spile::bundle
