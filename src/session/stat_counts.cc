#include "session/stat_counts.h"

#include <algorithm>
#include <cstring>

namespace spile::session {

namespace {

using engine::MapEntry;
using ByProbe = std::map<uint64_t, Count>;

bool uses_map(const bundle::Program& program, int map) {
  for (const bpf::Insn& insn : program.code) {
    if (insn.code == (bpf::kClassLd | bpf::kModeImm | bpf::kSizeDw) &&
        insn.src() == bpf::kPseudoMapIdx && insn.imm == map)
      return true;
  }
  return false;
}

int map_named(const bundle::Bundle& bundle, const std::string& name) {
  const auto found = std::ranges::find(bundle.maps, name, &bundle::MapSpec::name);
  SPILE_CHECK(found != bundle.maps.end());
  return static_cast<int>(found - bundle.maps.begin());
}

uint64_t word_at(const std::vector<uint8_t>& bytes, size_t at) {
  uint64_t word = 0;
  if (at < bytes.size())
    std::memcpy(&word, bytes.data() + at, std::min(sizeof word, bytes.size() - at));
  return word;
}

/// Calls `take(row, cpu, entry, value)` for every value of the map that belongs to a row.
template <typename Take>
Result<void> each_value(
    engine::Trace& trace, int map, bool is_pattern, ByProbe& rows, const Take& take) {
  SPILE_TRY(const auto entries, trace.read_map(map));
  for (const MapEntry& entry : entries) {
    const auto row = rows.find(is_pattern ? word_at(entry.key, 0) : 0);
    for (size_t cpu = 0; row != rows.end() && cpu < entry.values.size(); cpu++)
      take(row->second, static_cast<int>(cpu), entry, entry.values[cpu]);
  }
  return {};
}

/// The bucket follows the probe, or is the whole key.
Result<void> read_latencies(engine::Trace& trace,
                            const bundle::Bundle& bundle,
                            size_t event,
                            bool is_pattern,
                            ByProbe& rows) {
  const int buckets = map_named(bundle, stat_latency_map(event));
  auto add = [&](Count& row, int cpu, const MapEntry& entry, const std::vector<uint8_t>& value) {
    const uint64_t bucket = word_at(entry.key, is_pattern ? 8 : 0);
    row.latencies[cpu].add(static_cast<uint32_t>(bucket), word_at(value, 0));
  };
  SPILE_TRY_VOID(each_value(trace, buckets, is_pattern, rows, add));
  const int longest = map_named(bundle, stat_longest_map(event));
  const bool is_signed = bundle.maps[static_cast<size_t>(longest)].value.is_signed;
  auto note = [&](Count& row, int cpu, const MapEntry&, const std::vector<uint8_t>& value) {
    if (word_at(value, 8) == 0) return;
    row.latencies[cpu].note_longest(
        bundle::number_of_rank(bundle::MapRole::kMax, is_signed, word_at(value, 0)));
  };
  return each_value(trace, longest, is_pattern, rows, note);
}

}  // namespace

uint64_t Count::total() const {
  uint64_t sum = 0;
  for (const auto& [cpu, count] : by_cpu) sum += count;
  return sum;
}

Latencies Count::all_latencies() const {
  Latencies all;
  for (const auto& [cpu, one] : latencies) all.add(one);
  return all;
}

Count Count::since(const Count& before) const {
  Count gained = *this;
  for (auto& [cpu, count] : gained.by_cpu) {
    const auto was = before.by_cpu.find(cpu);
    if (was != before.by_cpu.end()) count -= was->second;
  }
  for (auto& [cpu, one] : gained.latencies) {
    const auto was = before.latencies.find(cpu);
    one = one.since(was == before.latencies.end() ? Latencies() : was->second);
  }
  return gained;
}

Result<std::vector<Count>> read_event_counts(engine::Trace& trace,
                                             const bundle::Bundle& bundle,
                                             const StatEvent& event,
                                             size_t index) {
  const int map = map_named(bundle, stat_map(index));
  ByProbe by_probe;
  for (size_t i = 0; event.is_pattern() && i < bundle.probes.size(); i++) {
    const auto& probe = bundle.probes[i];
    if (probe.entry_of < 0 && uses_map(bundle.programs.at(static_cast<size_t>(probe.program)), map))
      by_probe[bundle.cookie_of(i)].event = probe.name;
  }
  if (!event.is_pattern()) by_probe[0].event = event.name;
  auto add = [](Count& row, int cpu, const MapEntry&, const std::vector<uint8_t>& value) {
    row.by_cpu[cpu] += word_at(value, 0);
  };
  SPILE_TRY_VOID(each_value(trace, map, event.is_pattern(), by_probe, add));
  if (event.with_latency)
    SPILE_TRY_VOID(read_latencies(trace, bundle, index, event.is_pattern(), by_probe));
  std::vector<Count> rows;
  for (auto& [probe, row] : by_probe) rows.push_back(std::move(row));
  return rows;
}

}  // namespace spile::session
