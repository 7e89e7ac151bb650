#include "symbols/library_path.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <memory>
#include <optional>
#include <span>

#include "base/fd.h"
#include "elf/root_path.h"
#include "symbols/glob.h"

namespace spile::symbols {
namespace {

constexpr size_t kMaxCacheBytes = 64 << 20;
constexpr size_t kMaxFound = 4096;  ///< files that one pattern may stand for
constexpr std::string_view kUsualPath =
    "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
constexpr std::string_view kMuslPathFile = "/etc/ld-musl-x86_64.path";

// glibc's, with Debian's and Fedora's names, then musl's.
constexpr std::array<std::string_view, 9> kLibraryFolders = {"/usr/lib/x86_64-linux-gnu",
                                                             "/lib/x86_64-linux-gnu",
                                                             "/usr/lib64",
                                                             "/lib64",
                                                             "/usr/local/lib",
                                                             "/usr/lib",
                                                             "/lib",
                                                             "/usr/lib/x86_64-linux-musl",
                                                             "/lib/x86_64-linux-musl"};

std::vector<std::string_view> split(std::string_view text, std::string_view separators) {
  std::vector<std::string_view> parts;
  while (!text.empty()) {
    const auto end = text.find_first_of(separators);
    if (end != 0) parts.push_back(text.substr(0, end));
    if (end == std::string_view::npos) break;
    text.remove_prefix(end + 1);
  }
  return parts;
}

Result<std::string> read_file(const std::string& path, size_t max_bytes) {
  Fd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  if (!fd) return fail_errno(errno, "open {}", path);
  std::string text;
  char chunk[65536];
  for (;;) {
    const ssize_t got = ::read(fd.get(), chunk, sizeof chunk);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return fail_errno(errno, "read {}", path);
    if (got == 0) return text;
    text.append(chunk, static_cast<size_t>(got));
    if (text.size() > max_bytes)
      return fail(ErrorCode::kCorrupt, "{} is larger than {} bytes", path, max_bytes);
  }
}

/// Names in a folder, sorted; none where it cannot be read.
std::vector<std::string> names_in(const std::string& folder) {
  struct Close {
    void operator()(DIR* dir) const { ::closedir(dir); }
  };
  std::vector<std::string> names;
  const std::unique_ptr<DIR, Close> dir(::opendir(folder.c_str()));
  if (dir == nullptr) return names;
  while (const dirent* entry = ::readdir(dir.get())) names.emplace_back(entry->d_name);
  std::ranges::sort(names);
  return names;
}

/// libc.so of a development package is text for the linker.
bool is_elf(const std::string& path) {
  struct stat st{};
  if (::stat(path.c_str(), &st) != 0 || !S_ISREG(st.st_mode))
    return false;  // opening a device may have effects
  Fd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY));
  char magic[4];
  return fd && ::read(fd.get(), magic, sizeof magic) == sizeof magic &&
         std::memcmp(magic, "\177ELF", 4) == 0;
}

/// Collects files, each once.
class Finder {
 public:
  explicit Finder(const std::string& root) : root_(root) {}

  /// Errors say why the path leads to no file.
  Result<void> add(const std::string& path) {
    auto canonical = elf::canonical_path(root_, path);
    struct stat st{};
    std::string host_path;
    if (canonical) {
      host_path = root_ + *canonical;
      if (::stat(host_path.c_str(), &st) != 0) return fail_errno(errno, "{}", host_path);
    }
    // /proc/PID/exe and /proc/PID/root are links that only the kernel can follow: their text may
    // name nothing, or another file. In our own root the kernel's answer counts.
    struct stat direct{};
    const bool is_ours = root_.empty() && ::stat(path.c_str(), &direct) == 0;
    if (is_ours && (!canonical || direct.st_ino != st.st_ino || direct.st_dev != st.st_dev)) {
      canonical = host_path = path;
      st = direct;
    }
    if (!canonical) return forward(canonical);
    if (!S_ISREG(st.st_mode))
      return fail(ErrorCode::kInvalid, "{} is not a regular file", host_path);
    const elf::FileIdentity identity{st.st_dev, st.st_ino};
    if (std::ranges::find(found_, identity, &Located::identity) == found_.end() &&
        found_.size() < kMaxFound)
      found_.push_back({*canonical, host_path, path, identity});
    return {};
  }
  void add_if_elf(const std::string& path) {
    const auto canonical = elf::canonical_path(root_, path);
    if (canonical && is_elf(root_ + *canonical)) (void)add(path);
  }

