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

/// The dynamic loader among the modules of a process: where the kernel put the program's
/// interpreter. Null: a static program, or it is unmapped.
const target::Module* find_loader(const target::Target& target,
                                  std::span<const target::Module> modules);

/// The program, what it needs by its dynamic table, what that needs, and so on: loaded at the start
/// and never unloaded. By start address. Whose file cannot be read is not among them.
std::set<TargetAddr> modules_that_stay(std::span<const target::Module> modules);

}  // namespace spile::user_engine
