// printf's formats with the fields of a record.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "base/error.h"
#include "bundle/bundle.h"
#include "output/names.h"

namespace spile::output {

/// C's printf on the fields of `record`: flags `- + space # 0`, width, precision, lengths h hh l ll
/// L j z t, conversions d i u o x X c p s r %%. As in C a number without a length is an int: `%d`
/// shows the low 32 bits of a larger one. %s also takes numbers, pointers, probes and tuples and
/// shows them as print() would; %r shows a buffer with `\x00` escapes, %rx all bytes as `\x00`, %rh
/// as `00 00`.
///
/// Errors:  corrupt   the record is too short for its fields, or a field makes no sense
///          internal  the format asks for more fields than there are, or is none (the front end
///          checks formats)
Result<std::string> format_printf(std::string_view format,
                                  std::span<const bundle::RecordField> fields,
                                  std::span<const uint8_t> record,
                                  const Meaning& meaning);

/// strftime in the local time zone of `seconds` since 1970.
std::string format_time(std::string_view format, int64_t seconds);

}  // namespace spile::output