  /// Adds every file below `folder` that the parts match, one folder a part.
  void add_matching(const std::string& folder, std::span<const std::string_view> parts) {
    if (found_.size() >= kMaxFound) return;
    if (parts.empty()) return add_if_elf(folder);
    if (!has_wildcard(parts.front()))
      return add_matching(folder + "/" + std::string(parts.front()), parts.subspan(1));
    const auto real = elf::canonical_path(root_, folder.empty() ? "/" : folder);
    if (!real) return;
    for (const auto& name : names_in(root_ + *real)) {
      const bool hidden = name.starts_with('.') && !parts.front().starts_with('.');
      if (!hidden && glob_matches(parts.front(), name))
        add_matching(folder + "/" + name, parts.subspan(1));
    }
  }

  bool empty() const { return found_.empty(); }
  std::vector<Located> take() { return std::move(found_); }

 private:
  const std::string& root_;
  std::vector<Located> found_;
};

// ---- libraries
// ---------------------------------------------------------------------------------------------------

void add_from_cache(Finder& finder, std::string_view name, const std::string& root) {
  const auto text = read_file(root + "/etc/ld.so.cache", kMaxCacheBytes);
  if (!text) return;
  const auto entries = parse_ld_cache(*text);
  if (!entries) return;
  for (const auto& entry : *entries)
    if (library_name_matches(name, entry.soname)) finder.add_if_elf(std::string(entry.path));
}

std::vector<std::string> library_folders(const std::string& root) {
  std::vector<std::string> folders(kLibraryFolders.begin(), kLibraryFolders.end());
  if (const auto text = read_file(root + std::string(kMuslPathFile), 1 << 16))
    for (const auto folder : split(*text, ":\n"))
      if (folder.starts_with('/')) folders.emplace_back(folder);
  return folders;
}

void add_from_folders(Finder& finder, std::string_view name, const std::string& root) {
  for (const auto& folder : library_folders(root)) {
    const auto real = elf::canonical_path(root, folder);
    if (!real) continue;
    for (const auto& file : names_in(root + *real))
      if (library_name_matches(name, file)) finder.add_if_elf(folder + "/" + file);
  }
}

Result<std::vector<Located>> locate_path(std::string_view name, const std::string& root) {
  std::string path(name);
  if (!name.starts_with('/')) {
    if (!root.empty()) return fail(ErrorCode::kInvalid, "{} is not an absolute path", name);
    const std::unique_ptr<char, decltype(&::free)> here(::get_current_dir_name(), &::free);
    if (here == nullptr) return fail_errno(errno, "find the working directory");
    path = std::string(here.get()) + "/" + path;
  }
  Finder finder(root);
  if (has_wildcard(path)) {
    const auto parts = split(path, "/");
    finder.add_matching("", parts);
    if (finder.empty()) return fail(ErrorCode::kNotFound, "no ELF file matches {}", name);
  } else {
    SPILE_TRY_VOID(finder.add(path));
  }
  auto found = finder.take();
  if (!name.starts_with('/'))
    for (auto& file : found) file.found_as = file.path;
  return found;
}

void add_program(Finder& finder, std::string_view name, std::string_view search_path) {
  for (const auto folder : split(search_path.empty() ? kUsualPath : search_path, ":")) {
    if (!folder.starts_with('/')) continue;  // relative ones depend on where we stand
    if (has_wildcard(name)) {
      const std::array parts{name};
      finder.add_matching(std::string(folder), parts);
    } else {
      finder.add_if_elf(fmt::format("{}/{}", folder, name));
      if (!finder.empty()) return;
    }
  }
}

}  // namespace

