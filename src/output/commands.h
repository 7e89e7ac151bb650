// system() and cat(): what a script asks the tracer to do outside of the trace.
#pragma once

#include <cstddef>
#include <string>

namespace spile::output {

/// What `sh -c command` writes to standard output; its standard error is ours. Waits for its end.
std::string run_command(const std::string& command);
/// At most `most` bytes of a file. One that cannot be read: "", and a line on standard error.
std::string read_for_cat(const std::string& path, size_t most);

}  // namespace spile::output
