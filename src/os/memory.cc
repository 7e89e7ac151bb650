#include "os/memory.h"

#include <fcntl.h>
#include <linux/memfd.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "os/step.h"

namespace spile::os {
namespace {

#ifndef MFD_NOEXEC_SEAL
constexpr unsigned MFD_NOEXEC_SEAL = 8;
#endif

}  // namespace

Result<ProcessMemory> ProcessMemory::open(pid_t tid) {
  const int fd = ::open(fmt::format("/proc/{}/mem", tid).c_str(), O_RDWR | O_CLOEXEC);
  if (fd < 0) return fail_errno(errno, "open /proc/{}/mem", tid);
  return ProcessMemory(Fd(fd));
}

size_t ProcessMemory::read_some(TargetAddr from, std::span<uint8_t> to) const {
  size_t done = 0;
  while (done < to.size()) {
    // pread takes a signed offset: the upper half of the address space (vsyscall) is out of reach.
    const ssize_t n = ::pread(fd_.get(), to.data() + done, to.size() - done,
                              static_cast<off_t>(from.value + done));
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) break;
    done += static_cast<size_t>(n);
  }
  return done;
}

Result<void> ProcessMemory::read(TargetAddr from, std::span<uint8_t> to) const {
  const size_t done = read_some(from, to);
  if (done == to.size()) return {};
  if (!alive())
    return fail(ErrorCode::kTargetGone, "read memory at {}: the process has ended or called exec",
                from);
  return fail(ErrorCode::kNotFound, "read {} bytes of memory at {}: not mapped from {}", to.size(),
              from, from + done);
}

Result<void> ProcessMemory::write(TargetAddr to, std::span<const uint8_t> bytes) const {
  step("write /proc/PID/mem");
  size_t done = 0;
  while (done < bytes.size()) {
    const ssize_t n = ::pwrite(fd_.get(), bytes.data() + done, bytes.size() - done,
                               static_cast<off_t>(to.value + done));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return fail_errno(errno, "write {} bytes of memory at {}", bytes.size(), to);
    if (n == 0)
      return fail(ErrorCode::kTargetGone,
                  "write memory at {}: the process has ended or called exec", to);
    done += static_cast<size_t>(n);
  }
  return {};
}

bool ProcessMemory::alive() const {
  // A dead address space answers 0, a live one without a page at this address EIO.
  uint8_t byte;
  const ssize_t n = ::pread(fd_.get(), &byte, 1, 0x1000);
  return n != 0;
}

Result<Fd> open_read_write(const std::string& path) {
  Fd fd(::open(path.c_str(), O_RDWR | O_CLOEXEC));
  if (!fd) return fail_errno(errno, "open {}", path);
  return fd;
}

Result<void> set_size(const Fd& fd, uint64_t size_bytes) {
  if (::ftruncate(fd.get(), static_cast<off_t>(size_bytes)) != 0) {
    return fail_errno(errno, "set the size of a memory file to {} bytes", size_bytes);
  }
  return {};
}

Result<void> allocate(const Fd& fd, uint64_t size_bytes) {
  while (::fallocate(fd.get(), 0, 0, static_cast<off_t>(size_bytes)) != 0) {
    if (errno != EINTR) return fail_errno(errno, "allocate {} bytes of shared memory", size_bytes);
  }
  return {};
}

Result<void> add_seals(const Fd& fd, int seals) {
  if (::fcntl(fd.get(), F_ADD_SEALS, seals) != 0) return fail_errno(errno, "seal a memory file");
  return {};
}

Result<Mapping> map_read_write(const Fd& fd, uint64_t size_bytes, bool populate) {
  const int flags = MAP_SHARED | (populate ? MAP_POPULATE : 0);
  void* at = ::mmap(nullptr, size_bytes, PROT_READ | PROT_WRITE, flags, fd.get(), 0);
  if (at == MAP_FAILED) return fail_errno(errno, "map {} bytes of a memory file", size_bytes);
  return Mapping(at, size_bytes);
}

Result<Mapping> map_read_only(const std::string& path) {
  const Fd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd) return fail_errno(errno, "open {}", path);
  struct stat st{};
  if (::fstat(fd.get(), &st) != 0) return fail_errno(errno, "read the size of {}", path);
  const auto size = static_cast<size_t>(st.st_size);
  if (size == 0) return fail(ErrorCode::kUnsupported, "{} has no size", path);
  void* at = ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE, fd.get(), 0);
  if (at == MAP_FAILED) return fail_errno(errno, "map {}", path);
  return Mapping(at, size);
}

std::span<const unsigned> memfd_flag_ladder() {
  static constexpr unsigned kLadder[] = {MFD_CLOEXEC | MFD_NOEXEC_SEAL,
                                         MFD_CLOEXEC | MFD_ALLOW_SEALING};
  return kLadder;
}

}  // namespace spile::os
