// Bodies and detours as text: `spile dump --stage jit`.
#pragma once

#include <string>

#include "user_engine/jit/detour.h"
#include "user_engine/jit/jit.h"

namespace spile::jit {

/// A line of facts (stack, registers read and destroyed), then one instruction a line.
std::string to_text(const Body& body);
std::string to_text(const Detour& detour, TargetAddr at);

/// The names of the registers in a mask: "rax rdi flags cookie".
std::string slot_names(SlotMask mask);

}  // namespace spile::jit
