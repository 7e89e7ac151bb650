// The format file of a kernel event: text -> fields.
#pragma once

#include <string_view>

#include "base/error.h"
#include "lang/sema/world.h"

namespace spile::session {

/// Parses events/CATEGORY/EVENT/format:
///
///   name: sched_switch
///   ID: 372
///   format:
///   	field:char prev_comm[16];	offset:8;	size:16;	signed:0;
///   print fmt: ...
///
/// Errors: corrupt, naming the line.
Result<lang::Tracepoint> parse_tracepoint_format(std::string_view category,
                                                 std::string_view event,
                                                 std::string_view text);

}  // namespace spile::session
