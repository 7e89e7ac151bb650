// What a hit costs, measured in spile's own memory: the same machine code as in the target, with
// maps and rings of its own, called some hundred times.
//
// An estimate: caches and branch predictors are warm, arguments are addresses of zeroes, and pid,
// tid and reads of memory go through system calls where the target's may not need them. A hit in
// the target is not slowed down to be timed.
#pragma once

#include <span>

#include "base/error.h"
#include "bpf/checker.h"
#include "bundle/bundle.h"

namespace spile::user_engine {

/// ns a hit, the mean over the uprobe programs of the bundle; `analyses` one a program. Takes about
/// a millisecond. Errors: denied where spile itself may not make code (a security policy), those of
/// compiling.
Result<double> estimate_hit_ns(const bundle::Bundle& bundle,
                               std::span<const bpf::Analysis> analyses);

}  // namespace spile::user_engine
