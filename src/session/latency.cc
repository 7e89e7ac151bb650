#include "session/latency.h"

#include <algorithm>
#include <cmath>

#include "bundle/bundle.h"

namespace spile::session {

namespace {

/// Also where 64 bits do not hold it.
double low_of(uint32_t bucket) {
  if (bucket == 0) return 0;  // of negative numbers: there are none
  const uint32_t exact = 1u << kLatencyBits, n = bucket - 1;
  if (n < exact) return n;
  const auto power = static_cast<int>((n - exact) >> kLatencyBits);
  return std::ldexp(static_cast<double>(exact + ((n - exact) & (exact - 1))), power);
}

}  // namespace

void Latencies::add(const Latencies& other) {
  for (const auto& [bucket, count] : other.buckets_) add(bucket, count);
  note_longest(other.longest_ns_);
}

uint64_t Latencies::count() const {
  uint64_t sum = 0;
  for (const auto& [bucket, count] : buckets_) sum += count;
  return sum;
}

double Latencies::percentile(double part) const {
  const double calls = static_cast<double>(count());
  const double rank = std::clamp(std::ceil(part * calls), 1.0, std::max(calls, 1.0));
  double below = 0;
  for (const auto& [bucket, count] : buckets_) {
    const auto here = static_cast<double>(count);
    if (below + here < rank) {
      below += here;
      continue;
    }
    const double low = low_of(bucket), width = low_of(bucket + 1) - low;
    // A bucket of one number is that number.
    const double ns = width <= 1 ? low : low + width * (rank - below - 0.5) / here;
    return longest_ns_ > 0 ? std::min(ns, static_cast<double>(longest_ns_)) : ns;
  }
  return 0;
}

/// Counts are read one after the other while the programs run: none goes back.
Latencies Latencies::since(const Latencies& before) const {
  Latencies gained;
  for (const auto& [bucket, count] : buckets_) {
    const auto was = before.buckets_.find(bucket);
    gained.add(bucket, count - (was == before.buckets_.end() ? 0 : std::min(count, was->second)));
  }
  return gained;
}

}  // namespace spile::session
