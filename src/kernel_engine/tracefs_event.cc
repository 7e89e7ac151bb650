#include "kernel_engine/tracefs_event.h"

#include <fcntl.h>
#include <time.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <charconv>

#include "os/process.h"

namespace spile::kernel_engine {

namespace {

constexpr std::string_view kPrefix = "spile_";
/// An event that has just been closed is let go a grace period later.
constexpr int kDeleteTries = 100;
constexpr timespec kBetweenTries = {0, 10'000'000};

/// Field 22 of /proc/PID/stat; 0: there is no such process.
uint64_t start_time_of(pid_t pid) {
  auto stat = os::read_file(fmt::format("/proc/{}/stat", pid));
  if (!stat) return 0;
  size_t at = stat->rfind(')');  // the name before it may hold anything
  for (int field = 2; field < 22 && at != std::string::npos; field++) at = stat->find(' ', at + 1);
  return at == std::string::npos ? 0 : std::strtoull(stat->c_str() + at, nullptr, 10);
}

/// 0 or errno.
int append(const std::string& file, const std::string& line) {
  Fd fd(open(file.c_str(), O_WRONLY | O_APPEND | O_CLOEXEC));
  if (!fd) return errno;
  return write(fd.get(), line.data(), line.size()) < 0 ? errno : 0;
}

int delete_event(const std::string& file, const EventDefinition& event) {
  return append(file, fmt::format("-:{}/{}\n", event.group, event.name));
}

/// What the kernel wrote last about a definition that it did not take.
std::string last_error(const std::string& root) {
  auto log = os::read_file(root + "/error_log");
  if (!log) return "";
  size_t at = log->rfind("error: ");
  if (at == std::string::npos) return "";
  return " (" + log->substr(at + 7, log->find('\n', at) - at - 7) + ")";
}

}  // namespace

std::optional<EventOwner> owner_of(std::string_view group) {
  if (!group.starts_with(kPrefix)) return std::nullopt;
  group.remove_prefix(kPrefix.size());
  EventOwner owner;
  const char* end = group.data() + group.size();
  auto [at, error] = std::from_chars(group.data(), end, owner.pid);
  if (error != std::errc() || owner.pid <= 0 || at == end || *at != '_') return std::nullopt;
  auto [rest, second] = std::from_chars(at + 1, end, owner.start_time);
  if (second != std::errc() || rest != end) return std::nullopt;
  return owner;
}

std::optional<EventDefinition> parse_definition(std::string_view line) {
  size_t colon = line.find(':'), slash = line.find('/'), space = line.find(' ');
  if (colon == std::string_view::npos || slash == std::string_view::npos || slash < colon ||
      space == std::string_view::npos || space < slash)
    return std::nullopt;
  return EventDefinition{std::string(line.substr(colon + 1, slash - colon - 1)),
                         std::string(line.substr(slash + 1, space - slash - 1))};
}

Result<TracefsEvent> TracefsEvent::define(std::string_view file,
                                          const std::string& place,
                                          Moment moment) {
  static std::atomic<int> next = 0;
  SPILE_TRY(std::string root, tracefs());
  std::string path = fmt::format("{}/{}", root, file);
  if (access(path.c_str(), F_OK) != 0)
    return fail(ErrorCode::kUnsupported, "this kernel has no {}", path);
  std::string group = fmt::format("{}{}_{}", kPrefix, getpid(), start_time_of(getpid()));
  std::string name = fmt::format("e{}", next.fetch_add(1));
  const char* type = moment == Moment::kReturn ? "r" : "p";
  int error = append(path, fmt::format("{}:{}/{} {}\n", type, group, name, place));
  if (error != 0)
    return std::unexpected(errno_error(
        error, fmt::format("define '{} {}' in {}{}", type, place, path, last_error(root))));
  return TracefsEvent(std::move(path), std::move(group), std::move(name));
}

Result<TracefsEvent> TracefsEvent::define_kprobe(const std::string& place, Moment moment) {
  return define("kprobe_events", place, moment);
}

Result<TracefsEvent> TracefsEvent::define_uprobe(const std::string& path,
                                                 FileOffset offset,
                                                 FileOffset semaphore,
                                                 Moment moment) {
  if (path.find_first_of(" \t\n") != std::string::npos)
    return fail(ErrorCode::kUnsupported, "tracefs takes no path with blanks: '{}'", path);
  std::string place = fmt::format("{}:{:#x}", path, offset.value);
  if (semaphore.value != 0) place += fmt::format("({:#x})", semaphore.value);
  return define("uprobe_events", place, moment);
}

TracefsEvent::~TracefsEvent() {
  if (file_.empty()) return;
  for (int i = 0; i < kDeleteTries && delete_event(file_, {group_, name_}) == EBUSY; i++)
    nanosleep(&kBetweenTries, nullptr);
}

size_t delete_stale_events() {
  auto root = tracefs();
  if (!root) return 0;
  size_t deleted = 0;
  for (std::string_view file : {"kprobe_events", "uprobe_events"}) {
    std::string path = fmt::format("{}/{}", *root, file);
    auto text = os::read_file(path);
    if (!text) continue;
    for (size_t at = 0; at < text->size();) {
      size_t end = std::min(text->find('\n', at), text->size());
      auto event = parse_definition(std::string_view(*text).substr(at, end - at));
      at = end + 1;
      auto owner = event ? owner_of(event->group) : std::nullopt;
      if (!owner || start_time_of(owner->pid) == owner->start_time) continue;
      if (delete_event(path, *event) == 0) deleted++;
    }
  }
  return deleted;
}

}  // namespace spile::kernel_engine
