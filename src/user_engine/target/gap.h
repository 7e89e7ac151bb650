// What find_gap() (process.h) keeps free for the target, for others who choose places.
#pragma once

#include <stdint.h>

#include "user_engine/target/process.h"

namespace spile::target {

/// How much below the main stack's upper end must stay free for it to grow: RLIMIT_STACK may be
/// raised later, or be "unlimited".
uint64_t stack_room_bytes(const GapRules& rules);

}  // namespace spile::target