// struct cache_file_new of glibc's dl-cache.h:
//
//   0  char magic[17] "glibc-ld.so.cache", version[3] "1.1"
//   20 u32 entries, u32 bytes of strings, u8 flags, 3 unused, u32 extension, u32 unused[3]
//   48 entries of 24 bytes: s32 flags, u32 soname, u32 path (offsets from the magic), u32 unused,
//   u64 hwcap
//
// glibc before 2.32 puts a cache of the old format ("ld.so-1.7.0") in front.
Result<std::vector<CacheEntry>> parse_ld_cache(std::string_view bytes) {
  constexpr std::string_view kMagic = "glibc-ld.so.cache1.1", kOldMagic = "ld.so-1.7.0";
  constexpr size_t kHeaderBytes = 48, kEntryBytes = 24;
  constexpr uint32_t kArchMask = 0xff00, kX86_64 = 0x0300;
  if (!bytes.starts_with(kMagic)) {
    const auto start = bytes.starts_with(kOldMagic) ? bytes.find(kMagic) : std::string_view::npos;
    if (start == std::string_view::npos)
      return fail(ErrorCode::kUnsupported,
                  "the loader's cache has a format that is not known here");
    bytes.remove_prefix(start);
  }
  const auto number = [&](size_t at) {
    uint32_t value;
    std::memcpy(&value, bytes.data() + at, sizeof value);
    return value;
  };
  const auto string = [&](uint32_t at) -> std::optional<std::string_view> {
    if (at >= bytes.size()) return std::nullopt;
    const auto end = bytes.find('\0', at);
    if (end == std::string_view::npos || end - at > 4096) return std::nullopt;
    return bytes.substr(at, end - at);
  };
  if (bytes.size() < kHeaderBytes || number(20) > (bytes.size() - kHeaderBytes) / kEntryBytes)
    return fail(ErrorCode::kCorrupt, "the loader's cache is truncated");
  std::vector<CacheEntry> entries;
  for (uint32_t i = 0; i < number(20); ++i) {
    const size_t at = kHeaderBytes + i * kEntryBytes;
    if ((number(at) & kArchMask) != kX86_64) continue;
    const auto soname = string(number(at + 4)), path = string(number(at + 8));
    if (!soname || !path)
      return fail(ErrorCode::kCorrupt, "entry {} of the loader's cache is damaged", i);
    entries.push_back({*soname, *path, number(at + 16) | uint64_t{number(at + 20)} << 32});
  }
  return entries;
}

bool library_name_matches(std::string_view name, std::string_view soname) {
  if (has_wildcard(name))
    return soname.find(".so") != std::string_view::npos && glob_matches(name, soname);
  if (!soname.starts_with(name)) return false;
  const auto rest = soname.substr(name.size());
  if (rest.empty()) return soname.find(".so") != std::string_view::npos;
  if (name.find(".so") != std::string_view::npos) return rest.front() == '.';
  // Alpine calls musl libc.musl-x86_64.so.1.
  return rest == ".so" || rest.starts_with(".so.") || rest.starts_with(".musl-x86_64.so");
}

Result<std::vector<Located>> locate(std::string_view name,
                                    const std::string& root,
                                    std::string_view search_path) {
  if (name.empty() || name.size() >= 4096 || name.find('\0') != std::string_view::npos)
    return fail(ErrorCode::kInvalid, "'{}' is no file name", name);
  if (name.find('/') != std::string_view::npos) return locate_path(name, root);
  Finder finder(root);
  const bool is_library = name.starts_with("lib") || name.find(".so") != std::string_view::npos;
  if (is_library) add_from_cache(finder, name, root);
  if (is_library && finder.empty()) add_from_folders(finder, name, root);
  if (finder.empty()) add_program(finder, name, search_path);
  if (!finder.empty()) return finder.take();
  if (is_library)
    return fail(
        ErrorCode::kNotFound,
        "there is no library {} in {}/etc/ld.so.cache, the loader's default folders or $PATH", name,
        root);
  return fail(ErrorCode::kNotFound, "there is no program {} in {}", name,
              search_path.empty() ? kUsualPath : search_path);
}

}  // namespace spile::symbols
