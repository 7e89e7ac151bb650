#include "session/dump.h"

#include <fmt/format.h>

#include <cstdio>

#include "session/compile.h"
#include "session/sites.h"
#include "session/world_for.h"
#include "user_engine/user_engine.h"

namespace spile::session {

namespace {

/// Stages that depend on where the code will run.
int dump_for_process(const TraceRequest& request, MachineWorld& world, const std::string& stage) {
  if (request.target.pids.size() != 1) {
    fmt::print(stderr, "spile: dump --stage {}: give one process with -p PID\n", stage);
    return kUsage;
  }
  auto compiled = compile(request.script, world, options_from_environment());
  if (!compiled) {
    fmt::print(stderr, "{}", compiled.error());
    return kFailed;
  }
  auto code = user_engine::dump_code(request.target.pids.front(), compiled->bundle);
  if (!code) {
    fmt::print(stderr, "spile: {}\n", code.error().message);
    return kFailed;
  }
  fmt::print("{}", *code);
  return kOk;
}

}  // namespace

int dump(const TraceRequest& request, const std::string& stage) {
  if (stage == "plan") return plan_sites(request);
  MachineWorld world = world_for(request.target);
  if (stage == "jit") return dump_for_process(request, world, stage);
  auto text = dump_stage(request.script, world, options_from_environment(), stage);
  if (!text) {
    fmt::print(stderr, "{}", text.error());
    return kFailed;
  }
  fmt::print("{}", *text);
  return kOk;
}

}  // namespace spile::session
