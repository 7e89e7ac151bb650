// What the processor must have, and how a hit keeps its registers there.
#pragma once

#include "api/hit.h"
#include "base/error.h"

namespace spile::api {

/// How a detour calls handlers that may use every register.
struct Trampolines {
  void (*entry)() = spile_hit_full;
  void (*inside)() = spile_hit_full;
  void (*behind)() = spile_hit_behind_full;
};
/// Chosen by check_machine().
const Trampolines& trampolines();

/// Before the first probe. Errors: unsupported, no xsave, or a shadow stack.
Result<void> check_machine();

}  // namespace spile::api
