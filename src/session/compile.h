// From text to Bundle, one step a line: the first of spile's two stories.
#pragma once

#include <expected>
#include <string>
#include <vector>

#include "bundle/bundle.h"
#include "lang/sema/options.h"
#include "lang/sema/world.h"
#include "lang/syntax/source.h"
#include "session/request.h"

namespace spile::session {

struct Compiled {
  bundle::Bundle bundle;
  std::string warnings;  ///< rendered, empty when there are none
};

/// A diagnostic by itself.
struct ScriptError {
  lang::Position position;
  std::string message, hint;
};

/// Fails with the diagnostics as text, ready to be printed; and one by one in `errors`, if given.
std::expected<Compiled, std::string> compile(const Script& script,
                                             lang::World& world,
                                             lang::CompileOptions options,
                                             std::vector<ScriptError>* errors = nullptr);

/// BPFTRACE_MAX_STRLEN, _MAX_MAP_KEYS, _MAX_CAT_BYTES, _PERF_RB_PAGES, _STACK_MODE,
/// _MISSING_PROBES, _PRINT_MAPS_ON_EXIT, and the same with SPILE_ in front, which wins.
lang::CompileOptions options_from_environment();

/// What `spile dump --stage tokens|ast|typed|bpf` prints.
std::expected<std::string, std::string> dump_stage(const Script& script,
                                                   lang::World& world,
                                                   lang::CompileOptions options,
                                                   std::string_view stage);

}  // namespace spile::session
