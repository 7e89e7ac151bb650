// Who may take SIGTRAP away while int3s are set, asked to wait until they are gone.
//
// Hidden probes at the C library's sigaction, pthread_sigmask and sigprocmask. Where a call would
// give SIGTRAP another action, block it, or have a handler run with it blocked, the program of the
// probe notes a wish in shared memory and waits, some 40 ms at most, for the tracer to take the
// int3s out in a stop and to answer; then the call goes on. Nobody answers once the tracer is dead:
// the first wait ends by itself and is the last.
//
// They sit in the process only where there are int3s. Not seen: system calls that are made without
// the C library, and masks of sigsuspend, ppoll, pselect and the like.
#pragma once

#include <cstddef>

#include "base/error.h"
#include "bundle/bundle.h"
#include "user_engine/shm/region.h"

namespace spile::user_engine {

/// A hidden probe: of a C library, whichever the process has.
bool is_sentry(const bundle::Probe& probe);

/// Appends the map, the programs and the probes. Returns the index of the map.
Result<int> add_sentries(bundle::Bundle& bundle);

/// Somebody waits.
bool has_wish(const shm::Region& region, int map);
/// The int3s are gone: nobody needs to wait any more.
Result<void> answer_wish(const shm::Region& region, int map);

}  // namespace spile::user_engine
