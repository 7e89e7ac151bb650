// What is patched in the running kernel: kprobes/list and the live bytes behind it.
#include <fcntl.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>

#include "base/fd.h"
#include "kernel_engine/kernel_engine.h"
#include "kernel_engine/knowledge.h"

namespace spile::kernel_engine {

namespace {

constexpr size_t kShownBytes = 5;  ///< a call, a jump, or an int3 and what is behind it
/// What ftrace keeps at the places that it can trace: x86_nops[5].
constexpr std::array<uint8_t, 5> kNop5 = {0x0f, 0x1f, 0x44, 0x00, 0x00};
constexpr uint8_t kCall = 0xe8, kInt3 = 0xcc;

/// Of ftrace's call the original is known; of a breakpoint or a jump the kernel keeps it to itself.
void show_code(engine::SiteReport& site, std::vector<uint8_t> live, bool is_ftrace) {
  if (is_ftrace && !live.empty() && live[0] == kCall) {
    site.before.assign(kNop5.begin(), kNop5.end());
    site.after = std::move(live);
  } else {
    // Behind a breakpoint lies the rest of an instruction.
    if (!live.empty() && live[0] == kInt3) live.resize(1);
    site.before = std::move(live);
  }
}

/// The kernel's memory as an ELF core file: its program headers say which file offset is which
/// address.
class KernelMemory {
 public:
  static Result<KernelMemory> open() {
    KernelMemory memory;
    memory.file_ = Fd(::open("/proc/kcore", O_RDONLY | O_CLOEXEC));
    if (!memory.file_) return fail_errno(errno, "open /proc/kcore");
    std::array<uint8_t, 64> header = {};
    if (!memory.read_at(0, header)) return fail_errno(errno, "read /proc/kcore");
    memory.headers_offset_ = word(header, 32);
    memory.header_size_ = static_cast<uint16_t>(word(header, 54));
    memory.headers_ = static_cast<uint16_t>(word(header, 56));
    return memory;
  }

  /// Empty where that address is not shown.
  std::vector<uint8_t> read(uint64_t address, size_t size) const {
    constexpr uint32_t kLoad = 1;
    for (uint16_t i = 0; i < headers_; i++) {
      std::array<uint8_t, 56> header = {};
      if (!read_at(headers_offset_ + uint64_t{i} * header_size_, header)) return {};
      const uint64_t start = word(header, 16), length = word(header, 40);
      if (static_cast<uint32_t>(word(header, 0)) != kLoad || address < start ||
          address - start >= length)
        continue;
      std::vector<uint8_t> bytes(size);
      if (!read_at(word(header, 8) + (address - start), bytes)) return {};
      return bytes;
    }
    return {};
  }

 private:
  static uint64_t word(std::span<const uint8_t> bytes, size_t at) {
    uint64_t value = 0;
    std::memcpy(&value, bytes.data() + at, sizeof value);
    return value;
  }
  bool read_at(uint64_t offset, std::span<uint8_t> into) const {
    return pread(file_.get(), into.data(), into.size(), static_cast<off_t>(offset)) ==
           static_cast<ssize_t>(into.size());
  }

  Fd file_;
  uint64_t headers_offset_ = 0;
  uint16_t header_size_ = 0, headers_ = 0;
};

}  // namespace

Result<void> shows_its_memory() {
  SPILE_TRY(const KernelMemory memory, KernelMemory::open());
  return {};
}

Result<std::vector<engine::SiteReport>> kernel_sites() {
  SPILE_TRY(const auto probes, active_kprobes());
  auto memory = KernelMemory::open();
  std::vector<engine::SiteReport> sites;
  for (const ActiveKprobe& probe : probes) {
    engine::SiteReport site;
    site.location = probe.module.empty() ? probe.place : probe.module + ":" + probe.place;
    site.address = probe.address;
    site.mechanism = fmt::format("{}{}", probe.type == 'r' ? "kretprobe" : "kprobe",
                                 probe.state.empty() ? "" : " " + probe.state);
    // What was there is gone, and the memory may be another's.
    const bool is_gone = probe.state.find("[GONE]") != std::string::npos;
    const bool is_ftrace = probe.state.find("[FTRACE]") != std::string::npos;
    if (memory && !is_gone) show_code(site, memory->read(probe.address, kShownBytes), is_ftrace);
    sites.push_back(std::move(site));
  }
  return sites;
}

}  // namespace spile::kernel_engine
