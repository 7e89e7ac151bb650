// Typed program -> Bundle: eBPF that the verifiers of Linux 6.1 and later accept, and that our own
// checker accepts.
#pragma once

#include <expected>

#include "bundle/bundle.h"
#include "lang/sema/options.h"
#include "lang/sema/typed.h"
#include "lang/syntax/diagnostic.h"

namespace spile::lang {

/// Errors: a clause needs more stack than eBPF has, or is too long for a jump. They have the
/// clause's span.
std::expected<bundle::Bundle, Diagnostics> generate(const typed::Program& program,
                                                    const CompileOptions& options);

}  // namespace spile::lang
