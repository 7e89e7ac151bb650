#include "user_engine/target/memory_image.h"

#include <elf.h>
#include <errno.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstring>

namespace spile::target {
namespace {

constexpr uint64_t kMaxImageBytes = uint64_t{2} << 30;
constexpr uint64_t kChunkBytes = 1 << 20, kPageBytes = 4096;
constexpr uint64_t kMaxDynamicBytes = 1 << 20;
/// What the Go linker writes at the start of its build information (debug/buildinfo).
constexpr std::string_view kGoMagic = "\xff Go buildinf:";

/// Dynamic entries that hold addresses which loaders add the bias to.
bool is_relocated(int64_t tag) {
  switch (tag) {
    case DT_HASH:
    case DT_GNU_HASH:
    case DT_PLTGOT:
    case DT_STRTAB:
    case DT_SYMTAB:
    case DT_RELA:
    case DT_REL:
    case DT_JMPREL:
    case DT_VERSYM: return true;
    default: return false;
  }
}

Result<Fd> make_file(uint64_t size_bytes) {
  for (unsigned flags : os::memfd_flag_ladder()) {
    Fd file(::memfd_create("image", flags));
    if (!file && errno == EINVAL) continue;
    if (!file) return fail_errno(errno, "make a memory file");
    SPILE_TRY_VOID(os::set_size(file, size_bytes));
    return file;
  }
  return fail(ErrorCode::kUnsupported, "this kernel has no memory files");
}

class Image {
 public:
  Image(const os::ProcessMemory& memory, const Module& module) : memory_(memory), module_(module) {}

  Result<Fd> make() {
    uint64_t size = 0;
    for (const LoadSegment& load : module_.loads) {
      if (load.offset.value > kMaxImageBytes || load.file_size > kMaxImageBytes)
        return fail(ErrorCode::kUnsupported, "{}: a segment beyond 2 GiB", module_.path);
      size = std::max(size, load.offset.value + load.file_size);
    }
    if (size < sizeof(Elf64_Ehdr) || size > kMaxImageBytes)
      return fail(ErrorCode::kUnsupported, "{}: an image of {} bytes", module_.path, size);
    SPILE_TRY(Fd file, make_file(size));
    SPILE_TRY(Mapping view, os::map_read_write(file, size, false));
    bytes_ = view.bytes();
    for (const LoadSegment& load : module_.loads) SPILE_TRY_VOID(copy(load));
    if (is_go_)
      return fail(ErrorCode::kUnsupported, "{} was built by Go: its file is needed", module_.path);
    SPILE_TRY_VOID(adjust());
    return file;
  }

 private:
  Result<void> copy(const LoadSegment& load) {
    std::span<uint8_t> to = bytes_.subspan(load.offset.value, load.file_size);
    const TargetAddr from = module_.bias.to_target(load.address);
    for (uint64_t at = 0; at < to.size(); at += kChunkBytes) {
      auto chunk = to.subspan(at, std::min<uint64_t>(kChunkBytes, to.size() - at));
      if (memory_.read_some(from + at, chunk) == chunk.size()) continue;
      if (load.exec)
        return fail(ErrorCode::kNotFound, "the code of {} at {} cannot be read", module_.path,
                    from + at);
      copy_pages(from + at, chunk);
    }
    const std::string_view text(reinterpret_cast<const char*>(to.data()), to.size());
    is_go_ |= text.find(kGoMagic) != std::string_view::npos;
    return {};
  }

  /// A part of the data may be gone: the page that a loader gave back, or a guard.
  void copy_pages(TargetAddr from, std::span<uint8_t> to) {
    for (uint64_t at = 0; at < to.size();) {
      const uint64_t in_page = kPageBytes - (from.value + at) % kPageBytes;
      auto page = to.subspan(at, std::min<uint64_t>(in_page, to.size() - at));
      const size_t got = memory_.read_some(from + at, page);
      std::ranges::fill(page.subspan(got), uint8_t{0});
      at += page.size();
    }
  }

  template <typename T>
  Result<T> load_at(uint64_t offset) const {
    if (offset > bytes_.size() || sizeof(T) > bytes_.size() - offset)
      return fail(ErrorCode::kCorrupt, "{}: its headers lead out of its memory", module_.path);
    T value;
    std::memcpy(&value, bytes_.data() + offset, sizeof value);
    return value;
  }

  Result<void> adjust() {
    SPILE_TRY(auto header, load_at<Elf64_Ehdr>(0));
    header.e_shoff = 0;
    header.e_shnum = header.e_shstrndx = 0;
    std::memcpy(bytes_.data(), &header, sizeof header);
    for (uint64_t i = 0; i < header.e_phnum; i++) {
      SPILE_TRY(const auto p, load_at<Elf64_Phdr>(header.e_phoff + i * sizeof(Elf64_Phdr)));
      if (p.p_type == PT_DYNAMIC) SPILE_TRY_VOID(adjust_dynamic(p));
    }
    return {};
  }

  Result<void> adjust_dynamic(const Elf64_Phdr& p) {
    if (module_.bias.value == 0) return {};
    const uint64_t size = std::min<uint64_t>(p.p_filesz, kMaxDynamicBytes);
    for (uint64_t at = 0; at + sizeof(Elf64_Dyn) <= size; at += sizeof(Elf64_Dyn)) {
      SPILE_TRY(auto entry, load_at<Elf64_Dyn>(p.p_offset + at));
      if (entry.d_tag == DT_NULL) break;
      if (!is_relocated(entry.d_tag) || !module_.contains(TargetAddr(entry.d_un.d_ptr))) continue;
      entry.d_un.d_ptr -= module_.bias.value;
      std::memcpy(bytes_.data() + p.p_offset + at, &entry, sizeof entry);
    }
    return {};
  }

  const os::ProcessMemory& memory_;
  const Module& module_;
  std::span<uint8_t> bytes_;
  bool is_go_ = false;
};

}  // namespace

Result<Fd> make_memory_image(const os::ProcessMemory& memory, const Module& module) {
  return Image(memory, module).make();
}

}  // namespace spile::target
