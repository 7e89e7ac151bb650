// `spile info`: what works on this machine, what is missing, why, and how to get it.
#pragma once

#include "session/request.h"

namespace spile::session {

/// Asks the kernel by trying. Always kOk.
int info(Format format);

}  // namespace spile::session
