#include "session/latency.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <vector>

#include "bundle/bundle.h"

namespace spile::session {
namespace {

/// The bucket that the programs count a duration into, found by the Bundle's own bounds.
uint32_t bucket_of(uint64_t ns) {
  uint32_t bucket = 1;
  while (bundle::hist_bucket_low(kLatencyBits, bucket + 1) <= ns) bucket++;
  return bucket;
}

Latencies of(const std::vector<uint64_t>& durations) {
  Latencies all;
  for (uint64_t ns : durations) {
    all.add(bucket_of(ns), 1);
    all.note_longest(ns);
  }
  return all;
}

TEST(Latency, OfNoCallsIsNothing) {
  EXPECT_EQ(Latencies().percentile(0.5), 0);
  EXPECT_EQ(Latencies().count(), 0u);
}

TEST(Latency, SmallNumbersAreExact) {
  const Latencies all = of({1, 2, 3, 4, 5, 6, 7, 8, 9, 30});
  EXPECT_EQ(all.count(), 10u);
  EXPECT_EQ(all.percentile(0.5), 5);
  EXPECT_EQ(all.percentile(0.9), 9);
  EXPECT_EQ(all.percentile(0.99), 30);
  EXPECT_EQ(all.percentile(1), 30);
}

TEST(Latency, NoPercentileIsMoreThanTheLongest) {
  EXPECT_EQ(of({1'000'001}).percentile(0.999), 1'000'001 - 0) << "the bucket goes further";
  EXPECT_LE(of({5, 5, 1025}).percentile(1), 1025);
}

TEST(Latency, PercentilesAreWithinThreePercentOfTheTrueOnes) {
  std::mt19937_64 random(7);
  std::lognormal_distribution<double> spread(9, 2);
  std::vector<uint64_t> durations;
  for (int i = 0; i < 20000; i++) durations.push_back(static_cast<uint64_t>(spread(random)) + 1);
  const Latencies all = of(durations);
  std::ranges::sort(durations);
  for (const Percentile& one : kPercentiles) {
    const auto rank = static_cast<size_t>(one.part * static_cast<double>(durations.size()));
    const auto truth = static_cast<double>(durations[std::min(rank, durations.size() - 1)]);
    EXPECT_NEAR(all.percentile(one.part), truth, truth * 0.04) << one.name;
  }
}

TEST(Latency, OfAnIntervalIsOfItsCallsAlone) {
  Latencies first = of({10, 10, 10, 10});
  Latencies both = of({10, 10, 10, 10, 500'000});
  const Latencies gained = both.since(first);
  EXPECT_EQ(gained.count(), 1u);
  EXPECT_NEAR(gained.percentile(0.5), 500'000, 15'000);
  EXPECT_EQ(gained.longest_ns(), 0u);
}

TEST(Latency, OfSeveralCpusAddsUp) {
  Latencies all = of({1, 2});
  all.add(of({3, 4}));
  EXPECT_EQ(all.count(), 4u);
  EXPECT_EQ(all.longest_ns(), 4u);
  EXPECT_EQ(all.percentile(0.75), 3);
}

}  // namespace
}  // namespace spile::session
