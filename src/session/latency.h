// How long calls took: a fine histogram by CPU -> percentiles. Pure.
//
// The programs count each duration into a bucket of hist(duration, 5): 32 buckets for every power
// of two, so that a percentile is known within 3 % whatever its size, nothing is lost when calls
// are many, and the memory does not grow with them.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <string_view>

namespace spile::session {

inline constexpr uint32_t kLatencyBits = 5;

struct Percentile {
  double part;
  std::string_view name;
};
inline constexpr std::array kPercentiles = {Percentile{0.5, "p50"}, Percentile{0.9, "p90"},
                                            Percentile{0.99, "p99"}, Percentile{0.999, "p99.9"}};

class Latencies {
 public:
  void add(uint32_t bucket, uint64_t count) {
    if (count > 0) buckets_[bucket] += count;
  }
  void add(const Latencies& other);
  /// The longest of all calls; a percentile is never more.
  void note_longest(uint64_t ns) { longest_ns_ = longest_ns_ > ns ? longest_ns_ : ns; }

  uint64_t count() const;
  uint64_t longest_ns() const { return longest_ns_; }
  /// Nanoseconds that `part` (0 to 1) of the calls did not exceed; 0 without calls. Within its
  /// bucket calls are taken to be spread evenly.
  double percentile(double part) const;
  /// What has come since `before` was read. Its longest is not known: 0.
  Latencies since(const Latencies& before) const;

 private:
  std::map<uint32_t, uint64_t> buckets_;
  uint64_t longest_ns_ = 0;
};

}  // namespace spile::session
