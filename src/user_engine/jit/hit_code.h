// The part of a detour that runs programs, as bytes that can be moved: among thousands of sites
// most have the same.
//
//   DetourSpec -> emit_hit() -> HitCode -> place_hit(), for any place within reach -> Detour
#pragma once

#include <cstdint>
#include <vector>

#include "user_engine/jit/detour.h"

namespace spile::jit {

/// A gate is one word.
inline constexpr size_t kWordBytes = 8;
inline constexpr size_t kGateJumpBytes = 5;

/// What becomes a Gate when the bytes have their place.
struct PlannedGate {
  static constexpr size_t kToDisplaced = SIZE_MAX;
  size_t begin, end;  ///< the instruction that is there while open
  size_t to;          ///< where the jump goes
  size_t first_program, programs;
};

struct HitCode {
  std::vector<uint8_t> bytes;  ///< may be empty: no program needs anything
  /// Every rel32 that leads out of `bytes`, those of an inlined body too.
  std::vector<Relocation> relocations;
  /// In words that are aligned where the code was made for, and wherever that is a multiple of
  /// kWordBytes away.
  std::vector<PlannedGate> gates;
  uint32_t stack_bytes = 0;  ///< as in Detour
  bool on_private_stack = false, inlined = false;
};

/// For spec.at; the displaced code is not asked for. Errors: unsafe, invalid as emit_detour().
Result<HitCode> emit_hit(const DetourSpec& spec);

/// The detour at spec.at: `hit` with its relocations made, then the displaced code.
/// Errors: unsupported, something that `hit` refers to is out of reach; those of spec.displaced.
Result<Detour> place_hit(const HitCode& hit, const DetourSpec& spec);

}  // namespace spile::jit
