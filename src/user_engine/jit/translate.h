// Writes the x86-64 for a program whose facts are known: one function an instruction class, no
// analysis.
#pragma once

#include "base/error.h"
#include "bpf/insn.h"
#include "user_engine/jit/facts.h"
#include "user_engine/jit/jit.h"
#include "user_engine/jit/liveness.h"
#include "user_engine/jit/shape.h"

namespace spile::jit {

struct Source {
  const bpf::Program& program;
  const Shape& shape;
  const Facts& facts;
  const Liveness& liveness;
};

Result<Body> translate(const Source& source, const JitEnv& env);

}  // namespace spile::jit
