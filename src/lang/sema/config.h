// `config = { key = value; }` -> options.
#pragma once

#include "lang/sema/options.h"
#include "lang/syntax/ast.h"
#include "lang/syntax/diagnostic.h"

namespace spile::lang {

/// What the environment has set (options.fixed) stays. Settings of bpftrace that mean nothing here
/// are accepted and change nothing; unknown ones, and wrong values, are errors.
void apply_config(const ast::Program& program, CompileOptions& options, Diagnostics& diagnostics);

}  // namespace spile::lang
