// Buckets of hist() and lhist() as text and JSON.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "bundle/bundle.h"
#include "output/map_print.h"

namespace spile::output {

/// How many buckets the map's role can have: valid numbers are below. hist: below 0, 0, 1, and one
/// for each further power of two up to 2^63. lhist: below the minimum, the steps (the last one may
/// be shorter), from the maximum on.
uint64_t bucket_count(const bundle::MapSpec& spec);

/// Rows from the first to the last bucket that is not empty:
///
///     [2, 4)                12 |@@@@@@@@@@@@@@@@@@@@@@@@@@                          |
///
/// The label takes 16 columns, the count 8, and the largest count fills 52.
std::string histogram_text(const MapRows& map, const Histogram& histogram);

/// `[{"max": -1, "count": 1}, {"min": 0, "max": 0, "count": 2}]`: the same rows, bounds included.
std::string histogram_json(const MapRows& map, const Histogram& histogram);

/// A row: so many values from low to high, both included. Where there is no bound, and beyond those
/// of 64 bits with sign, it is that of int64_t.
struct HistogramBucket {
  int64_t low = 0, high = 0;
  uint64_t count = 0;
};
std::vector<HistogramBucket> histogram_buckets(const MapRows& map, const Histogram& histogram);

}  // namespace spile::output
