#include "os/process.h"

#include <fcntl.h>
#include <linux/kcmp.h>
#include <poll.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <filesystem>
#include <string_view>

namespace spile::os {
namespace {

/// Takes what is before `separator` off the front of `text`.
std::string_view take(std::string_view& text, char separator) {
  const size_t end = text.find(separator);
  const std::string_view head = text.substr(0, end);
  text.remove_prefix(end == std::string_view::npos ? text.size() : end + 1);
  return head;
}

std::string_view trim(std::string_view text) {
  while (!text.empty() && (text.front() == ' ' || text.front() == '\t')) text.remove_prefix(1);
  while (!text.empty() && (text.back() == ' ' || text.back() == '\n')) text.remove_suffix(1);
  return text;
}

template <typename T>
bool number(std::string_view text, T& value, int base = 10) {
  text = trim(text);
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value, base);
  return error == std::errc() && end == text.data() + text.size();
}

std::vector<std::string_view> words(std::string_view text) {
  std::vector<std::string_view> found;
  for (size_t at = 0; at < text.size();) {
    const size_t start = text.find_first_not_of(" \t\n", at);
    if (start == std::string_view::npos) break;
    const size_t end = std::min(text.find_first_of(" \t\n", start), text.size());
    found.push_back(text.substr(start, end - start));
    at = end;
  }
  return found;
}

/// The kernel writes names with \ooo for what would break the line.
std::string unescape(std::string_view text) {
  const auto octal = [](char c) { return c >= '0' && c <= '7'; };
  std::string out;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '\\' && i + 3 < text.size() && octal(text[i + 1]) && octal(text[i + 2]) &&
        octal(text[i + 3])) {
      out.push_back(static_cast<char>((text[i + 1] - '0') * 64 + (text[i + 2] - '0') * 8 +
                                      (text[i + 3] - '0')));
      i += 3;
    } else {
      out.push_back(text[i]);
    }
  }
  return out;
}

void set_field(Status& status, std::string_view key, std::string_view value) {
  const auto fields = words(value);
  const auto field = [&](size_t i) {
    return i < fields.size() ? fields[i] : std::string_view("0");
  };
  if (key == "Name")
    status.name = trim(value);
  else if (key == "State")
    status.state = fields.empty() ? '?' : fields[0][0];
  else if (key == "Tgid")
    number(value, status.tgid);
  else if (key == "PPid")
    number(value, status.parent);
  else if (key == "TracerPid")
    number(value, status.tracer);
  else if (key == "Uid")
    number(field(0), status.uid), number(field(1), status.euid), number(field(2), status.suid);
  else if (key == "Gid")
    number(field(0), status.gid), number(field(1), status.egid), number(field(2), status.sgid);
  else if (key == "Seccomp")
    number(value, status.seccomp);
  else if (key == "NSpid" && !fields.empty())
    number(fields.back(), status.innermost_tid);
  else if (key == "SigPnd")
    number(value, status.pending, 16);
  else if (key == "ShdPnd")
    number(value, status.shared_pending, 16);
  else if (key == "SigBlk")
    number(value, status.blocked, 16);
  else if (key == "SigIgn")
    number(value, status.ignored, 16);
  else if (key == "SigCgt")
    number(value, status.caught, 16);
  else if (key == "VmSize")
    status.has_memory = true;
}

bool parse_range(std::string_view text, MapEntry& entry) {
  uint64_t start = 0, end = 0;
  if (!number(take(text, '-'), start, 16) || !number(text, end, 16) || start >= end) return false;
  entry.start = TargetAddr(start);
  entry.end = TargetAddr(end);
  return true;
}

bool parse_permissions(std::string_view text, MapEntry& entry) {
  if (text.size() != 4) return false;
  entry.read = text[0] == 'r';
  entry.write = text[1] == 'w';
  entry.exec = text[2] == 'x';
  entry.shared = text[3] == 's';
  return true;
}

