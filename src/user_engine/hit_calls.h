// The system calls that a hit makes, and whether the process may make them.
#pragma once

#include <string_view>
#include <vector>

#include "abi/code_region.h"
#include "bundle/bundle.h"
#include "user_engine/target/stopped.h"

namespace spile::user_engine {

struct NeededCall {
  abi::RtCalls call;
  std::string_view name;  ///< "getuid"
  std::string_view who;   ///< what asks for it, as the script writes it: "uid, gid"
};

/// The calls that the bundle's programs may make at a hit. `tid_is_known`: libc keeps it where we
/// can read it; `tsc_is_clock`: so does the counter tell the time.
std::vector<NeededCall> calls_needed(const bundle::Bundle& bundle,
                                     bool tid_is_known,
                                     bool tsc_is_clock);

/// abi::RtCalls that the seccomp filters of all threads surely let pass.
uint32_t filtered_calls(const target::StoppedProcess& process);

}  // namespace spile::user_engine
