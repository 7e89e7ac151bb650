// The Bundle's programs as loaded programs.
#pragma once

#include "base/fd.h"
#include "kernel_engine/maps.h"

namespace spile::kernel_engine {

/// What a program is loaded as.
enum class LoadType : uint8_t { kKprobe, kUprobeMulti, kTracepoint, kPerfEvent, kTestRun };

/// Loads one program: map indices become descriptors.
///
/// Errors: denied; unsupported; internal, with the verifier's log: a program of ours that the
/// verifier refuses is our fault.
Result<Fd> load_program(const bundle::Program& program, LoadType type, const Maps& maps);

/// Runs a kTestRun program once in this process.
Result<void> run_once(int program_fd, std::string_view what);

struct RunCounts {
  uint64_t runs = 0, time_ns = 0, missed = 0;
};
Result<RunCounts> run_counts(int program_fd);

}  // namespace spile::kernel_engine
