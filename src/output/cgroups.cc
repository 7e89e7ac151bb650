// The id of a control group is the inode number of its folder.
#include "output/cgroups.h"

#include <fnmatch.h>
#include <sys/stat.h>

#include <filesystem>
#include <fstream>
#include <optional>
#include <sstream>

namespace spile::output {
namespace {

namespace fs = std::filesystem;

bool has_inode(const std::string& path, uint64_t inode) {
  struct stat status = {};
  return ::stat(path.c_str(), &status) == 0 && S_ISDIR(status.st_mode) && status.st_ino == inode;
}

/// Below the mount point, "/" for itself. Groups come and go while we look.
std::optional<std::string> path_below(const std::string& mount, uint64_t inode) {
  if (has_inode(mount, inode)) return "/";
  std::error_code fault;
  fs::recursive_directory_iterator at(mount, fs::directory_options::skip_permission_denied, fault);
  for (; !fault && at != fs::recursive_directory_iterator(); at.increment(fault)) {
    std::error_code gone;
    if (!at->is_directory(gone) || gone || !has_inode(at->path(), inode)) continue;
    return at->path().native().substr(mount.size());
  }
  return std::nullopt;
}

}  // namespace

std::string cgroup_path_text(uint64_t id, const std::string& filter, const std::string& mounts) {
  std::string out, line;
  std::ifstream file(mounts);
  while (std::getline(file, line)) {
    std::istringstream words(line);
    std::string device, mount, type;
    words >> device >> mount >> type;
    if (type != "cgroup" && type != "cgroup2") continue;
    const std::string name = type == "cgroup2" ? "unified" : fs::path(mount).filename().string();
    if (!filter.empty() && ::fnmatch(filter.c_str(), name.c_str(), 0) != 0) continue;
    const auto path = path_below(mount, id);
    if (path) out += (out.empty() ? "" : ",") + name + ":" + *path;
  }
  return out;
}

}  // namespace spile::output
