#include "elf/root_path.h"

#include <limits.h>
#include <unistd.h>

#include <cerrno>
#include <vector>

namespace spile::elf {
namespace {

constexpr int kMaxLinks = 40;  ///< the kernel's MAXSYMLINKS

/// Pushes the parts of `path` so that the first is on top.
void push_parts(std::vector<std::string>& todo, std::string_view path) {
  size_t end = path.size();
  while (end > 0) {
    const size_t slash = path.rfind('/', end - 1);
    const size_t start = slash == std::string_view::npos ? 0 : slash + 1;
    if (start < end) todo.emplace_back(path.substr(start, end - start));
    if (slash == std::string_view::npos) break;
    end = slash;
  }
}

}  // namespace

Result<std::string> canonical_path(std::string_view root, std::string_view path) {
  if (!path.starts_with('/')) return fail(ErrorCode::kInvalid, "{} is not an absolute path", path);
  if (path.size() >= PATH_MAX) return fail(ErrorCode::kInvalid, "a path of {} bytes", path.size());
  std::vector<std::string> todo;
  push_parts(todo, path);
  std::string done;  // no links in it, no slash at its end
  for (int links = 0; !todo.empty();) {
    const std::string part = std::move(todo.back());
    todo.pop_back();
    if (part == ".") continue;
    if (part == "..") {
      done.resize(done.empty() ? 0 : done.rfind('/'));
      continue;
    }
    const std::string here = done + "/" + part;
    char target[PATH_MAX];
    const ssize_t size = ::readlink((std::string(root) + here).c_str(), target, sizeof target);
    if (size < 0 && errno != EINVAL) return fail_errno(errno, "{}{}", root, path);
    if (size < 0) {  // not a link
      done = here;
      continue;
    }
    if (++links > kMaxLinks || done.size() + static_cast<size_t>(size) >= PATH_MAX)
      return fail(ErrorCode::kInvalid, "{}{}: too many symbolic links", root, path);
    const std::string_view link(target, static_cast<size_t>(size));
    if (link.starts_with('/')) done.clear();
    push_parts(todo, link);
  }
  return done.empty() ? "/" : done;
}

}  // namespace spile::elf
