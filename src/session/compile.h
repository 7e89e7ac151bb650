// From text to Bundle, one step a line: the first of spile's two stories.
#pragma once

#include <expected>
#include <string>

#include "bundle/bundle.h"
#include "lang/sema/options.h"
#include "lang/sema/world.h"
#include "session/request.h"

namespace spile::session {

struct Compiled {
  bundle::Bundle bundle;
  std::string warnings;  ///< rendered, empty when there are none
};

/// Fails with the diagnostics as text, ready to be printed.
std::expected<Compiled, std::string> compile(const Script& script,
                                             lang::World& world,
                                             lang::CompileOptions options);

/// BPFTRACE_MAX_STRLEN, BPFTRACE_MAX_MAP_KEYS and BPFTRACE_PERF_RB_PAGES, and the same with SPILE_
/// in front, which wins.
lang::CompileOptions options_from_environment();

/// What `spile dump --stage tokens|ast|typed|bpf` prints.
std::expected<std::string, std::string> dump_stage(const Script& script,
                                                   lang::World& world,
                                                   lang::CompileOptions options,
                                                   std::string_view stage);

}  // namespace spile::session
