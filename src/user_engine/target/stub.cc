#include "user_engine/target/stub.h"

#include <algorithm>
#include <cstring>

extern "C" {
extern const uint8_t spile_stub_begin[], spile_stub_memfd[], spile_stub_after_memfd[],
    spile_stub_call[];
extern const uint8_t spile_stub_after_call[], spile_stub_mask[], spile_stub_registers[],
    spile_stub_target[];
extern const uint8_t spile_stub_name[], spile_stub_end[];
}

namespace spile::target {
namespace {

constexpr uint64_t kPage = 4096;
constexpr uint64_t kAlign = 16;
constexpr uint64_t kMagicBytes = 16;
constexpr uint64_t kRestartSyscall = 219;
constexpr uint64_t kRestartSyscall32 = 0;  // int $0x80 from 64-bit code
constexpr uint64_t kX32Bit = 0x4000'0000;
constexpr size_t kSavedRegisters = 15;

uint64_t offset_of(const uint8_t* label) {
  return static_cast<uint64_t>(label - spile_stub_begin);
}
uint64_t align_up(uint64_t a, uint64_t to) {
  return (a + to - 1) & ~(to - 1);
}

bool all_zero(std::span<const uint8_t> bytes) {
  return std::all_of(bytes.begin(), bytes.end(), [](uint8_t b) { return b == 0; });
}

/// Size of the stub that lies at the start of `bytes`, 0: none.
uint64_t leftover_size(std::span<const uint8_t> bytes) {
  if (bytes.size() < kMagicBytes + 8 ||
      std::memcmp(bytes.data(), spile_stub_begin, kMagicBytes) != 0)
    return 0;
  uint64_t size;
  std::memcpy(&size, bytes.data() + kMagicBytes, sizeof size);
  return size >= kMagicBytes + 8 && size <= bytes.size() ? size : 0;
}

void add_place(const os::ProcessMemory& memory,
               TargetAddr from,
               TargetAddr to,
               std::vector<StubPlace>& places) {
  const TargetAddr at(align_up(from.value, kAlign));
  if (at >= to || static_cast<uint64_t>(to - at) < stub_layout().size) return;
  std::vector<uint8_t> bytes(static_cast<uint64_t>(to - at));
  if (!memory.read(at, bytes)) return;
  const uint64_t leftover = leftover_size(bytes);
  if (leftover != 0 || all_zero(bytes)) places.push_back({at, leftover});
}

/// The kernel maps whole pages: behind a segment's last byte comes whatever the file has next.
/// Linkers of today pad with zeros there; with anything else the place is not used. The copy that
/// our write makes is the target's own.
void add_text_ends(const Module& module,
                   const os::ProcessMemory& memory,
                   std::vector<StubPlace>& places) {
  for (const LoadSegment& load : module.loads) {
    if (!load.exec || load.write || load.memory_size != load.file_size || load.file_size == 0)
      continue;
    const TargetAddr end = module.bias.to_target(load.address + load.file_size);
    const TargetAddr page_end(align_up(end.value, kPage));
    const Segment* segment = page_end > end ? module.segment_at(end) : nullptr;
    if (segment == nullptr || !segment->exec || !segment->read || segment->write ||
        segment->end < page_end)
      continue;
    add_place(memory, end, page_end, places);
  }
}

void add_vdso_end(const Module& vdso,
                  const os::ProcessMemory& memory,
                  std::vector<StubPlace>& places) {
  for (const Segment& segment : vdso.segments) {
    const uint64_t size = static_cast<uint64_t>(segment.end - segment.start);
    if (!segment.exec || size > 16 * kPage) continue;
    std::vector<uint8_t> bytes(size);
    if (!memory.read(segment.start, bytes)) continue;
    const auto last = std::find_if(bytes.rbegin(), bytes.rend(), [](uint8_t b) { return b != 0; });
    // Keep well away from what may be the zero end of a table.
    const uint64_t used = static_cast<uint64_t>(bytes.rend() - last);
    add_place(memory, segment.start + align_up(used + 64, kAlign), segment.end, places);
  }
}

}  // namespace

const StubLayout& stub_layout() {
  static const StubLayout layout{
      offset_of(spile_stub_memfd), offset_of(spile_stub_after_memfd),
      offset_of(spile_stub_call),  offset_of(spile_stub_after_call),
      offset_of(spile_stub_name),  offset_of(spile_stub_end) - offset_of(spile_stub_name),
      offset_of(spile_stub_end)};
  return layout;
}

os::Registers way_home(const StoppedThread& thread, std::span<const uint8_t, 2> before_rip) {
  os::Registers home = thread.registers;
  if (!thread.will_restart()) return home;
  home.rip -= 2;  // every system call instruction has two bytes
  if (static_cast<int64_t>(home.rax) != os::kErestartRestartBlock) {
    home.rax = home.orig_rax;
  } else if (before_rip[0] == 0xcd) {  // int $0x80
    home.rax = kRestartSyscall32;
  } else {
    home.rax = kRestartSyscall | (home.orig_rax & kX32Bit);
  }
  return home;
}

std::vector<uint8_t> make_stub(const os::Registers& home, uint64_t mask) {
  std::vector<uint8_t> bytes(spile_stub_begin, spile_stub_end);
  std::memcpy(bytes.data() + offset_of(spile_stub_mask), &mask, sizeof mask);
  static_assert(offsetof(os::Registers, rdi) == (kSavedRegisters - 1) * 8);
  std::memcpy(bytes.data() + offset_of(spile_stub_registers), &home, kSavedRegisters * 8);
  std::memcpy(bytes.data() + offset_of(spile_stub_target), &home.rip, 8);
  return bytes;
}

std::vector<uint8_t> name_field(std::string_view name) {
  std::vector<uint8_t> bytes(stub_layout().name_bytes, 0);
  SPILE_CHECK(name.size() < bytes.size());
  std::copy(name.begin(), name.end(), bytes.begin());
  return bytes;
}

std::vector<StubPlace> find_stub_places(const std::vector<os::MapEntry>& maps,
                                        const os::ProcessMemory& memory) {
  std::vector<StubPlace> places;
  const std::vector<Module> modules = find_modules(maps, memory, 0);
  for (const Module& module : modules) {
    if (!module.vdso) add_text_ends(module, memory, places);
  }
  for (const Module& module : modules) {
    if (module.vdso) add_vdso_end(module, memory, places);
  }
  return places;
}

}  // namespace spile::target
