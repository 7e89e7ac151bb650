// Where an int3 may be set: docs/design/0012-traps.md.
#pragma once

#include <cstdint>

namespace spile::user_engine {

enum class TrapUse : uint8_t {
  kNever,
  kWhereNoJumpFits,
  kEverywhere,  ///< for tests: no jump is tried
};

}  // namespace spile::user_engine
