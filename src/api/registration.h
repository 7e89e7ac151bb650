// What every kind of registration does: find the place that is meant, say why not, wait until
// nobody runs it any more.
#pragma once

#include <expected>
#include <span>
#include <vector>

#include "api/boundary.h"
#include "api/engine.h"

namespace spile::api {

int busy_inside();
int refuse(const Refused& refused);

/// Behind a removal: nobody runs what was taken out any more. The lock is not held: a handler that
/// is waited for may register something.
int wait_until_gone(OldLists lists);

/// Sets `address` from a symbol or an address, exactly one of them. In an EngineSession.
int resolve(const spile_kprobe& p, TargetAddr& address);
int resolve_many(const char* const* symbols, int count, std::vector<TargetAddr>& to);

/// The bits of `flags` that a program gets to see.
unsigned state_flags(const Place& place, unsigned given);

/// Where the handlers of one function go: its entry, then its returns.
using FunctionWants = std::expected<std::vector<Want>, Refused>;

/// Errors, each: -EINVAL, no function that is called begins there; -EOPNOTSUPP, how it returns is
/// not known.
Result<std::vector<FunctionWants>> wants_of(std::span<const TargetAddr> functions,
                                            bool allow_trap,
                                            bool with_returns);

}  // namespace spile::api
