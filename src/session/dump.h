// `spile dump --stage ...`: a stage of a script's way to machine code, as text.
#pragma once

#include <string>

#include "session/request.h"

namespace spile::session {

int dump(const TraceRequest& request, const std::string& stage);

}  // namespace spile::session
