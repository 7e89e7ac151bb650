// Where a stripped file's symbols went.
#pragma once

#include <optional>
#include <string>

#include "base/error.h"
#include "elf/file.h"

namespace spile::elf {

/// The separate debug file of `file`: /usr/lib/debug/.build-id/xx/yyyy.debug, then .gnu_debuglink's
/// name beside the file, in .debug/ there, and below /usr/lib/debug. All of it below `root` ("" or
/// "/proc/PID/root"); `path_in_root` is the file's path as seen there. A file whose build-id (or,
/// without one, CRC) does not match is passed over. Empty: there is none. A debug file that is
/// there but damaged counts as none.
std::optional<File> open_debug_file(const File& file,
                                    const std::string& root,
                                    const std::string& path_in_root);

/// The small symbol file that Fedora puts xz-compressed into the section .gnu_debugdata.
/// Empty: there is no such section. Errors: corrupt, unsupported (more than 256 MiB unpacked).
Result<std::optional<File>> open_gnu_debugdata(const File& file);

}  // namespace spile::elf
