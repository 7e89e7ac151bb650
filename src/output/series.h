// tseries() as a picture and as JSON.
#pragma once

#include <string>

#include "output/map_print.h"

namespace spile::output {

/// The time at which an interval began, in local time as fine as the intervals are: "10:41:46.700".
std::string interval_text(uint64_t interval, uint64_t interval_ns);

/// A line an interval, from the first to the last that has a number: its time, a star between the
/// smallest and the largest number, the number.
std::string series_text(const MapRows& map, const Series& series);
/// `[{"interval_start": "10:41:46.700", "value": 5}, ...]`; null where there was none.
std::string series_json(const MapRows& map, const Series& series);

}  // namespace spile::output
