// Memory files, seals, mappings of our own, and the memory of another process.
#pragma once

#include <cstdint>
#include <span>
#include <string>

#include "base/address.h"
#include "base/error.h"
#include "base/fd.h"

namespace spile::os {

/// The memory of another process through /proc/PID/mem.
///
/// The file holds on to the address space that was there when it was opened: after an exec, or the
/// end of the process and a reuse of its number, reads and writes fail instead of reaching a
/// stranger. Reads ignore page protection (the kernel's FOLL_FORCE), so they also see PROT_NONE
/// pages.
class ProcessMemory {
 public:
  ProcessMemory() = default;
  /// `tid`: any thread that is alive (a zombie leader has no memory).
  static Result<ProcessMemory> open(pid_t tid);

  /// All bytes or an error.
  Result<void> read(TargetAddr from, std::span<uint8_t> to) const;
  /// As many as there are; 0 when the first byte cannot be read.
  size_t read_some(TargetAddr from, std::span<uint8_t> to) const;
  template <typename T>
  Result<T> read_value(TargetAddr from) const {
    T value{};
    auto done = read(from, {reinterpret_cast<uint8_t*>(&value), sizeof value});
    if (!done) return std::unexpected(std::move(done.error()));
    return value;
  }
  /// All bytes or an error; counted as one step (os/step.h). Read-only private pages become the
  /// target's own copy.
  Result<void> write(TargetAddr to, std::span<const uint8_t> bytes) const;

  /// False once the address space is gone: the process ended or called exec.
  bool alive() const;

 private:
  explicit ProcessMemory(Fd fd) : fd_(std::move(fd)) {}
  Fd fd_;
};

/// Opens a memory file through another path (/proc/PID/fd/N) for reading and writing.
Result<Fd> open_read_write(const std::string& path);
Result<void> set_size(const Fd& fd, uint64_t size_bytes);
/// Gives the file all its pages, so that no later access can find the machine out of memory
/// (SIGBUS).
Result<void> allocate(const Fd& fd, uint64_t size_bytes);
/// F_SEAL_*.
Result<void> add_seals(const Fd& fd, int seals);
/// `populate`: fill our page tables at once.
Result<Mapping> map_read_write(const Fd& fd, uint64_t size_bytes, bool populate = true);

/// A whole file, private to us. Errors: unsupported (an empty file, or one that cannot be mapped).
Result<Mapping> map_read_only(const std::string& path);

/// MFD_* flags to try in order: 6.3 and later, with every setting of vm.memfd_noexec, then older
/// kernels. A mapping of a NOEXEC file may still be executable: the flag is about exec(2) of the
/// file.
std::span<const unsigned> memfd_flag_ladder();

}  // namespace spile::os