bool parse_device(std::string_view text, MapEntry& entry) {
  unsigned major = 0, minor = 0;
  if (!number(take(text, ':'), major, 16) || !number(text, minor, 16)) return false;
  entry.device = makedev(major, minor);
  return true;
}

/// "7f00-7f01 r-xp 00000000 fe:00 1234    /path (deleted)"
bool parse_map_line(std::string_view line, MapEntry& entry) {
  if (!parse_range(take(line, ' '), entry) || !parse_permissions(take(line, ' '), entry))
    return false;
  if (!number(take(line, ' '), entry.offset, 16) || !parse_device(take(line, ' '), entry))
    return false;
  if (!number(take(line, ' '), entry.inode)) return false;
  std::string_view path = line;
  while (!path.empty() && path.front() == ' ') path.remove_prefix(1);
  constexpr std::string_view kDeleted = " (deleted)";
  if (path.ends_with(kDeleted)) {
    entry.deleted = true;
    path.remove_suffix(kDeleted.size());
  }
  entry.path = unescape(path);
  return true;
}

}  // namespace

Result<Fd> open_pidfd(pid_t pid) {
  Fd fd(static_cast<int>(::syscall(SYS_pidfd_open, pid, 0)));
  if (!fd) return fail_errno(errno, "open process {}", pid);
  return fd;
}

bool pidfd_alive(const Fd& pidfd) {
  pollfd p{pidfd.get(), POLLIN, 0};
  return ::poll(&p, 1, 0) == 0;
}

Result<std::string> read_file(const std::string& path) {
  Fd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd) return fail_errno(errno, "open {}", path);
  std::string text;
  char buffer[16384];
  for (;;) {
    const ssize_t n = ::read(fd.get(), buffer, sizeof buffer);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return fail_errno(errno, "read {}", path);
    if (n == 0) return text;
    text.append(buffer, static_cast<size_t>(n));
  }
}

Result<std::string> read_link(const std::string& path) {
  char buffer[4097];
  const ssize_t n = ::readlink(path.c_str(), buffer, sizeof buffer);
  if (n < 0) return fail_errno(errno, "read the link {}", path);
  return std::string(buffer, static_cast<size_t>(n));
}

Result<Status> read_status(pid_t tid) {
  SPILE_TRY(const std::string text, read_file(fmt::format("/proc/{}/status", tid)));
  Status status;
  status.innermost_tid = tid;
  std::string_view rest = text;
  while (!rest.empty()) {
    std::string_view line = take(rest, '\n');
    const std::string_view key = take(line, ':');
    set_field(status, key, line);
  }
  return status;
}

Result<Stat> read_stat(pid_t pid, pid_t tid) {
  SPILE_TRY(const std::string text, read_file(fmt::format("/proc/{}/task/{}/stat", pid, tid)));
  // The name in parentheses may hold anything: fields are counted behind the last ')'.
  const size_t end = text.rfind(')');
  if (end == std::string::npos)
    return fail(ErrorCode::kCorrupt, "/proc/{}/task/{}/stat has no name", pid, tid);
  const auto fields =
      words(std::string_view(text).substr(end + 1));  // fields[0] is field 3, the state
  if (fields.size() < 45)
    return fail(ErrorCode::kCorrupt, "/proc/{}/task/{}/stat has too few fields", pid, tid);
  Stat stat;
  stat.state = fields[0][0];
  number(fields[9 - 3], stat.flags);
  number(fields[22 - 3], stat.start_time);
  number(fields[28 - 3], stat.start_stack);
  number(fields[39 - 3], stat.cpu);
  number(fields[47 - 3], stat.start_brk);
  return stat;
}

Result<std::vector<pid_t>> list_threads(pid_t pid) {
  std::error_code error;
  std::vector<pid_t> tids;
  std::filesystem::directory_iterator it(fmt::format("/proc/{}/task", pid), error), end;
  for (; !error && it != end; it.increment(error)) {
    pid_t tid = 0;
    if (number(it->path().filename().native(), tid)) tids.push_back(tid);
  }
  if (error)
    return fail_errno(error.value() == ENOENT ? ESRCH : error.value(),
                      "list the threads of process {}", pid);
  return tids;
}

