// 64 x 64 -> 128 bit multiplication.
#pragma once

#include <stdint.h>

namespace spile::rt {

__extension__ typedef unsigned __int128 Wide;

constexpr Wide multiply_wide(uint64_t a, uint64_t b) {
  return static_cast<Wide>(a) * b;
}

}  // namespace spile::rt
