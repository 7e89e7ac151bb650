// What we know about dynamic loaders: the function they call when the list of libraries has
// changed.
#pragma once

#include <optional>

#include "user_engine/target/process.h"
#include "user_engine/target/spawn.h"

namespace spile::user_engine {

/// Symbols of the loader's file. nullopt: it cannot be read, or has no _dl_debug_state.
std::optional<target::LoaderSymbols> loader_symbols(const target::Module& loader);

}  // namespace spile::user_engine
