#include "output/convert.h"

#include <arpa/inet.h>
#include <fmt/format.h>
#include <pwd.h>
#include <sys/types.h>

#include <cstring>
#include <ctime>
#include <vector>

#include "output/cgroups.h"
#include "output/format.h"
#include "output/syscall_names.h"

namespace spile::output {
namespace {

constexpr uint64_t kNsPerSecond = 1'000'000'000;
constexpr std::string_view kCgroupPath = "cgroup_path";

uint64_t now_ns(clockid_t clock) {
  timespec now{};
  clock_gettime(clock, &now);
  return static_cast<uint64_t>(now.tv_sec) * kNsPerSecond + static_cast<uint64_t>(now.tv_nsec);
}

std::string user_name(uid_t uid) {
  passwd entry{};
  passwd* found = nullptr;
  std::vector<char> room(16384);
  if (getpwuid_r(uid, &entry, room.data(), room.size(), &found) != 0 || found == nullptr) return "";
  return entry.pw_name;
}

}  // namespace

std::string inet_text(uint64_t family, std::span<const uint8_t> address) {
  if ((family != AF_INET && family != AF_INET6) || address.size() < 16) return "";
  char text[INET6_ADDRSTRLEN] = {};
  inet_ntop(static_cast<int>(family), address.data(), text, sizeof text);
  return text;
}

std::string mac_text(std::span<const uint8_t> bytes) {
  std::string out;
  for (const uint8_t byte : bytes) out += fmt::format("{}{:02X}", out.empty() ? "" : ":", byte);
  return out;
}

std::string named_text(std::string_view names, int64_t number) {
  if (names == "username") {
    if (auto name = user_name(static_cast<uid_t>(number)); !name.empty()) return name;
  } else if (names == "strerror") {
    if (const char* text = strerrordesc_np(static_cast<int>(number))) return text;
  } else if (names == "signal_name") {
    if (const char* text = sigabbrev_np(static_cast<int>(number)))
      return fmt::format("SIG{}", text);
  } else if (names == "syscall_name") {
    if (const auto name = syscall_name(number); !name.empty()) return std::string(name);
  } else if (names.starts_with(kCgroupPath)) {
    names.remove_prefix(kCgroupPath.size());
    if (!names.empty()) names.remove_prefix(1);
    return cgroup_path_text(static_cast<uint64_t>(number), std::string(names));
  }
  return fmt::format("{}", number);
}

uint64_t real_time_of(uint64_t monotonic_ns) {
  return monotonic_ns + (now_ns(CLOCK_REALTIME) - now_ns(CLOCK_MONOTONIC));
}

std::string timestamp_text(std::string_view format, uint64_t real_ns) {
  const uint64_t part = real_ns % kNsPerSecond;
  std::string ready;
  for (size_t at = 0; at < format.size(); at++) {
    const char letter = format[at] == '%' && at + 1 < format.size() ? format[at + 1] : '\0';
    if (letter == 'f') {
      ready += fmt::format("{:06}", part / 1000);
    } else if (letter == 'l') {
      ready += fmt::format("{:03}", part / 1'000'000);
    } else if (letter == 'k') {
      ready += fmt::format("{:09}", part);
    } else {
      ready += format[at];
      if (letter == '\0') continue;
      ready += letter;
    }
    at++;
  }
  return format_time(ready, static_cast<int64_t>(real_ns / kNsPerSecond));
}

}  // namespace spile::output
