// What file a script means by `libc`, `libssl.so.3`, `bash` or a path: the search of the dynamic
// loader and the shell.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "elf/file.h"

namespace spile::symbols {

/// A file that a name stands for.
struct Located {
  std::string path;  ///< inside the root, no symbolic links: "/usr/lib/x86_64-linux-gnu/libc.so.6"
  std::string host_path;  ///< root + path: what to open
  /// The path that the search gave, links and all: "/lib/x86_64-linux-gnu/libc.so.6". For a
  /// relative name it is `path`.
  std::string found_as;
  elf::FileIdentity identity;
};

/// One library of a loader cache.
struct CacheEntry {
  std::string_view soname, path;
  uint64_t hwcap = 0;  ///< not 0: for some processors only
};

/// The x86-64 libraries of an ld.so.cache (format "glibc-ld.so.cache1.1", alone or behind the old
/// one). `bytes` must outlive the entries. Errors: corrupt, unsupported (only the old format).
Result<std::vector<CacheEntry>> parse_ld_cache(std::string_view bytes);

/// True where `soname` is a library that the user calls `name`: "libc" and "libc.so" and
/// "libc.so.6" mean libc.so.6.
bool library_name_matches(std::string_view name, std::string_view soname);

/// The files that `name` stands for below `root` ("" or "/proc/PID/root"), best first, each file
/// once whatever its paths:
///   with a slash            that path, absolute or from our working directory; `*` matches within
///   one folder name "lib...", "...so..."    all that match in /etc/ld.so.cache, else in glibc's
///   and musl's default folders otherwise               the first in the folders of `search_path`
///   (a $PATH; "" is the usual one); `*` finds all
/// Errors: not found; the message says where it was looked for.
Result<std::vector<Located>> locate(std::string_view name,
                                    const std::string& root = "",
                                    std::string_view search_path = "");

}  // namespace spile::symbols
