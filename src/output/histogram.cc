#include "output/histogram.h"

#include <algorithm>
#include <array>
#include <optional>

namespace spile::output {
namespace {

using bundle::MapRole;

/// Bounds of hist() go from below 0 to 2^64.
__extension__ using Wide = __int128;

/// [low, high); none: open.
struct Bounds {
  std::optional<Wide> low, high;
};

std::string decimal(Wide value) {
  if (value < 0) return "-" + fmt::format("{}", static_cast<uint64_t>(-value));
  constexpr Wide kTen19 = 10'000'000'000'000'000'000u;
  if (value < kTen19) return fmt::format("{}", static_cast<uint64_t>(value));
  return fmt::format("{}{:019}", static_cast<uint64_t>(value / kTen19),
                     static_cast<uint64_t>(value % kTen19));
}

uint64_t step_count(int64_t min, int64_t max, int64_t step) {
  if (step <= 0 || max <= min) return 0;
  const uint64_t range = static_cast<uint64_t>(max) - static_cast<uint64_t>(min);
  return (range - 1) / static_cast<uint64_t>(step) + 1;
}

/// bundle::hist_bucket_low, also where 64 bits do not hold it.
Wide hist_low(uint32_t bits, uint32_t bucket) {
  const uint64_t exact = uint64_t{1} << bits, n = bucket - 1;
  if (n < exact) return n;
  return Wide{exact + ((n - exact) & (exact - 1))} << ((n - exact) >> bits);
}

Bounds hist_bounds(uint32_t bits, uint32_t bucket) {
  if (bucket == 0) return {std::nullopt, 0};
  return {hist_low(bits, bucket), hist_low(bits, bucket + 1)};
}

Bounds lhist_bounds(const MapRows& map, uint32_t bucket) {
  if (bucket == 0) return {std::nullopt, map.lhist_min};
  if (bucket > step_count(map.lhist_min, map.lhist_max, map.lhist_step))
    return {map.lhist_max, std::nullopt};
  const Wide low = map.lhist_min + Wide{map.lhist_step} * (bucket - 1);
  return {low, std::min<Wide>(low + map.lhist_step, map.lhist_max)};
}

Bounds bounds_of(const MapRows& map, uint32_t bucket) {
  return map.role == MapRole::kHist ? hist_bounds(map.hist_bits, bucket)
                                    : lhist_bounds(map, bucket);
}

/// Multiples of 1024 are shown with K, M, ...: hist() knows all of them, lhist() up to M.
std::string short_number(Wide value, bool is_hist) {
  constexpr std::string_view kSuffixes = "KMGTPE";
  const size_t most = is_hist ? kSuffixes.size() : 2;
  size_t thousands = 0;
  while (thousands < most && value != 0 && value % 1024 == 0) {
    value /= 1024;
    thousands++;
  }
  std::string out = decimal(value);
  if (thousands != 0) out += kSuffixes[thousands - 1];
  return out;
}

std::string label(const MapRows& map, uint32_t bucket) {
  const bool is_hist = map.role == MapRole::kHist;
  const Bounds bounds = bounds_of(map, bucket);
  if (!bounds.low) return fmt::format("(..., {})", short_number(*bounds.high, is_hist));
  if (!bounds.high) return fmt::format("[{}, ...)", short_number(*bounds.low, is_hist));
  if (is_hist && *bounds.low + 1 == *bounds.high)
    return fmt::format("[{}]", short_number(*bounds.low, is_hist));
  return fmt::format("[{}, {})", short_number(*bounds.low, is_hist),
                     short_number(*bounds.high, is_hist));
}

std::string bucket_json(const Bounds& bounds, uint64_t count) {
  std::string out = "{";
  if (bounds.low) out += fmt::format("\"min\": {}, ", decimal(*bounds.low));
  if (bounds.high) out += fmt::format("\"max\": {}, ", decimal(*bounds.high - 1));
  return out + fmt::format("\"count\": {}}}", count);
}

/// The rows to show: from the first to the last bucket with something in it, the empty ones between
/// included.
template <typename Row>
void for_each_row(const Histogram& histogram, Row row) {
  const auto is_filled = [](const auto& entry) { return entry.second != 0; };
  const auto first = std::ranges::find_if(histogram, is_filled);
  if (first == histogram.end()) return;
  const auto last = std::find_if(histogram.rbegin(), histogram.rend(), is_filled);
  for (uint32_t bucket = first->first; bucket <= last->first; bucket++) {
    const auto entry = histogram.find(bucket);
    row(bucket, entry == histogram.end() ? 0 : entry->second);
  }
}

}  // namespace

uint64_t bucket_count(const bundle::MapSpec& spec) {
  if (spec.role == MapRole::kHist) return bundle::hist_bucket_count(spec.hist_bits) + 1;
  return step_count(spec.lhist_min, spec.lhist_max, spec.lhist_step) + 2;
}

std::string histogram_text(const MapRows& map, const Histogram& histogram) {
  constexpr int kColumns = 52;
  uint64_t most = 0;
  for (const auto& [bucket, count] : histogram) most = std::max(most, count);
  std::string out;
  for_each_row(histogram, [&](uint32_t bucket, uint64_t count) {
    // In float, as bpftrace computes it: the same counts give the same bars.
    const float share = static_cast<float>(count) / static_cast<float>(most);
    const int length = std::clamp(static_cast<int>(share * kColumns), 0, kColumns);
    out += fmt::format("{:<16}{:>8} |{:<52}|\n", label(map, bucket), count,
                       std::string(static_cast<size_t>(length), '@'));
  });
  return out;
}

std::string histogram_json(const MapRows& map, const Histogram& histogram) {
  std::string out = "[";
  for_each_row(histogram, [&](uint32_t bucket, uint64_t count) {
    if (out.size() != 1) out += ", ";
    out += bucket_json(bounds_of(map, bucket), count);
  });
  return out + "]";
}

std::vector<HistogramBucket> histogram_buckets(const MapRows& map, const Histogram& histogram) {
  constexpr Wide kMin = INT64_MIN, kMax = INT64_MAX;
  std::vector<HistogramBucket> rows;
  for_each_row(histogram, [&](uint32_t bucket, uint64_t count) {
    const Bounds bounds = bounds_of(map, bucket);
    const Wide low = bounds.low.value_or(kMin), high = bounds.high ? *bounds.high - 1 : kMax;
    rows.push_back({static_cast<int64_t>(std::clamp(low, kMin, kMax)),
                    static_cast<int64_t>(std::clamp(high, kMin, kMax)), count});
  });
  return rows;
}

}  // namespace spile::output
