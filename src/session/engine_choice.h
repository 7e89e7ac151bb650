// Which engine runs a bundle.
#pragma once

#include <string>

#include "base/error.h"
#include "bundle/bundle.h"
#include "session/request.h"

namespace spile::session {

struct ChosenEngine {
  EngineChoice engine = EngineChoice::kUser;
  std::string note;  ///< what the user should know about the choice, or ""
};

/// Kernel-only probes need the kernel engine, and take uprobes of the same script with them, since
/// they may share maps. Uprobes of named processes run in the user engine, system-wide ones in the
/// kernel engine. A script with neither needs no privilege: user engine. Errors: invalid  the
/// engine that was asked for cannot run the script
Result<ChosenEngine> choose_engine(const bundle::Bundle& bundle, const TargetRequest& target);

}  // namespace spile::session
