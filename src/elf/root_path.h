// Paths inside another process's file system, below /proc/PID/root.
#pragma once

#include <string>
#include <string_view>

#include "base/error.h"

namespace spile::elf {

/// Resolves every symbolic link of the absolute `path` as if `root` were "/": an absolute link in a
/// container leads to the container's file, ".." stops at the root. Returns the path inside the
/// root; put `root` before it to open it. `root` is "" for our own. Errors: not found, denied,
/// invalid (not absolute, more than 40 links, longer than PATH_MAX).
Result<std::string> canonical_path(std::string_view root, std::string_view path);

}  // namespace spile::elf
