// `spile sites`: where probes sit, how, and why.
#pragma once

#include <string>
#include <vector>

#include "engine/engine.h"
#include "session/request.h"
#include "user_engine/user_engine.h"

namespace spile::session {

/// What a request allows.
user_engine::TrapUse trap_use(const TargetRequest& target);

/// Where a script's probes would sit in the processes of the request. Nothing is attached.
int plan_sites(const TraceRequest& request);
/// What a running (or killed) spile has patched in these processes.
int show_sites(const std::vector<pid_t>& pids);

/// One site in some lines: address, mechanism, reason, code before and after.
std::string format_site(const engine::SiteReport& site);

}  // namespace spile::session
