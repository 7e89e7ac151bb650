// The code that a place's jump leads to.
#pragma once

#include "api/engine.h"
#include "x86/decode.h"

namespace spile::api {

/// Of the probed instruction in the window, which may begin with others where that is how a jump
/// fits.
size_t head_of(const patch::SitePlan& plan);
uint64_t address_of(const patch::SitePlan& plan);
x86::Shape instruction_of(const patch::SitePlan& plan);

/// Makes the place's detour, with a call behind the instruction or not. Its slots are still empty.
/// Errors: those of take_code_memory and x86::relocate.
Result<Detour> make_detour(const Place& place, bool behind);

}  // namespace spile::api