Result<pid_t> thread_with_memory(pid_t pid) {
  const auto has_memory = [](pid_t tid) {
    auto status = read_status(tid);
    return status && status->has_memory && status->state != 'Z' && status->state != 'X';
  };
  if (has_memory(pid)) return pid;
  SPILE_TRY(const auto tids, list_threads(pid));
  for (pid_t tid : tids) {
    if (has_memory(tid)) return tid;
  }
  return fail(ErrorCode::kTargetGone, "process {} has ended (zombie)", pid);
}

std::vector<pid_t> list_children(pid_t pid) {
  std::vector<pid_t> children;
  auto threads = list_threads(pid);
  if (!threads) return children;
  for (pid_t tid : *threads) {
    auto text = read_file(fmt::format("/proc/{}/task/{}/children", pid, tid));
    if (!text) continue;
    for (std::string_view word : words(*text)) {
      if (pid_t child = 0; number(word, child)) children.push_back(child);
    }
  }
  return children;
}

Result<std::vector<MapEntry>> parse_maps(std::string_view text) {
  std::vector<MapEntry> maps;
  while (!text.empty()) {
    const std::string_view line = take(text, '\n');
    if (line.empty()) continue;
    MapEntry entry;
    if (!parse_map_line(line, entry))
      return fail(ErrorCode::kCorrupt, "not a line of maps: \"{}\"", line);
    maps.push_back(std::move(entry));
  }
  return maps;
}

Result<std::vector<MapEntry>> read_maps(pid_t tid) {
  SPILE_TRY(const std::string text, read_file(fmt::format("/proc/{}/maps", tid)));
  return parse_maps(text);
}

Result<std::vector<std::pair<uint64_t, uint64_t>>> read_auxv(pid_t tid) {
  SPILE_TRY(const std::string bytes, read_file(fmt::format("/proc/{}/auxv", tid)));
  std::vector<std::pair<uint64_t, uint64_t>> entries;
  for (size_t at = 0; at + 16 <= bytes.size(); at += 16) {
    uint64_t pair[2];
    bytes.copy(reinterpret_cast<char*>(pair), sizeof pair, at);
    if (pair[0] == 0) break;  // AT_NULL
    entries.emplace_back(pair[0], pair[1]);
  }
  return entries;
}

Result<bool> same_memory(pid_t a, pid_t b) {
  const long result = ::syscall(SYS_kcmp, a, b, KCMP_VM, 0, 0);
  if (result < 0) return fail_errno(errno, "compare the memory of processes {} and {}", a, b);
  return result == 0;
}

Result<Limit> get_limit(pid_t pid, int resource) {
  rlimit64 old{};
  if (::prlimit64(pid, static_cast<__rlimit_resource>(resource), nullptr, &old) != 0) {
    return fail_errno(errno, "read a limit of process {}", pid);
  }
  return Limit{old.rlim_cur, old.rlim_max};
}

Result<void> set_limit(pid_t pid, int resource, Limit limit) {
  const rlimit64 value{limit.soft, limit.hard};
  if (::prlimit64(pid, static_cast<__rlimit_resource>(resource), &value, nullptr) != 0) {
    return fail_errno(errno, "change a limit of process {}", pid);
  }
  return {};
}

int yama_scope() {
  int scope = 0;
  if (auto text = read_file("/proc/sys/kernel/yama/ptrace_scope")) number(*text, scope);
  return scope;
}

bool has_capability(int bit) {
  auto text = read_file("/proc/thread-self/status");
  if (!text) return false;
  const size_t at = text->find("CapEff:");
  if (at == std::string::npos) return false;
  uint64_t set = 0;
  number(std::string_view(*text).substr(at + 7, text->find('\n', at) - at - 7), set, 16);
  return (set >> bit & 1) != 0;
}

}  // namespace spile::os
