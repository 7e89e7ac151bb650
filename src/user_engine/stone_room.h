// Where stones may go (patch/placement.h): they are scattered over the address space, wherever a
// few bytes of a jump happen to lead.
#pragma once

#include <vector>

#include "os/process.h"
#include "user_engine/patch/placement.h"
#include "user_engine/target/process.h"

namespace spile::user_engine {

/// Address space that nobody uses, and that the target will not need: not above its break, not
/// below its main stack. Whole pages, by address. Pure.
std::vector<patch::StoneSpace::Range> stone_room(const std::vector<os::MapEntry>& maps,
                                                 const target::GapRules& rules);

}  // namespace spile::user_engine
