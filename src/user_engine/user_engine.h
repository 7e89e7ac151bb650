// The engine that patches live processes from outside: no root, no agent, nothing in the target but
// memory.
#pragma once

#include <memory>

#include "engine/engine.h"
#include "user_engine/trap_use.h"

namespace spile::user_engine {

struct Options {
  bool measure = false;  ///< count every hit for Stats::hits; costs one locked addition a hit
  TrapUse traps = TrapUse::kNever;
};

/// Runs uprobes in the processes of Scope, and BEGIN, END and interval in this process on the
/// shared maps.
///
/// Errors of attach: unsupported (a probe that only the kernel has), invalid (no process given),
/// and those of user_engine/attachment.h; when one of several processes fails, the others are
/// undone.
std::unique_ptr<engine::Engine> make_engine(const Options& options);

/// Where a bundle's probes would sit in a process, without attaching: `spile sites`.
Result<std::vector<engine::SiteReport>> plan_sites(pid_t pid,
                                                   const bundle::Bundle& bundle,
                                                   TrapUse traps);

/// Machine code of the bundle's programs and of the detours in `pid`, as text: `spile dump --stage
/// jit`.
Result<std::string> dump_code(pid_t pid, const bundle::Bundle& bundle);

}  // namespace spile::user_engine
