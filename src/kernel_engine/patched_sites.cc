#include "kernel_engine/patched_sites.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>

namespace spile::kernel_engine {

namespace {

struct FileMapping {
  uint64_t start, end, file_offset;
};

/// The executable mappings of one file in a process, if that process also holds a code mapping of
/// the user engine.
std::vector<FileMapping> patched_mappings(const std::string& maps_path, const struct stat& file) {
  std::ifstream maps(maps_path);
  std::vector<FileMapping> found;
  bool has_engine = false;
  for (std::string line; std::getline(maps, line);) {
    FileMapping m = {};
    char perms[5] = {};
    unsigned major = 0, minor = 0;
    unsigned long inode = 0;
    if (sscanf(line.c_str(), "%lx-%lx %4s %lx %x:%x %lu", &m.start, &m.end, perms, &m.file_offset,
               &major, &minor, &inode) != 7)
      continue;
    if (line.find("/memfd:spile-code") != std::string::npos) has_engine = true;
    // The device is not compared: overlay file systems show another one than stat(2) does.
    if (perms[2] == 'x' && inode == file.st_ino) found.push_back(m);
  }
  if (!has_engine) found.clear();
  return found;
}

}  // namespace

Result<void> refuse_patched_sites(const std::string& path, std::span<const UprobeSite> sites) {
  struct stat file = {};
  Fd file_fd(open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!file_fd || fstat(file_fd.get(), &file) < 0) return fail_errno(errno, "open {}", path);
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator("/proc", error)) {
    std::string pid = entry.path().filename();
    if (pid.find_first_not_of("0123456789") != std::string::npos) continue;
    auto mappings = patched_mappings(entry.path() / "maps", file);
    if (mappings.empty()) continue;
    Fd memory(open((entry.path() / "mem").c_str(), O_RDONLY | O_CLOEXEC));
    for (const UprobeSite& site : sites) {
      for (const FileMapping& m : mappings) {
        if (site.offset.value < m.file_offset ||
            site.offset.value - m.file_offset >= m.end - m.start)
          continue;
        // A jump that begins up to four bytes earlier reaches into the probed instruction: the
        // bytes of a punned one are the instruction's own, so what changed is only seen there.
        uint64_t first =
            std::max(m.file_offset, site.offset.value - std::min<uint64_t>(site.offset.value, 4));
        size_t size =
            std::min(site.offset.value + 5 - first, m.file_offset + (m.end - m.start) - first);
        uint8_t original[9] = {}, now[9] = {};
        auto address = static_cast<off_t>(m.start + first - m.file_offset);
        if (pread(file_fd.get(), original, size, static_cast<off_t>(first)) !=
            static_cast<ssize_t>(size))
          continue;
        if (pread(memory.get(), now, size, address) == static_cast<ssize_t>(size) &&
            std::memcmp(original, now, size) == 0)
          continue;
        return fail(ErrorCode::kUnsafe,
                    "{}+{}: process {} is traced there by the user engine; a kernel probe on the "
                    "same instruction would kill it. "
                    "Detach first: spile detach -p {}",
                    path, site.offset, pid, pid);
      }
    }
  }
  return {};
}

}  // namespace spile::kernel_engine
