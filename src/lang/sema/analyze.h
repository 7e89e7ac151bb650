// AST -> typed program, or diagnostics.
//
// The types of maps and variables are inferred over the whole script: all clauses are read again
// and again, each time with the types found so far, until nothing changes; only the last round's
// diagnostics count. Types only ever widen, so this ends.
#pragma once

#include <optional>

#include "lang/sema/options.h"
#include "lang/sema/typed.h"
#include "lang/sema/world.h"
#include "lang/syntax/ast.h"
#include "lang/syntax/diagnostic.h"

namespace spile::lang {

/// Nothing when there are errors; warnings may come with a result. Every construct of the language
/// that is not built is refused by its name.
std::optional<typed::Program> analyze(const ast::Program& program,
                                      World& world,
                                      const CompileOptions& options,
                                      Diagnostics& diagnostics);

}  // namespace spile::lang
