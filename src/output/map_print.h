// Map snapshots -> merged over CPUs, sorted, as rows -> text and JSON in bpftrace's form.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <variant>
#include <vector>

#include "base/error.h"
#include "bundle/bundle.h"
#include "engine/engine.h"
#include "output/value.h"

namespace spile::output {

/// Bucket number -> how many; only those that are not 0. Numbers as in bundle::MapSpec.
using Histogram = std::map<uint32_t, uint64_t>;

/// tseries(): number of an interval since 1970 -> what its numbers come to.
using Series = std::map<uint64_t, Value>;

struct MapRow {
  Value key;  ///< kNone: a map without keys
  std::variant<Value, Histogram, Series> value;
};

/// What is to be printed of a map, in this order.
struct MapRows {
  std::string name;
  bundle::MapRole role = bundle::MapRole::kValue;
  bool is_keyed = false;
  int64_t lhist_min = 0, lhist_max = 0, lhist_step = 1;
  std::vector<MapRow> rows;
  uint32_t hist_bits = 0;
  uint64_t series_ns = 0;  ///< tseries(): of one interval
};

/// print(@x, top, div).
struct PrintLimits {
  uint64_t top = 0;  ///< only the largest so many; 0: all
  uint64_t div = 0;  ///< numbers are divided by it; 0: not given
  /// Keys that read alike are one (two stacks of the same functions), and what was aggregated under
  /// them is added up. For JSON, where a reader keeps only the last of equal names.
  bool joins_equal_texts = false;
};

/// Adds CPUs up and sorts: numbers by value, histograms by their total, other values by key; equal
/// ones by key.
///
/// `entries` come from memory that a target may write: sizes and bucket numbers are checked.
/// Errors:  corrupt   an entry's key or value has another size than the map's, or there are too
/// many values
///          internal  the map is none that a script can name
Result<MapRows> merge_map(const Meaning& meaning,
                          const bundle::MapSpec& spec,
                          std::span<const engine::MapEntry> entries,
                          const PrintLimits& limits = {});

/// `@x[1, a]: 5` lines; histograms as a head line, rows of 52 columns and an empty line. "" for an
/// empty map.
std::string map_text(const MapRows& rows);

/// One line: `{"type": "map", "data": {"@x": {"1,a": 5}}}`. Of keys that read alike the later ones
/// get a number: "f", "f #2".
std::string map_json(const MapRows& rows);

}  // namespace spile::output
