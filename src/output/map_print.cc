#include "output/map_print.h"

#include <algorithm>
#include <cstring>
#include <iterator>
#include <set>

#include "output/histogram.h"
#include "output/series.h"

namespace spile::output {
namespace {

using bundle::MapKind;
using bundle::MapRole;
using bundle::MapSpec;
using engine::MapEntry;

bool is_histogram(MapRole role) {
  return role == MapRole::kHist || role == MapRole::kLhist;
}
bool is_keyed(const MapSpec& spec) {
  return spec.key.kind != bundle::ValueKind::kNone;
}

uint64_t word(std::span<const uint8_t> bytes, size_t index) {
  uint64_t out = 0;
  std::memcpy(&out, bytes.data() + index * sizeof(out), sizeof(out));
  return out;
}

/// Bytes of one CPU's value by what merge reads of it.
size_t least_value_size(const MapSpec& spec) {
  switch (spec.role) {
    case MapRole::kMin:
    case MapRole::kMax:
    case MapRole::kAvg:
    case MapRole::kStats: return 2 * sizeof(uint64_t);
    case MapRole::kSeries: return 3 * sizeof(uint64_t);
    case MapRole::kValue: return spec.value.size;
    default: return sizeof(uint64_t);
  }
}

Result<void> check_entry(const MapSpec& spec, const MapEntry& entry) {
  if (entry.key.size() != spec.key_size)
    return fail(ErrorCode::kCorrupt, "{} has a key of {} bytes instead of {}", spec.name,
                entry.key.size(), spec.key_size);
  for (const auto& value : entry.values) {
    if (value.size() != spec.value_size || value.size() < least_value_size(spec))
      return fail(ErrorCode::kCorrupt, "{} has a value of {} bytes instead of {}", spec.name,
                  value.size(), spec.value_size);
  }
  if (entry.values.empty())
    return fail(ErrorCode::kCorrupt, "{} has a key without a value", spec.name);
  return {};
}

// ---- merging
// ------------------------------------------------------------------------------------------------------------------

uint64_t added_up(const MapEntry& entry, size_t index) {
  uint64_t total = 0;
  for (const auto& value : entry.values) total += word(value, index);
  return total;
}

Value merged_extreme(const MapSpec& spec, const MapEntry& entry) {
  uint64_t rank = 0;
  bool is_set = false;
  for (const auto& value : entry.values) {
    if (word(value, 1) == 0) continue;
    rank = std::max(rank, word(value, 0));
    is_set = true;
  }
  const uint64_t number =
      is_set ? bundle::number_of_rank(spec.role, spec.value.is_signed, rank) : 0;
  return Value::number(number, spec.value.is_signed);
}

/// Never by 0; the one quotient that does not fit is the dividend itself.
uint64_t divided(uint64_t bits, uint64_t by, bool is_signed) {
  if (by == 0) return bits;
  if (!is_signed) return bits / by;
  if (by > static_cast<uint64_t>(INT64_MAX)) return 0;
  return static_cast<uint64_t>(static_cast<int64_t>(bits) / static_cast<int64_t>(by));
}

Value merged_stats(const MapSpec& spec, const MapEntry& entry) {
  const bool is_signed = spec.value.is_signed;
  const uint64_t count = added_up(entry, 0), sum = added_up(entry, 1);
  Value out{Value::Kind::kRecord, 0, {}, {}, {"count", "average", "total"}};
  out.fields = {Value::number(count, false),
                Value::number(divided(sum, count, is_signed), is_signed),
                Value::number(sum, is_signed)};
  return out;
}

Result<Value> merged_value(const Meaning& meaning, const MapSpec& spec, const MapEntry& entry) {
  switch (spec.role) {
    case MapRole::kValue: return read_value(spec.value, entry.values[0], meaning);
    case MapRole::kCount: return Value::number(added_up(entry, 0), false);
    case MapRole::kSum: return Value::number(added_up(entry, 0), spec.value.is_signed);
    case MapRole::kMin:
    case MapRole::kMax: return merged_extreme(spec, entry);
    case MapRole::kAvg: {
      const uint64_t count = added_up(entry, 0), sum = added_up(entry, 1);
      return Value::number(count == 0 ? 0 : divided(sum, count, spec.value.is_signed),
                           spec.value.is_signed);
    }
    case MapRole::kStats: return merged_stats(spec, entry);
    default: return fail(ErrorCode::kInternal, "{} is no map of the script", spec.name);
  }
}

/// bpftrace's.
constexpr uint32_t kIndentInKeys = 4;

Result<Value> user_key(const Meaning& meaning, const MapSpec& spec, const MapEntry& entry) {
  if (!is_keyed(spec)) return Value{};
  Meaning in_key = meaning;
  in_key.stack_indent = kIndentInKeys;
  return read_value(spec.key, entry.key, in_key);
}

/// The values under keys that read alike become those of one: to the merge they are what more CPUs
/// have counted. A plain value has nothing to be added to.
Result<std::vector<MapEntry>> joined_by_text(const Meaning& meaning,
                                             const MapSpec& spec,
                                             std::span<const MapEntry> entries) {
  std::map<std::string, size_t> place_of_text;
  std::vector<MapEntry> joined;
  for (const MapEntry& entry : entries) {
    SPILE_TRY_VOID(check_entry(spec, entry));
    SPILE_TRY(const Value key, user_key(meaning, spec, entry));
    const auto [place, is_new] = place_of_text.try_emplace(key_json(key), joined.size());
    if (is_new)
      joined.push_back(entry);
    else
      std::ranges::copy(entry.values, std::back_inserter(joined[place->second].values));
  }
  return joined;
}

Result<std::vector<MapRow>> number_rows(const Meaning& meaning,
                                        const MapSpec& spec,
                                        std::span<const MapEntry> entries,
                                        bool joins_equal_texts) {
  if (joins_equal_texts && is_keyed(spec) && spec.role != MapRole::kValue) {
    SPILE_TRY(const auto joined, joined_by_text(meaning, spec, entries));
    return number_rows(meaning, spec, joined, false);
  }
  std::vector<MapRow> rows;
  for (const MapEntry& entry : entries) {
    SPILE_TRY_VOID(check_entry(spec, entry));
    SPILE_TRY(Value key, user_key(meaning, spec, entry));
    SPILE_TRY(Value value, merged_value(meaning, spec, entry));
    rows.push_back({std::move(key), std::move(value)});
  }
  return rows;
}

/// The bucket is the last part of the key: a u64 in keyed maps, the whole u32 key in others.
Result<uint32_t> bucket_of(const MapSpec& spec, const MapEntry& entry) {
  uint64_t bucket = 0;
  const size_t size = is_keyed(spec) ? sizeof(uint64_t) : sizeof(uint32_t);
  if (entry.key.size() < size)
    return fail(ErrorCode::kCorrupt, "{} has a key without a bucket", spec.name);
  std::memcpy(&bucket, entry.key.data() + entry.key.size() - size, size);
  if (bucket >= bucket_count(spec))
    return fail(ErrorCode::kCorrupt, "{} has a bucket {}", spec.name, bucket);
  return static_cast<uint32_t>(bucket);
}

/// Entries of one key make one row. Buckets of all keys come mixed.
Result<std::vector<MapRow>> histogram_rows(const Meaning& meaning,
                                           const MapSpec& spec,
                                           std::span<const MapEntry> entries,
                                           bool joins_equal_texts) {
  std::map<std::string, size_t> row_of_key, row_of_text;
  std::vector<MapRow> rows;
  for (const MapEntry& entry : entries) {
    SPILE_TRY_VOID(check_entry(spec, entry));
    SPILE_TRY(const uint32_t bucket, bucket_of(spec, entry));
    const std::string key_bytes(entry.key.begin(), entry.key.end() - (is_keyed(spec) ? 8 : 4));
    const auto [place, is_new] = row_of_key.try_emplace(key_bytes, rows.size());
    if (is_new) {
      SPILE_TRY(Value key, user_key(meaning, spec, entry));
      if (joins_equal_texts)
        place->second = row_of_text.try_emplace(key_json(key), rows.size()).first->second;
      if (place->second == rows.size()) rows.push_back({std::move(key), Histogram{}});
    }
    if (const uint64_t count = added_up(entry, 0); count != 0)
      std::get<Histogram>(rows[place->second].value)[bucket] += count;
  }
  if (!is_keyed(spec) && rows.size() == 1 && std::get<Histogram>(rows[0].value).empty())
    rows.clear();
  return rows;
}

// ---- tseries()

/// The value of one interval, from the words of several CPUs.
struct IntervalSum {
  uint64_t first = 0, second = 0;
  bool is_set = false;

