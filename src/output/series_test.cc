// The picture is that of bpftrace's manual.
#include "output/series.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <cstring>
#include <ctime>

namespace spile::output {
namespace {

using bundle::MapRole;
using bundle::SeriesOf;
using engine::MapEntry;

using Bytes = std::vector<uint8_t>;

Bytes words(std::initializer_list<uint64_t> values) {
  Bytes out(values.size() * 8);
  std::memcpy(out.data(), std::data(values), out.size());
  return out;
}

constexpr uint64_t kTenth = 100'000'000;
/// 10:39:49.300 of some day.
constexpr uint64_t kFirst = (uint64_t{1'700'000'000} / 86'400 * 86'400 + 38'389) * 10 + 3;

class Series_ : public testing::Test {
 protected:
  Series_() {
    setenv("TZ", "UTC", 1);
    tzset();
    spec_.name = "@";
    spec_.role = MapRole::kSeries;
    spec_.key_size = 4;
    spec_.value_size = 24;
    spec_.value = {bundle::ValueKind::kInt, 8, true, {}, {}};
    spec_.series_ns = kTenth;
    spec_.series_count = 5;
  }
  /// A value of one CPU: interval kFirst + n.
  void add(uint32_t slot, std::initializer_list<Bytes> cpus) {
    MapEntry entry;
    entry.key.resize(4);
    std::memcpy(entry.key.data(), &slot, 4);
    for (const Bytes& cpu : cpus) entry.values.push_back(cpu);
    entries_.push_back(std::move(entry));
  }
  static Bytes at(uint64_t n, uint64_t a, uint64_t b) {
    return words({bundle::SeriesWord::of(kFirst + n), a, b});
  }
  Result<MapRows> merged() const { return merge_map(bundle_, spec_, entries_, {}); }
  std::string text() const { return map_text(*merged()); }

  bundle::Bundle bundle_;
  bundle::MapSpec spec_;
  std::vector<MapEntry> entries_;
};

TEST_F(Series_, AreDrawn) {
  spec_.series_of = SeriesOf::kSum;
  add(0, {at(0, 0, static_cast<uint64_t>(-5))});
  add(1, {at(1, 0, static_cast<uint64_t>(-4))});
  add(3, {at(3, 0, 2), at(3, 0, 3)});
  EXPECT_EQ(text(),
            "@:\n"
            "             -5                                                  5\n"
            "hh:mm:ss.ms  |___________________________________________________|\n"
            "10:39:49.300 *                         .                         | -5\n"
            "10:39:49.400 |    *                    .                         | -4\n"
            "10:39:49.500 |                         .                         | -\n"
            "10:39:49.600 |                         .                         * 5\n"
            "             v___________________________________________________v\n"
            "             -5                                                  5\n"
            "\n");
  EXPECT_EQ(map_json(*merged()),
            "{\"type\": \"tseries\", \"data\": {\"@\": [{\"interval_start\": \"10:39:49.300\", "
            "\"value\": -5}, "
            "{\"interval_start\": \"10:39:49.400\", \"value\": -4}, {\"interval_start\": "
            "\"10:39:49.500\", "
            "\"value\": null}, {\"interval_start\": \"10:39:49.600\", \"value\": 5}]}}\n");
}

TEST_F(Series_, OfSeveralCpusAreOne) {
  const auto number_of = [&](SeriesOf of, std::initializer_list<Bytes> cpus) {
    entries_.clear();
    spec_.series_of = of;
    add(0, cpus);
    const auto rows = merged();
    const auto& series = std::get<Series>(rows->rows.at(0).value);
    return static_cast<int64_t>(series.at(kFirst).bits);
  };
  const auto rank = [](MapRole role, int64_t n) {
    return bundle::rank_for_max(role, true, static_cast<uint64_t>(n));
  };
  EXPECT_EQ(number_of(SeriesOf::kLast, {at(0, 7, 100), at(0, 8, 300), at(0, 9, 200)}), 8);
  EXPECT_EQ(number_of(SeriesOf::kAvg, {at(0, 1, 10), at(0, 3, 30)}), 10);
  EXPECT_EQ(number_of(SeriesOf::kMax, {at(0, rank(MapRole::kMax, -3), 1), at(0, 0, 0),
                                       at(0, rank(MapRole::kMax, -7), 1)}),
            -3);
  EXPECT_EQ(number_of(SeriesOf::kMin,
                      {at(0, rank(MapRole::kMin, -3), 1), at(0, rank(MapRole::kMin, -7), 1)}),
            -7);
}

TEST_F(Series_, DropWhatIsTooOld) {
  spec_.series_of = SeriesOf::kSum;
  add(0, {at(0, 0, 1), at(5, 0, 2)});  // the slot of two intervals, one for each CPU
  add(1, {at(1, 0, 4)});
  add(2, {words({0, 9, 9})});                      // fresh
  add(3, {words({~uint64_t{kFirst + 4}, 9, 9})});  // claimed
  const auto rows = merged();
  const auto& series = std::get<Series>(rows->rows.at(0).value);
  ASSERT_EQ(series.size(), 2u);
  EXPECT_EQ(series.at(kFirst + 1).bits, 4u);
  EXPECT_EQ(series.at(kFirst + 5).bits, 2u);
}

TEST_F(Series_, ThatNeverCountedPrintNothing) {
  add(0, {words({0, 0, 0})});
  EXPECT_EQ(text(), "");
  EXPECT_EQ(map_json(*merged()), "{\"type\": \"tseries\", \"data\": {\"@\": []}}\n");
}

TEST(SeriesTimes, AreAsFineAsTheIntervals) {
  setenv("TZ", "UTC", 1);
  tzset();
  EXPECT_EQ(interval_text(3661, 1'000'000'000), "01:01:01");
  EXPECT_EQ(interval_text(61, 1'500'000'000), "00:01:31.500");
  EXPECT_EQ(interval_text(7, 1'000), "00:00:00.000007");
  EXPECT_EQ(interval_text(7, 1), "00:00:00.000000007");
}

}  // namespace
}  // namespace spile::output
