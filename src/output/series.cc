#include "output/series.h"

#include <algorithm>

#include "output/format.h"

namespace spile::output {
namespace {

/// Both borders included, as bpftrace draws it.
constexpr int kColumns = 53;
constexpr uint64_t kNsPerSecond = 1'000'000'000;

/// Digits behind the second that tell the intervals apart: 0, 3, 6, 9.
int digits(uint64_t interval_ns) {
  int most = 0;
  for (uint64_t unit = kNsPerSecond; interval_ns % unit != 0; unit /= 1000) most += 3;
  return most;
}

__extension__ using Wide = __int128;

Wide wide(const Value& value) {
  if (value.kind == Value::Kind::kSigned) return static_cast<int64_t>(value.bits);
  return value.bits;
}

/// Numbers between which a series lies.
struct Range {
  const Value *low, *high;

  int column(const Value& value) const {
    if (wide(*low) == wide(*high)) return 0;
    return static_cast<int>((wide(value) - wide(*low)) * (kColumns - 1) /
                            (wide(*high) - wide(*low)));
  }
};

Range range_of(const Series& series) {
  const auto is_less = [](const auto& a, const auto& b) { return wide(a.second) < wide(b.second); };
  const auto [low, high] = std::minmax_element(series.begin(), series.end(), is_less);
  return {&low->second, &high->second};
}

std::string line_of(const Range& range, const Value* value) {
  std::string line(kColumns, ' ');
  line.front() = line.back() = '|';
  if (wide(*range.low) < 0 && wide(*range.high) > 0)
    line[static_cast<size_t>(range.column(Value::number(0, true)))] = '.';
  if (value != nullptr) line[static_cast<size_t>(range.column(*value))] = '*';
  return line + " " + (value != nullptr ? to_text(*value) : "-");
}

/// Calls `row` with each interval from the first to the last, and its number or null.
template <typename Row>
void for_each_interval(const Series& series, Row row) {
  if (series.empty()) return;
  const uint64_t first = series.begin()->first, last = series.rbegin()->first;
  for (uint64_t interval = first;; interval++) {
    const auto found = series.find(interval);
    row(interval, found == series.end() ? nullptr : &found->second);
    if (interval == last) return;
  }
}

}  // namespace

std::string interval_text(uint64_t interval, uint64_t interval_ns) {
  const uint64_t ns = interval * interval_ns;
  const int most = digits(interval_ns);
  std::string out = format_time("%H:%M:%S", static_cast<int64_t>(ns / kNsPerSecond));
  if (most > 0)
    out += "." + fmt::format("{:09}", ns % kNsPerSecond).substr(0, static_cast<size_t>(most));
  return out;
}

std::string series_text(const MapRows& map, const Series& series) {
  if (series.empty()) return "";
  constexpr std::string_view kUnits[] = {"", ".ms", ".us", ".ns"};
  const Range range = range_of(series);
  const int most = digits(map.series_ns);
  const int times = 8 + (most == 0 ? 0 : 1 + most);  // hh:mm:ss.123
  const std::string bounds = fmt::format("{:{}} {:<{}}{}\n", "", times, to_text(*range.low),
                                         kColumns - 1, to_text(*range.high));
  const std::string border(kColumns - 2, '_');
  std::string out = bounds;
  out += fmt::format("{:<{}} |{}|\n", "hh:mm:ss" + std::string(kUnits[most / 3]), times, border);
  for_each_interval(series, [&](uint64_t interval, const Value* value) {
    out += fmt::format("{} {}\n", interval_text(interval, map.series_ns), line_of(range, value));
  });
  out += fmt::format("{:{}} v{}v\n", "", times, border);
  return out + bounds;
}

std::string series_json(const MapRows& map, const Series& series) {
  std::string out = "[";
  for_each_interval(series, [&](uint64_t interval, const Value* value) {
    out += fmt::format("{}{{\"interval_start\": {}, \"value\": {}}}", out.size() == 1 ? "" : ", ",
                       json_string(interval_text(interval, map.series_ns)),
                       value == nullptr ? "null" : to_json(*value));
  });
  return out + "]";
}

}  // namespace spile::output
