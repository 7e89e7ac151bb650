// Which system calls a process's seccomp filters surely let pass.
//
// A probe's hit may make system calls of its own (pid, comm, memory that may not be mapped). Under
// a filter each of them may end the process, so it is made only where every filter of every thread
// returns ALLOW for it. Filters are classic BPF programs that jump forwards only: one pass over the
// instructions, with the call's number known and its arguments not, joins all paths. Where a filter
// looks at what we do not know, both ways are followed.
//
// Limit: a thread may install another filter after it was looked at.
//
// Source: seccomp(2); kernel/seccomp.c, seccomp_check_filter() (the instructions that there are).
#pragma once

#include <linux/filter.h>

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "base/error.h"
#include "user_engine/target/stopped.h"

namespace spile::target {

struct FilteredCall {
  uint32_t number = 0;
  /// What is known of the arguments: the first one, or nothing.
  std::optional<uint64_t> first_argument;
};

/// True where the filter returns ALLOW for the call, whatever is not known of it. Pure.
bool surely_allows(std::span<const sock_filter> filter, const FilteredCall& call);

/// For each call, whether no thread's filter forbids it. Nothing is allowed where a thread is in
/// strict mode, or its filters cannot be read (without CAP_SYS_ADMIN).
std::vector<bool> allowed_calls(const StoppedProcess& process, std::span<const FilteredCall> calls);

}  // namespace spile::target