  void add(bundle::SeriesOf of, uint64_t a, uint64_t b) {
    using bundle::SeriesOf;
    switch (of) {
      case SeriesOf::kLast:
        if (is_set && b <= second) return;
        first = a;
        second = b;
        break;
      case SeriesOf::kAvg:
      case SeriesOf::kSum:
        first += a;
        second += b;
        break;
      case SeriesOf::kMin:
      case SeriesOf::kMax:
        if (b == 0) return;
        first = is_set ? std::max(first, a) : a;
    }
    is_set = true;
  }
  uint64_t number(bundle::SeriesOf of, bool is_signed) const {
    using bundle::SeriesOf;
    switch (of) {
      case SeriesOf::kAvg: return divided(second, first, is_signed);
      case SeriesOf::kSum: return second;
      case SeriesOf::kMin: return bundle::number_of_rank(MapRole::kMin, is_signed, first);
      case SeriesOf::kMax: return bundle::number_of_rank(MapRole::kMax, is_signed, first);
      default: return first;
    }
  }
};

/// Of one key, by interval.
using Intervals = std::map<uint64_t, IntervalSum>;

void add_slot(const MapSpec& spec, const MapEntry& entry, Intervals& intervals) {
  for (const auto& value : entry.values) {
    const uint64_t when = word(value, 0);
    if (bundle::SeriesWord::is_ready(when))
      intervals[bundle::SeriesWord::interval(when)].add(spec.series_of, word(value, 1),
                                                        word(value, 2));
  }
}

/// Slots that nobody has used since may hold what is older than the last series_count intervals.
Series series_of(const MapSpec& spec, const Intervals& intervals, uint64_t last) {
  Series series;
  for (const auto& [interval, sum] : intervals) {
    if (!sum.is_set || last - interval >= spec.series_count) continue;
    series[interval] =
        Value::number(sum.number(spec.series_of, spec.value.is_signed), spec.value.is_signed);
  }
  return series;
}

/// All keys end with the same interval, so that they can be laid side by side.
Result<std::vector<MapRow>> series_rows(const Meaning& meaning,
                                        const MapSpec& spec,
                                        std::span<const MapEntry> entries,
                                        bool joins_equal_texts) {
  std::map<std::string, size_t> row_of_key;
  std::vector<std::pair<Value, Intervals>> found;
  uint64_t last = 0;
  for (const MapEntry& entry : entries) {
    SPILE_TRY_VOID(check_entry(spec, entry));
    SPILE_TRY(Value key, user_key(meaning, spec, entry));
    const size_t slot_bytes = is_keyed(spec) ? sizeof(uint64_t) : sizeof(uint32_t);
    const std::string name =
        joins_equal_texts && is_keyed(spec)
            ? key_json(key)
            : std::string(entry.key.begin(), entry.key.end() - static_cast<ptrdiff_t>(slot_bytes));
    const auto [place, is_new] = row_of_key.try_emplace(name, found.size());
    if (is_new) found.emplace_back(std::move(key), Intervals{});
    add_slot(spec, entry, found[place->second].second);
  }
  for (const auto& [key, intervals] : found)
    if (!intervals.empty()) last = std::max(last, intervals.rbegin()->first);
  std::vector<MapRow> rows;
  for (auto& [key, intervals] : found) {
    Series series = series_of(spec, intervals, last);
    if (!series.empty()) rows.push_back({std::move(key), std::move(series)});
  }
  return rows;
}

// ---- order
// --------------------------------------------------------------------------------------------------------------------

uint64_t total(const Histogram& histogram) {
  uint64_t out = 0;
  for (const auto& [bucket, count] : histogram) out += count;
  return out;
}

/// Text, tuples and pointers say nothing by their size: maps of those are sorted by key alone.
std::strong_ordering by_value(const MapRow& a, const MapRow& b, bool are_stats) {
  if (std::holds_alternative<Histogram>(a.value))
    return total(std::get<Histogram>(a.value)) <=> total(std::get<Histogram>(b.value));
  if (std::holds_alternative<Series>(a.value)) return std::strong_ordering::equal;
  const Value& x = std::get<Value>(a.value);
  const Value& y = std::get<Value>(b.value);
  if (x.kind == Value::Kind::kRecord && are_stats) return compare(x.fields[1], y.fields[1]);
  const bool is_number = x.kind == Value::Kind::kSigned || x.kind == Value::Kind::kUnsigned;
  return is_number ? compare(x, y) : std::strong_ordering::equal;
}

void sort_rows(std::vector<MapRow>& rows, bool are_stats) {
  std::ranges::sort(rows, [are_stats](const MapRow& a, const MapRow& b) {
    const auto order = by_value(a, b, are_stats);
    return order != 0 ? order < 0 : compare(a.key, b.key) < 0;
  });
}

void divide(Value& value, uint64_t div) {
  if (value.is_number() && value.kind != Value::Kind::kBool)
    value.bits = divided(value.bits, div, value.kind == Value::Kind::kSigned);
}

void divide(MapRow& row, uint64_t div) {
  if (auto* series = std::get_if<Series>(&row.value)) {
    for (auto& [interval, value] : *series) divide(value, div);
    return;
  }
  if (auto* histogram = std::get_if<Histogram>(&row.value)) {
    for (auto& [bucket, count] : *histogram) count = divided(count, div, false);
    return;
  }
  divide(std::get<Value>(row.value), div);
}

std::string_view json_type(MapRole role) {
  if (is_histogram(role)) return "hist";
  if (role == MapRole::kSeries) return "tseries";
  return role == MapRole::kAvg || role == MapRole::kStats ? "stats" : "map";
}

/// Names of one JSON object, none twice.
class DistinctNames {
 public:
  /// `quoted`, or that with a number.
  std::string name(const std::string& quoted) {
    std::string distinct = quoted;
    for (int i = 2; !seen_.insert(distinct).second; i++)
      distinct = fmt::format("{} #{}\"", std::string_view(quoted).substr(0, quoted.size() - 1), i);
    return distinct;
  }

