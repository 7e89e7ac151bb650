// What we know about dynamic loaders: the function they call when the list of libraries has
// changed, and what they never unload.
#pragma once

#include <optional>
#include <set>
#include <span>

#include "user_engine/target/process.h"
#include "user_engine/target/spawn.h"

namespace spile::user_engine {

/// Symbols of the loader's file. nullopt: it cannot be read, or has no _dl_debug_state.
std::optional<target::LoaderSymbols> loader_symbols(const target::Module& loader);

/// By its file's name: ld-linux-x86-64.so.2, ld-2.31.so, ld-musl-x86_64.so.1.
bool is_loader(const target::Module& module);

/// The program, what it needs by its dynamic table, what that needs, and so on: loaded at the start
/// and never unloaded. By start address. Whose file cannot be read is not among them.
std::set<TargetAddr> modules_that_stay(std::span<const target::Module> modules);

}  // namespace spile::user_engine
