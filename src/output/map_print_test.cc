// The expected texts are bpftrace's for the same contents (0.17 to 0.26; the blank after `@h:` is
// the older ones').
#include "output/map_print.h"

#include <gtest/gtest.h>

#include <cstring>

namespace spile::output {
namespace {

using bundle::MapKind;
using bundle::MapRole;
using bundle::MapSpec;
using bundle::ValueKind;
using bundle::ValueType;
using engine::MapEntry;

using Bytes = std::vector<uint8_t>;

Bytes word(uint64_t value, size_t size = 8) {
  Bytes out(8);
  std::memcpy(out.data(), &value, 8);
  out.resize(size);
  return out;
}
Bytes words(std::initializer_list<uint64_t> values) {
  Bytes out;
  for (const uint64_t value : values) {
    const Bytes one = word(value);
    out.insert(out.end(), one.begin(), one.end());
  }
  return out;
}

const ValueType kInt64{ValueKind::kInt, 8, true, {}, {}};
const ValueType kUint64{ValueKind::kInt, 8, false, {}, {}};
const ValueType kIntAndText{
    ValueKind::kTuple, 16, true, {kInt64, {ValueKind::kString, 8, true, {}, {}}}, {0, 8}};

MapSpec keyed(MapRole role, ValueType value = kInt64) {
  MapSpec spec{.name = "@x",
               .role = role,
               .key_size = 8,
               .value_size = 8,
               .max_entries = 100,
               .key = kInt64};
  spec.value = std::move(value);
  if (role == MapRole::kAvg || role == MapRole::kMin || role == MapRole::kMax) spec.value_size = 16;
  if (role == MapRole::kHist || role == MapRole::kLhist) spec.key_size = 16;
  return spec;
}

MapSpec scalar(MapRole role, ValueType value = kInt64) {
  MapSpec spec = keyed(role, std::move(value));
  spec.key = {};
  spec.key_size = role == MapRole::kValue ? 8 : 4;
  return spec;
}

std::string text(const MapSpec& spec,
                 const std::vector<MapEntry>& entries,
                 PrintLimits limits = {}) {
  const auto rows = merge_map(bundle::Bundle(), spec, entries, limits);
  return rows ? map_text(*rows) : "error: " + rows.error().message;
}

std::string json(const MapSpec& spec,
                 const std::vector<MapEntry>& entries,
                 PrintLimits limits = {}) {
  const auto rows = merge_map(bundle::Bundle(), spec, entries, limits);
  return rows ? map_json(*rows) : "error: " + rows.error().message;
}

ErrorCode fault(const MapSpec& spec, const std::vector<MapEntry>& entries) {
  const auto rows = merge_map(bundle::Bundle(), spec, entries);
  EXPECT_FALSE(rows);
  return rows ? ErrorCode::kInvalid : rows.error().code;
}

MapEntry at(uint64_t key, std::vector<Bytes> values) {
  return {word(key), std::move(values)};
}

TEST(MapPrint, AddsUpCpusAndSortsByValue) {
  const std::vector<MapEntry> entries = {at(1, {word(3), word(2)}), at(2, {word(3), word(0)}),
                                         at(3, {word(1), word(2)}), at(4, {word(9), word(0)})};
  EXPECT_EQ(text(keyed(MapRole::kCount), entries), "@x[2]: 3\n@x[3]: 3\n@x[1]: 5\n@x[4]: 9\n");
  EXPECT_EQ(json(keyed(MapRole::kCount), entries),
            "{\"type\": \"map\", \"data\": {\"@x\": {\"2\": 3, \"3\": 3, \"1\": 5, \"4\": 9}}}\n");
}

TEST(MapPrint, ShowsTheLargestAndDivides) {
  const std::vector<MapEntry> entries = {at(1, {word(5)}), at(2, {word(3)}), at(3, {word(3)}),
                                         at(4, {word(9)})};
  EXPECT_EQ(text(keyed(MapRole::kValue), entries, {.top = 2}), "@x[1]: 5\n@x[4]: 9\n");
  EXPECT_EQ(text(keyed(MapRole::kValue), entries, {.top = 2, .div = 3}), "@x[1]: 1\n@x[4]: 3\n");
  EXPECT_EQ(text(keyed(MapRole::kValue), entries, {.top = 99}),
            "@x[2]: 3\n@x[3]: 3\n@x[1]: 5\n@x[4]: 9\n");
}

TEST(MapPrint, SumsWithTheirSign) {
  const std::vector<MapEntry> entries = {at(0, {word(static_cast<uint64_t>(-7)), word(2)})};
  EXPECT_EQ(text(keyed(MapRole::kSum), entries), "@x[0]: -5\n");
  EXPECT_EQ(text(keyed(MapRole::kSum, kUint64), entries), "@x[0]: 18446744073709551611\n");
  EXPECT_EQ(text(keyed(MapRole::kSum), entries, {.div = 2}), "@x[0]: -2\n");
  EXPECT_EQ(text(keyed(MapRole::kSum), entries, {.div = UINT64_MAX}), "@x[0]: 0\n");
}

uint64_t rank(MapRole role, int64_t number) {
  return bundle::rank_for_max(role, true, static_cast<uint64_t>(number));
}

TEST(MapPrint, TakesExtremesOfTheCpusThatHaveOne) {
  for (const auto& [role, expected] :
       {std::pair{MapRole::kMin, "@x[0]: -3\n"}, std::pair{MapRole::kMax, "@x[0]: 8\n"}}) {
    const std::vector<MapEntry> entries = {
        at(0, {words({0, 0}), words({rank(role, 8), 1}), words({rank(role, -3), 1}),
               words({rank(role, 5), 1})})};
    EXPECT_EQ(text(keyed(role), entries), expected);
  }
  EXPECT_EQ(text(keyed(MapRole::kMax), {at(0, {words({UINT64_MAX, 0})})}), "@x[0]: 0\n");
}

TEST(MapPrint, AveragesOverCpus) {
  const std::vector<MapEntry> entries = {at(1, {words({2, 10}), words({1, 5})}),
                                         at(2, {words({1, static_cast<uint64_t>(-4)})}),
                                         at(3, {words({0, 0})})};
  EXPECT_EQ(text(keyed(MapRole::kAvg), entries), "@x[2]: -4\n@x[3]: 0\n@x[1]: 5\n");
  EXPECT_EQ(json(keyed(MapRole::kAvg), entries),
            "{\"type\": \"stats\", \"data\": {\"@x\": {\"2\": -4, \"3\": 0, \"1\": 5}}}\n");
}

TEST(MapPrint, DoesNotTrapOnTheOneOverflowingQuotient) {
  EXPECT_EQ(text(keyed(MapRole::kAvg), {at(0, {words({UINT64_MAX, uint64_t{1} << 63})})}),
            "@x[0]: 0\n");
}

TEST(MapPrint, SortsTextByKey) {
  MapSpec spec = keyed(MapRole::kValue, {ValueKind::kString, 8, true, {}, {}});
  const auto value = [](std::string_view s) {
    Bytes out(s.begin(), s.end());
    out.resize(8);
    return out;
  };
  EXPECT_EQ(text(spec, {at(3, {value("a")}), at(static_cast<uint64_t>(-1), {value("z")}),
                        at(2, {value("b")})}),
            "@x[-1]: z\n@x[2]: b\n@x[3]: a\n");
  EXPECT_EQ(json(spec, {at(3, {value("a\"")})}),
            "{\"type\": \"map\", \"data\": {\"@x\": {\"3\": \"a\\\"\"}}}\n");
}

/// Keys that differ and read alike, as two stacks of the same functions do: "f" and "f".
const uint64_t kOneF = 'f', kOtherF = 'f' | 'x' << 16;

MapSpec by_name(MapRole role) {
  MapSpec spec = keyed(role);
  spec.key = {ValueKind::kString, 8, true, {}, {}};
  return spec;
}

TEST(MapPrint, JsonAddsUpWhatReadsAlike) {
  constexpr PrintLimits kJson = {.joins_equal_texts = true};
  const auto one = [](MapRole role, Bytes a, Bytes b, PrintLimits limits) {
    const auto out =
        json(by_name(role), {at(kOneF, {std::move(a)}), at(kOtherF, {std::move(b)})}, limits);
    return out.substr(out.find("@x") + 5);
  };
  EXPECT_EQ(one(MapRole::kCount, word(3), word(2), kJson), "{\"f\": 5}}}\n");
  EXPECT_EQ(one(MapRole::kMax, words({rank(MapRole::kMax, 3), 1}),
                words({rank(MapRole::kMax, 9), 1}), kJson),
            "{\"f\": 9}}}\n");
  EXPECT_EQ(one(MapRole::kAvg, words({1, 10}), words({3, 50}), kJson), "{\"f\": 15}}}\n");
  // Nothing to add up: the names are made distinct.
  EXPECT_EQ(one(MapRole::kValue, word(3), word(2), kJson), "{\"f\": 2, \"f #2\": 3}}}\n");
  // The largest are chosen of what is shown.
  EXPECT_EQ(json(by_name(MapRole::kCount),
                 {at(kOneF, {word(3)}), at('g', {word(4)}), at(kOtherF, {word(2)})},
                 {.top = 1, .joins_equal_texts = true}),
            "{\"type\": \"map\", \"data\": {\"@x\": {\"f\": 5}}}\n");
  // Text shows both lines, as bpftrace does.
  EXPECT_EQ(text(by_name(MapRole::kCount), {at(kOneF, {word(3)}), at(kOtherF, {word(2)})}),
            "@x[f]: 2\n@x[f]: 3\n");
}

TEST(Hist, JsonAddsUpWhatReadsAlike) {
  const auto key = [](uint64_t name, uint64_t bucket) {
    return MapEntry{words({name, bucket}), {word(2)}};
  };
  const auto out = json(by_name(MapRole::kHist), {key(kOneF, 3), key(kOtherF, 3), key(kOtherF, 4)},
                        {.joins_equal_texts = true});
  EXPECT_EQ(out.find("\"f\""), out.rfind("\"f\"")) << out;
  EXPECT_NE(out.find("\"count\": 4"), std::string::npos) << out;
  EXPECT_NE(out.find("\"count\": 2"), std::string::npos) << out;
}

TEST(MapPrint, ShowsKeysOfSeveralParts) {
  MapSpec spec = keyed(MapRole::kCount);
  spec.key = kIntAndText;
  spec.key_size = 16;
  Bytes key = word(1);
  for (const char c : std::string_view("b c\0\0\0\0\0", 8)) key.push_back(static_cast<uint8_t>(c));
  EXPECT_EQ(text(spec, {{key, {word(4)}}}), "@x[1, b c]: 4\n");
  EXPECT_EQ(json(spec, {{key, {word(4)}}}),
            "{\"type\": \"map\", \"data\": {\"@x\": {\"1,b c\": 4}}}\n");
}

TEST(MapPrint, ShowsScalars) {
  EXPECT_EQ(text(scalar(MapRole::kValue), {{word(0), {word(5)}}}), "@x: 5\n");
  EXPECT_EQ(text(scalar(MapRole::kCount), {{word(0, 4), {word(1), word(2)}}}), "@x: 3\n");
  EXPECT_EQ(json(scalar(MapRole::kCount), {{word(0, 4), {word(1), word(2)}}}),
            "{\"type\": \"map\", \"data\": {\"@x\": 3}}\n");
}

TEST(MapPrint, ShowsNothingOfEmptyMaps) {
  EXPECT_EQ(text(keyed(MapRole::kCount), {}), "");
  EXPECT_EQ(text(scalar(MapRole::kHist), {{word(0, 4), {word(0)}}, {word(1, 4), {word(0)}}}), "");
  EXPECT_EQ(json(keyed(MapRole::kCount), {}), "{\"type\": \"map\", \"data\": {\"@x\": {}}}\n");
  EXPECT_EQ(json(scalar(MapRole::kHist), {}), "{\"type\": \"hist\", \"data\": {\"@x\": []}}\n");
}

MapEntry bucket(uint32_t number, uint64_t count) {
  return {word(number, 4), {word(count)}};
}
MapEntry bucket_of(uint64_t key, uint64_t number, uint64_t count) {
  return {words({key, number}), {word(count), word(0)}};
}

TEST(Hist, HasTheShapeOfBpftrace) {
  EXPECT_EQ(text(scalar(MapRole::kHist), {bucket(0, 1), bucket(1, 1), bucket(2, 0), bucket(4, 2),
                                          bucket(12, 3), bucket(18, 0)}),
            "@x:\n"
            "(..., 0)               1 |@@@@@@@@@@@@@@@@@                                   |\n"
            "[0]                    1 |@@@@@@@@@@@@@@@@@                                   |\n"
            "[1]                    0 |                                                    |\n"
            "[2, 4)                 0 |                                                    |\n"
            "[4, 8)                 2 |@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@                  |\n"
            "[8, 16)                0 |                                                    |\n"
            "[16, 32)               0 |                                                    |\n"
            "[32, 64)               0 |                                                    |\n"
            "[64, 128)              0 |                                                    |\n"
            "[128, 256)             0 |                                                    |\n"
            "[256, 512)             0 |                                                    |\n"
            "[512, 1K)              0 |                                                    |\n"
            "[1K, 2K)               3 |@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@|\n"
            "\n");
}

TEST(Hist, LabelsGoUpToTheLastPowerOfTwo) {
  const auto label = [](uint32_t number) {
    const std::string all = text(scalar(MapRole::kHist), {bucket(number, 1)});
    return all.substr(4, 16);
  };
  EXPECT_EQ(label(21), "[512K, 1M)      ");
  EXPECT_EQ(label(31), "[512M, 1G)      ");
  EXPECT_EQ(label(64), "[4E, 8E)        ");
  EXPECT_EQ(label(65), "[8E, 16E)       ");
}

TEST(Hist, OfSeveralKeysIsSortedByTotal) {
  const std::vector<MapEntry> entries = {bucket_of(2, 3, 1), bucket_of(1, 3, 1),
                                         bucket_of(2, 5, 1)};
  EXPECT_EQ(text(keyed(MapRole::kHist), entries),
            "@x[1]:\n"
            "[2, 4)                 1 |@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@|\n"
            "\n"
            "@x[2]:\n"
            "[2, 4)                 1 |@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@|\n"
            "[4, 8)                 0 |                                                    |\n"
            "[8, 16)                1 |@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@|\n"
            "\n");
  EXPECT_EQ(
      json(keyed(MapRole::kHist), entries),
      "{\"type\": \"hist\", \"data\": {\"@x\": {\"1\": [{\"min\": 2, \"max\": 3, \"count\": 1}], "
      "\"2\": [{\"min\": 2, \"max\": 3, \"count\": 1}, {\"min\": 4, \"max\": 7, \"count\": 0}, "
      "{\"min\": 8, \"max\": 15, \"count\": 1}]}}}\n");
  EXPECT_EQ(text(keyed(MapRole::kHist), entries, {.top = 1, .div = 2}), "@x[2]:\n\n");
}

TEST(Hist, JsonBoundsAreInclusive) {
  EXPECT_EQ(json(scalar(MapRole::kHist), {bucket(0, 1), bucket(1, 1), bucket(2, 1)}),
            "{\"type\": \"hist\", \"data\": {\"@x\": [{\"max\": -1, \"count\": 1}, {\"min\": 0, "
            "\"max\": 0, \"count\": 1}, "
            "{\"min\": 1, \"max\": 1, \"count\": 1}]}}\n");
  EXPECT_EQ(json(scalar(MapRole::kHist), {bucket(65, 1)}),
            "{\"type\": \"hist\", \"data\": {\"@x\": [{\"min\": 9223372036854775808, \"max\": "
            "18446744073709551615, \"count\": 1}]}}\n");
}

MapSpec lhist(int64_t min, int64_t max, int64_t step) {
  MapSpec spec = scalar(MapRole::kLhist);
  spec.lhist_min = min;
  spec.lhist_max = max;
  spec.lhist_step = step;
  return spec;
}

TEST(Lhist, HasTheShapeOfBpftrace) {
  EXPECT_EQ(text(lhist(0, 10, 2), {bucket(0, 1), bucket(3, 1), bucket(6, 1)}),
            "@x:\n"
            "(..., 0)               1 |@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@|\n"
            "[0, 2)                 0 |                                                    |\n"
            "[2, 4)                 0 |                                                    |\n"
            "[4, 6)                 1 |@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@|\n"
            "[6, 8)                 0 |                                                    |\n"
            "[8, 10)                0 |                                                    |\n"
            "[10, ...)              1 |@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@|\n"
            "\n");
}

TEST(Lhist, ShortensMultiplesOf1024Only) {
  EXPECT_EQ(text(lhist(0, 102'400, 1024), {bucket(5, 1)}).substr(4, 10), "[4K, 5K)  ");
  EXPECT_EQ(text(lhist(0, 10'000, 1000), {bucket(6, 1)}).substr(4, 13), "[5000, 6000) ");
  EXPECT_EQ(text(lhist(0, 1 << 24, 1 << 20), {bucket(5, 1)}).substr(4, 10), "[4M, 5M)  ");
  EXPECT_EQ(text(lhist(1020, 1030, 1), {bucket(5, 1)}).substr(4, 12), "[1K, 1025)  ");
  EXPECT_EQ(text(lhist(0, 10, 1), {bucket(4, 1)}).substr(4, 8), "[3, 4)  ");
}

TEST(Lhist, CutsTheLastStepAtTheMaximum) {
  EXPECT_EQ(text(lhist(1, 11, 3), {bucket(4, 1)}).substr(4, 9), "[10, 11) ");
  EXPECT_EQ(text(lhist(1, 11, 3), {bucket(5, 1)}).substr(4, 10), "[11, ...) ");
  EXPECT_EQ(text(lhist(-10, 10, 5), {bucket(1, 1)}).substr(4, 10), "[-10, -5) ");
}

TEST(Lhist, StandsTheWidestBounds) {
  EXPECT_EQ(text(lhist(INT64_MIN, INT64_MAX, INT64_MAX), {bucket(3, 1)}).substr(4, 26),
            "[9223372036854775806, 9223");
  EXPECT_EQ(json(lhist(INT64_MIN, INT64_MAX, INT64_MAX), {bucket(0, 1)}),
            "{\"type\": \"hist\", \"data\": {\"@x\": [{\"max\": -9223372036854775809, \"count\": "
            "1}]}}\n");
}

TEST(HostileMap, IsReadAsUntrusted) {
  EXPECT_EQ(fault(keyed(MapRole::kCount), {{word(1, 4), {word(1)}}}), ErrorCode::kCorrupt);
  EXPECT_EQ(fault(keyed(MapRole::kCount), {at(1, {word(1, 4)})}), ErrorCode::kCorrupt);
  EXPECT_EQ(fault(keyed(MapRole::kCount), {at(1, {})}), ErrorCode::kCorrupt);
  EXPECT_EQ(fault(keyed(MapRole::kHist), {bucket_of(1, UINT64_MAX, 1)}), ErrorCode::kCorrupt);
  EXPECT_EQ(fault(keyed(MapRole::kHist), {bucket_of(1, 66, 1)}), ErrorCode::kCorrupt);
  EXPECT_EQ(fault(lhist(0, 10, 2), {bucket(7, 1)}), ErrorCode::kCorrupt);
  EXPECT_EQ(fault(lhist(0, 10, 0), {bucket(2, 1)}), ErrorCode::kCorrupt);
  EXPECT_EQ(fault(keyed(MapRole::kCounters), {}), ErrorCode::kInternal);
  MapSpec by_probe = keyed(MapRole::kCount);
  by_probe.key = {ValueKind::kProbe, 8, false, {}, {}};
  EXPECT_EQ(fault(by_probe, {at(5, {word(1)})}), ErrorCode::kCorrupt);
}

}  // namespace
}  // namespace spile::output
