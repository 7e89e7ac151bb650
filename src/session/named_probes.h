// What --test and --bench do with a running trace: call the probes that have a name, and tell.
#pragma once

#include "bundle/bundle.h"
#include "engine/engine.h"
#include "output/records.h"

namespace spile::session {

/// Calls each test in the script's order. It passes where it returns 0, tells no error and ends the
/// script with no other status than 0; of others what they print is shown. Returns how many did not
/// pass. Errors: of the trace and of the output.
Result<size_t> run_tests(const bundle::Bundle& bundle,
                         engine::Trace& trace,
                         output::Records& records,
                         output::Output& out);

/// Measures each benchmark and tells ns a run.
Result<void> run_benchmarks(const bundle::Bundle& bundle,
                            engine::Trace& trace,
                            output::Output& out);

/// Calls the probes of one of our own signals. False: the script has none.
Result<bool> run_signal_probes(const bundle::Bundle& bundle,
                               engine::Trace& trace,
                               std::string_view signal);

}  // namespace spile::session
