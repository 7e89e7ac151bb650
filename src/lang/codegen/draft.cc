#include "lang/codegen/draft.h"

#include <algorithm>
#include <bit>
#include <string_view>
#include <unordered_map>

#include "bundle/pending.h"

namespace spile::lang::codegen {

namespace {

using bundle::MapKind;
using bundle::MapRole;
using bundle::MapSpec;

/// Scalar values sit in a hash with one key; a few entries more let concurrent updates replace it
/// without finding the map full.
constexpr uint32_t kScalarEntries = 8;
/// Different stacks of one depth. The kernel loses one whose hash falls on another's slot, so there
/// are many more than a map has keys.
constexpr uint32_t kStacksKept = 32768;

uint32_t value_bytes(const typed::Map& map) {
  switch (map.role) {
    case MapRole::kValue: return storage_bytes(map.value);
    case MapRole::kMin:
    case MapRole::kMax:
    case MapRole::kAvg:
    case MapRole::kStats: return 16;
    case MapRole::kSeries: return 24;
    default: return 8;
  }
}

void size_scalar(const typed::Map& map, MapSpec& spec) {
  if (map.role == MapRole::kValue) {
    spec.kind = MapKind::kHash;
    spec.key_size = 8;
    spec.max_entries = kScalarEntries;
    return;
  }
  spec.kind = MapKind::kPerCpuArray;
  spec.key_size = 4;
  spec.max_entries = map.has_buckets() ? bucket_count(map) : 1;
}

void size_keyed(const typed::Map& map, uint32_t default_entries, MapSpec& spec) {
  const bool is_value = map.role == MapRole::kValue;
  spec.kind = map.drops_oldest ? (is_value ? MapKind::kLruHash : MapKind::kLruPerCpuHash)
                               : (is_value ? MapKind::kHash : MapKind::kPerCpuHash);
  spec.key_size = storage_bytes(map.key) + (map.has_buckets() ? 8 : 0);
  uint32_t entries = map.max_entries != 0 ? map.max_entries : std::max(1u, default_entries);
  spec.max_entries = map.has_buckets() ? (entries * 4) << map.hist_bits : entries;
  if (map.role == MapRole::kSeries) spec.max_entries = std::max(spec.max_entries, map.series_count);
}

MapSpec spec_of(const typed::Map& map, const CompileOptions& options) {
  MapSpec spec;
  spec.name = map.name;
  spec.role = map.role;
  spec.value_size = value_bytes(map);
  spec.key = to_value_type(map.key);
  spec.value = to_value_type(map.role == MapRole::kValue ? map.value
                                                         : Type::integer(8, map.value.is_signed));
  spec.lhist_min = map.lhist_min;
  spec.lhist_max = map.lhist_max;
  spec.lhist_step = map.lhist_step;
  spec.hist_bits = map.hist_bits;
  spec.series_ns = map.series_ns;
  spec.series_count = map.series_count;
  spec.series_of = map.series_of;
  if (map.is_scalar()) {
    size_scalar(map, spec);
  } else {
    size_keyed(map, options.max_map_keys, spec);
  }
  return spec;
}

int add_map(bundle::Bundle& bundle, MapSpec spec) {
  bundle.maps.push_back(std::move(spec));
  return static_cast<int>(bundle.maps.size()) - 1;
}

}  // namespace

uint32_t bucket_count(const typed::Map& map) {
  if (map.role == MapRole::kSeries) return map.series_count;
  if (map.role == MapRole::kHist) return bundle::hist_bucket_count(map.hist_bits);
  uint64_t range = static_cast<uint64_t>(map.lhist_max) - static_cast<uint64_t>(map.lhist_min);
  auto step = static_cast<uint64_t>(map.lhist_step);
  return static_cast<uint32_t>((range + step - 1) / step) + 2;
}

Draft::Draft(const typed::Program& program, const CompileOptions& options)
    : program_(program), options_(options) {
  for (const typed::Map& map : program.maps) {
    bundle_.maps.push_back(spec_of(map, options));
    if (map.drops_oldest && !map.is_scalar()) need_kernel("lruhash");
  }
  bundle_.probes = program.probes;
  bundle_.prints_maps = options.prints_maps;
  bundle_.max_cat_bytes = options.max_cat_bytes;
  std::unordered_map<std::string_view, int> first;
  first.reserve(bundle_.probes.size());
  for (size_t i = 0; i < bundle_.probes.size(); ++i)
    bundle_.probes[i].cookie =
        first.try_emplace(bundle_.probes[i].name, static_cast<int>(i)).first->second;
}

int Draft::ring() {
  if (bundle_.ring_map < 0) {
    uint32_t bytes = std::bit_ceil(std::clamp(options_.ring_bytes, 4096u, 1u << 30));
    bundle_.ring_map =
        add_map(bundle_, {.kind = MapKind::kRing, .role = MapRole::kRing, .max_entries = bytes});
  }
  return bundle_.ring_map;
}

int Draft::counters() {
  if (bundle_.counters_map < 0) {
    bundle_.counters_map =
        add_map(bundle_, {.kind = MapKind::kPerCpuArray,
                          .role = MapRole::kCounters,
                          .key_size = 4,
                          .value_size = 8,
                          .max_entries = static_cast<uint32_t>(bundle::Counter::kCount)});
  }
  return bundle_.counters_map;
}

/// Actions of maps have one each, behind the others.
bundle::Counter Draft::counter_without_room(int action) {
  const auto own = bundle::pending_counter(bundle_, static_cast<size_t>(action));
  if (!own) return bundle::Counter::kRingLost;
  MapSpec& spec = bundle_.maps[static_cast<size_t>(counters())];
  spec.max_entries = std::max(spec.max_entries, *own + 1);
  return static_cast<bundle::Counter>(*own);
}

int Draft::start_time() {
  if (bundle_.start_map < 0) {
    bundle_.start_map = add_map(
        bundle_, {.kind = MapKind::kArray, .key_size = 4, .value_size = 8, .max_entries = 1});
    bundle_.uses_elapsed = true;
  }
  return bundle_.start_map;
}

int Draft::stacks(uint32_t frames) {
  int known = bundle::stack_map(bundle_, frames);
  if (known >= 0) return known;
  return add_map(bundle_, {.kind = MapKind::kStacks,
                           .role = MapRole::kStacks,
                           .key_size = 4,
                           .value_size = 8 * frames,
                           .max_entries = kStacksKept});
}

int Draft::entries(const typed::Clause& clause, const Session& session) {
  const auto [entry, is_new] = entries_.try_emplace(&clause, -1);
  if (is_new) entry->second = add_map(bundle_, session.spec());
  return entry->second;
}

void Draft::note(const Type& type) {
  if (type.kind == Type::Kind::kKernelStack) bundle_.needs_kernel = "kstack";
  if (type.kind == Type::Kind::kUserStack || type.kind == Type::Kind::kUserSymbol)
    bundle_.reads_symbols = true;
}

uint32_t add_field(bundle::Action& action, const Type& type) {
  uint32_t offset = std::max<uint32_t>(action.record_size, sizeof(bundle::RecordHeader));
  action.fields.push_back({to_value_type(type), offset});
  action.record_size = offset + storage_bytes(type);
  return offset;
}

int Draft::add_action(bundle::Action action) {
  action.record_size = std::max<uint32_t>(action.record_size, sizeof(bundle::RecordHeader));
  bundle_.actions.push_back(std::move(action));
  return static_cast<int>(bundle_.actions.size()) - 1;
}

void Draft::add_program(bundle::Program code, const typed::Clause& clause) {
  for (int probe : clause.probes)
    bundle_.probes[static_cast<size_t>(probe)].program = static_cast<int>(bundle_.programs.size());
  bundle_.programs.push_back(std::move(code));
}

void Draft::add_entry_program(bundle::Program code, const typed::Clause& clause) {
  for (int probe : clause.probes) {
    bundle::Probe entry = bundle_.probes[static_cast<size_t>(probe)];
    entry.kind = entry.kind == bundle::ProbeKind::kKretprobe ? bundle::ProbeKind::kKprobe
                                                             : bundle::ProbeKind::kUprobe;
    entry.program = static_cast<int>(bundle_.programs.size());
    entry.entry_of = probe;
    bundle_.probes.push_back(std::move(entry));
  }
  bundle_.programs.push_back(std::move(code));
}

}  // namespace spile::lang::codegen
