#include "api/descriptors.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdint>

namespace spile::api {
namespace {

struct DirectoryEntry {  // struct linux_dirent64
  uint64_t inode;
  int64_t offset;
  uint16_t size;
  uint8_t type;
  char name[1];
};

/// -1: not a number.
int number(const char* text) {
  int value = 0;
  if (*text == 0) return -1;
  for (; *text != 0; ++text) {
    if (*text < '0' || *text > '9') return -1;
    value = value * 10 + (*text - '0');
  }
  return value;
}

void close_every_number_from(int first) {
  rlimit limit = {};
  if (::getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
  // The limit may have been lowered since, or be without an end.
  constexpr rlim_t kLeast = 1024, kMost = 1 << 20;
  const rlim_t end = limit.rlim_cur < kLeast ? kLeast : limit.rlim_cur;
  for (rlim_t fd = static_cast<rlim_t>(first); fd < end && fd < kMost; ++fd)
    ::close(static_cast<int>(fd));
}

}  // namespace

void close_listed_from(int first) {
  const int list = ::open("/proc/self/fd", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (list < 0) return close_every_number_from(first);
  alignas(DirectoryEntry) char entries[2048];
  for (;;) {
    // The kernel goes by number: what is closed meanwhile does not disturb it.
    const long got = ::syscall(SYS_getdents64, list, entries, sizeof entries);
    if (got <= 0) break;
    for (long at = 0; at < got;) {
      const auto* entry = reinterpret_cast<const DirectoryEntry*>(entries + at);
      at += entry->size;
      const int fd = number(entry->name);
      if (fd >= first && fd != list) ::close(fd);
    }
  }
  ::close(list);
}

void close_from(int first) {
  if (::syscall(SYS_close_range, first, ~0u, 0) != 0) close_listed_from(first);
}

}  // namespace spile::api
