#include "user_engine/forked.h"

#include <algorithm>
#include <charconv>
#include <filesystem>

namespace spile::user_engine {

bool has_same(const std::vector<os::MapEntry>& maps, const os::MapEntry& wanted) {
  auto same = std::ranges::find_if(
      maps, [&](const os::MapEntry& m) { return m.start == wanted.start && m.end == wanted.end; });
  return same != maps.end() && same->inode == wanted.inode && same->device == wanted.device &&
         same->exec == wanted.exec && same->offset == wanted.offset;
}

bool has_all(const std::vector<os::MapEntry>& maps, const std::vector<os::MapEntry>& wanted) {
  return !wanted.empty() &&
         std::ranges::all_of(wanted, [&](const os::MapEntry& w) { return has_same(maps, w); });
}

namespace {

std::vector<pid_t> all_processes() {
  std::vector<pid_t> pids;
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator("/proc", error)) {
    const std::string name = entry.path().filename();
    pid_t pid = 0;
    auto [end, bad] = std::from_chars(name.data(), name.data() + name.size(), pid);
    if (bad == std::errc() && end == name.data() + name.size()) pids.push_back(pid);
  }
  return pids;
}

/// Those that the kernel's own list names, at once: to ask for each of them takes as long as all
/// that a small detach does. Empty where process 2 is somebody else (a pid namespace).
std::set<pid_t> kernel_threads() {
  constexpr pid_t kKthreadd = 2;
  auto stat = os::read_stat(kKthreadd, kKthreadd);
  if (!stat || !stat->kernel_thread()) return {};
  const auto children = os::list_children(kKthreadd);
  return {children.begin(), children.end()};
}

}  // namespace

std::vector<pid_t> forked_children(const std::vector<os::MapEntry>& mappings,
                                   uint64_t tracer_start_time,
                                   const std::set<pid_t>& known) {
  std::vector<pid_t> found;
  // In this order: a number that is a kernel thread's now was no child's before, or its child has
  // ended.
  const auto pids = all_processes();
  const auto kernel = kernel_threads();
  for (const pid_t pid : pids) {
    if (known.contains(pid) || kernel.contains(pid)) continue;
    auto stat = os::read_stat(pid, pid);
    if (!stat || stat->kernel_thread() || stat->start_time < tracer_start_time) continue;
    auto thread = os::thread_with_memory(pid);
    if (!thread) continue;
    auto maps = os::read_maps(*thread);
    if (maps && has_all(*maps, mappings)) found.push_back(pid);
  }
  return found;
}

}  // namespace spile::user_engine
