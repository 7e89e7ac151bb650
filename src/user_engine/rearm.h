// A library that has come back to the place that it had: its jumps are written again.
//
// Its detours are still there, made for these very addresses, and so are the entries of the
// journal: nothing is planned, mapped or compiled anew. What is looked at again is what a stop
// always looks at: the bytes, and where threads stand.
#pragma once

#include <set>

#include "user_engine/attachment.h"

namespace spile::user_engine {

/// Of `modules` those that have their sites back; they are no longer in Attachment::unloaded. Left
/// to extend(): modules that had none; where calls of other modules are noted, counters raised or
/// int3s set. Errors: busy, a thread stands in the way; those of stopping and writing. Then nothing
/// has changed.
Result<std::set<ModuleIdentity>> rearm(Attachment& attachment,
                                       const std::set<ModuleIdentity>& modules,
                                       const AttachContext& context);

}  // namespace spile::user_engine