 private:
  std::set<std::string> seen_;
};

std::string row_json(const MapRows& map, const MapRow& row) {
  if (const auto* histogram = std::get_if<Histogram>(&row.value))
    return histogram_json(map, *histogram);
  if (const auto* series = std::get_if<Series>(&row.value)) return series_json(map, *series);
  return to_json(std::get<Value>(row.value));
}

}  // namespace

Result<MapRows> merge_map(const Meaning& meaning,
                          const MapSpec& spec,
                          std::span<const MapEntry> entries,
                          const PrintLimits& limits) {
  if (spec.role == MapRole::kRing || spec.role == MapRole::kCounters)
    return fail(ErrorCode::kInternal, "an internal map can not be printed");
  MapRows out{spec.name,       spec.role, is_keyed(spec), spec.lhist_min, spec.lhist_max,
              spec.lhist_step, {},        spec.hist_bits, spec.series_ns};
  auto make_rows = is_histogram(spec.role)         ? histogram_rows
                   : spec.role == MapRole::kSeries ? series_rows
                                                   : number_rows;
  auto rows = make_rows(meaning, spec, entries, limits.joins_equal_texts);
  if (!rows) return forward(rows, "read {}", spec.name);
  sort_rows(*rows, spec.role == MapRole::kStats);
  if (limits.top != 0 && rows->size() > limits.top)
    rows->erase(rows->begin(), rows->end() - static_cast<ptrdiff_t>(limits.top));
  for (MapRow& row : *rows) divide(row, limits.div);
  out.rows = std::move(*rows);
  return out;
}

std::string map_text(const MapRows& map) {
  std::string out;
  for (const MapRow& row : map.rows) {
    out += map.name;
    if (map.is_keyed) out += "[" + key_text(row.key) + "]";
    if (const auto* histogram = std::get_if<Histogram>(&row.value)) {
      out += ":\n" + histogram_text(map, *histogram) + "\n";
    } else if (const auto* series = std::get_if<Series>(&row.value)) {
      out += ":\n" + series_text(map, *series) + "\n";
    } else {
      out += ": " + to_text(std::get<Value>(row.value)) + "\n";
    }
  }
  return out;
}

std::string map_json(const MapRows& map) {
  std::string data;
  if (map.is_keyed) {
    data = "{";
    DistinctNames names;
    for (const MapRow& row : map.rows)
      data += fmt::format("{}{}: {}", data.size() == 1 ? "" : ", ", names.name(key_json(row.key)),
                          row_json(map, row));
    data += "}";
  } else if (!map.rows.empty()) {
    data = row_json(map, map.rows[0]);
  } else {
    data = is_histogram(map.role) || map.role == MapRole::kSeries ? "[]" : "null";
  }
  return fmt::format("{{\"type\": \"{}\", \"data\": {{{}: {}}}}}\n", json_type(map.role),
                     json_string(map.name), data);
}

}  // namespace spile::output
