// The World of a request: names mean what they mean in the processes that are traced.
#pragma once

#include "session/request.h"
#include "session/world.h"

namespace spile::session {

MachineWorld world_for(const TargetRequest& target);

}  // namespace spile::session
