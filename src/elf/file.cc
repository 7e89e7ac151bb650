#include "elf/file.h"

#include <elf.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <climits>
#include <cstring>

#include "elf/reader.h"

namespace spile::elf {
namespace {

constexpr uint64_t kMaxPartBytes = uint64_t{1}
                                   << 30;  ///< of one section or segment that we read as a whole
constexpr size_t kMaxNeeded = 4096;
constexpr uint64_t kMaxHeaders =
    1 << 16;  ///< program or section headers; big C++ debug files have 10,000s
constexpr uint64_t kMaxNoteBytes = 1 << 20;
constexpr uint64_t kMaxDynamicBytes = 1 << 20;

std::string machine_name(uint16_t machine) {
  switch (machine) {
    case EM_386: return "32-bit x86";
    case EM_ARM: return "32-bit ARM";
    case EM_AARCH64: return "aarch64";
    case EM_RISCV: return "RISC-V";
    case EM_PPC64: return "PowerPC";
    case EM_S390: return "s390";
    case EM_BPF: return "eBPF";
    default: return fmt::format("machine number {}", machine);
  }
}

/// Refuses in words what is not a little-endian x86-64 program or library.
Result<void> check_ident(const Elf64_Ehdr& h, const std::string& path) {
  if (std::memcmp(h.e_ident, ELFMAG, SELFMAG) != 0)
    return fail(ErrorCode::kInvalid, "{} is not an ELF file", path);
  if (h.e_ident[EI_DATA] != ELFDATA2LSB)
    return fail(ErrorCode::kUnsupported, "{} is big-endian; only x86-64 is built", path);
  // e_machine lies at the same place in both classes.
  if (h.e_ident[EI_CLASS] != ELFCLASS64)
    return fail(ErrorCode::kUnsupported, "{} is a 32-bit file ({}); only x86-64 is built", path,
                h.e_machine == EM_X86_64 ? "x32" : machine_name(h.e_machine));
  if (h.e_machine != EM_X86_64)
    return fail(ErrorCode::kUnsupported, "{} is for {}; only x86-64 is built", path,
                machine_name(h.e_machine));
  if (h.e_type == ET_REL)
    return fail(ErrorCode::kUnsupported, "{} is an object file, not linked yet", path);
  if (h.e_type == ET_CORE) return fail(ErrorCode::kUnsupported, "{} is a core dump", path);
  if (h.e_type != ET_EXEC && h.e_type != ET_DYN)
    return fail(ErrorCode::kCorrupt, "{} has the unknown ELF type {}", path, h.e_type);
  return {};
}

bool fits(uint64_t offset, uint64_t size, uint64_t total) {
  return offset <= total && size <= total - offset;
}

}  // namespace

File::File() = default;
File::File(File&&) noexcept = default;
File& File::operator=(File&&) noexcept = default;
File::~File() = default;

// ---- opening
// -----------------------------------------------------------------------------------------------------

Result<File> File::open(const std::string& path, OpenMode mode) {
  // Opening a device may have effects, and a FIFO would make us wait: the check comes before,
  // O_NONBLOCK covers the race.
  struct stat st{};
  if (::stat(path.c_str(), &st) == 0 && !S_ISREG(st.st_mode))
    return fail(ErrorCode::kInvalid, "{} is not a regular file", path);
  Fd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY));
  if (!fd) return fail_errno(errno, "open {}", path);
  return from_fd(std::move(fd), path, mode);
}

Result<File> File::from_fd(Fd fd, std::string name, OpenMode mode) {
  struct stat st{};
  if (::fstat(fd.get(), &st) != 0) return fail_errno(errno, "stat {}", name);
  if (!S_ISREG(st.st_mode)) return fail(ErrorCode::kInvalid, "{} is not a regular file", name);
  File file;
  file.path_ = std::move(name);
  file.fd_ = std::move(fd);
  file.size_ = static_cast<uint64_t>(st.st_size);
  file.identity_ = {st.st_dev, st.st_ino};
  return parse(std::move(file), mode);
}

Result<File> File::from_bytes(std::vector<uint8_t> bytes, std::string name, OpenMode mode) {
  File file;
  file.path_ = std::move(name);
  file.size_ = bytes.size();
  file.owned_ = std::move(bytes);
  return parse(std::move(file), mode);
}

Result<File> File::parse(File file, OpenMode mode) {
  Elf64_Ehdr h{};
  if (file.size_ < sizeof h)
    return fail(ErrorCode::kInvalid, "{} is too short for an ELF file", file.path_);
  SPILE_TRY_VOID(file.read_into(0, {reinterpret_cast<uint8_t*>(&h), sizeof h}));
  SPILE_TRY_VOID(check_ident(h, file.path_));
  file.entry_ = LinkAddr(h.e_entry);

  // Counts that do not fit the header live in the first section header.
  uint64_t section_count = h.e_shnum, segment_count = h.e_phnum;
  uint32_t names_index = h.e_shstrndx;
  if (h.e_shoff != 0 && fits(h.e_shoff, sizeof(Elf64_Shdr), file.size_)) {
    SPILE_TRY(const auto first, file.read(FileOffset(h.e_shoff), sizeof(Elf64_Shdr)));
    const auto zero = *load_at<Elf64_Shdr>(first, 0);
    if (section_count == 0) section_count = zero.sh_size;
    if (names_index == SHN_XINDEX) names_index = zero.sh_link;
    if (segment_count == PN_XNUM) segment_count = zero.sh_info;
  }
  if (segment_count > kMaxHeaders || section_count > kMaxHeaders)
    return fail(ErrorCode::kCorrupt, "{} claims {} segments and {} sections", file.path_,
                segment_count, section_count);
  if (segment_count != 0 && h.e_phentsize != sizeof(Elf64_Phdr))
    return fail(ErrorCode::kCorrupt, "{} has program headers of {} bytes", file.path_,
                h.e_phentsize);

  SPILE_TRY(const auto table, file.read(FileOffset(h.e_phoff), segment_count * sizeof(Elf64_Phdr)));
  SPILE_TRY_VOID(file.parse_segments(table, mode));
  if (h.e_shoff != 0 && section_count != 0) {
    if (h.e_shentsize != sizeof(Elf64_Shdr))
      return fail(ErrorCode::kCorrupt, "{} has section headers of {} bytes", file.path_,
                  h.e_shentsize);
    SPILE_TRY_VOID(file.parse_sections(h.e_shoff, section_count, names_index));
  }
  if (h.e_type == ET_DYN) {
    const auto flags = file.dynamic(DT_FLAGS_1).value_or(0);
    const bool is_program =
        (flags & DF_1_PIE) != 0 || (!file.interpreter_.empty() && file.soname_.empty());
    file.kind_ = is_program ? FileKind::kPie : FileKind::kShared;
  }
  file.find_build_id();
  return file;
}

Result<void> File::parse_segments(std::span<const uint8_t> table, OpenMode mode) {
  uint64_t dynamic_offset = 0, dynamic_size = 0;
  for (uint64_t i = 0; i < table.size(); i += sizeof(Elf64_Phdr)) {
    const auto p = *load_at<Elf64_Phdr>(table, i);
    if (p.p_type == PT_GNU_EH_FRAME) eh_frame_header_ = LinkAddr(p.p_vaddr);
    if (p.p_type == PT_NOTE && mode == OpenMode::kProgram)
      notes_.emplace_back(p.p_offset, p.p_filesz);
    if (p.p_type == PT_DYNAMIC) dynamic_offset = p.p_offset, dynamic_size = p.p_filesz;
    if (p.p_type == PT_INTERP && mode == OpenMode::kProgram) {
      SPILE_TRY(const auto bytes,
                read(FileOffset(p.p_offset), std::min<uint64_t>(p.p_filesz, PATH_MAX)));
      interpreter_ = std::string(string_at(bytes, 0).value_or(""));
    }
    if (p.p_type != PT_LOAD || p.p_memsz == 0) continue;
    if (p.p_filesz > p.p_memsz || p.p_vaddr + p.p_memsz < p.p_vaddr)
      return fail(ErrorCode::kCorrupt, "segment {} of {} has impossible sizes", i / sizeof p,
                  path_);
    if (mode == OpenMode::kProgram && !fits(p.p_offset, p.p_filesz, size_))
      return fail(ErrorCode::kCorrupt, "{} is truncated: segment {} ends at byte {:#x} of {:#x}",
                  path_, i / sizeof p, p.p_offset + p.p_filesz, size_);
    if (!segments_.empty() && p.p_vaddr < (segments_.back().addr + segments_.back().mem_size).value)
      return fail(ErrorCode::kCorrupt, "segment {} of {} overlaps the one before it", i / sizeof p,
                  path_);
    segments_.push_back({LinkAddr(p.p_vaddr), p.p_memsz, FileOffset(p.p_offset), p.p_filesz,
                         (p.p_flags & PF_R) != 0, (p.p_flags & PF_W) != 0,
                         (p.p_flags & PF_X) != 0});
  }
  if (mode == OpenMode::kProgram && dynamic_size != 0)
    return parse_dynamic(dynamic_offset, dynamic_size);
  return {};
}

Result<void> File::parse_sections(uint64_t offset, uint64_t count, uint32_t names_index) {
  SPILE_TRY(const auto table, cached(offset, count * sizeof(Elf64_Shdr)));
  std::span<const uint8_t> names;
  if (const auto n = load_at<Elf64_Shdr>(table, uint64_t{names_index} * sizeof(Elf64_Shdr));
      n && names_index != 0) {
    SPILE_TRY(names, cached(n->sh_offset, n->sh_size));
  }
  sections_.reserve(count);
  for (uint32_t i = 0; i < count; ++i) {
    const auto s = *load_at<Elf64_Shdr>(table, uint64_t{i} * sizeof(Elf64_Shdr));
    sections_.push_back({string_at(names, s.sh_name, 4096).value_or(""), s.sh_type, s.sh_flags,
                         LinkAddr(s.sh_addr), FileOffset(s.sh_offset), s.sh_size, s.sh_entsize,
                         s.sh_link, s.sh_info, i});
  }
  return {};
}

Result<void> File::parse_dynamic(uint64_t offset, uint64_t size) {
  if (size > kMaxDynamicBytes)
    return fail(ErrorCode::kCorrupt, "{} has a dynamic table of {} bytes", path_, size);
  SPILE_TRY(const auto table, read(FileOffset(offset), size));
  for (uint64_t i = 0; i + sizeof(Elf64_Dyn) <= table.size(); i += sizeof(Elf64_Dyn)) {
    const auto d = *load_at<Elf64_Dyn>(table, i);
    if (d.d_tag == DT_NULL) break;
    dynamic_.emplace_back(d.d_tag, d.d_un.d_val);
  }
  read_dynamic_strings();
  return {};
}

/// A string table that cannot be read leaves the names empty: the symbols that need it will say so.
void File::read_dynamic_strings() {
  const auto where = dynamic(DT_STRTAB);
  if (!where) return;
  const auto offset = to_offset(LinkAddr(*where));
  const uint64_t size = std::min(dynamic(DT_STRSZ).value_or(0), kMaxPartBytes);
  if (!offset || !fits(offset->value, size, size_)) return;
  const auto strings = cached(offset->value, size);
  if (!strings) return;
  for (const auto& [tag, value] : dynamic_) {
    if (tag == DT_SONAME) soname_ = std::string(string_at(*strings, value, PATH_MAX).value_or(""));
    if (tag == DT_NEEDED && needed_.size() < kMaxNeeded)
      needed_.emplace_back(string_at(*strings, value, PATH_MAX).value_or(""));
  }
}

void File::find_build_id() {
  for (const auto& [offset, size] : notes_) {
    if (size > kMaxNoteBytes) continue;
    if (const auto bytes = read(FileOffset(offset), size)) find_notes_in(*bytes);
  }
  // Debug files and objects without program headers have it in their sections only.
  for (const auto& s : sections_) {
    if (!build_id_.empty()) return;
    if (s.type != SHT_NOTE || s.size > kMaxNoteBytes) continue;
    if (const auto bytes = read(s.offset, s.size)) find_notes_in(*bytes);
  }
}

void File::find_notes_in(std::span<const uint8_t> notes) {
  uint64_t at = 0;
  while (const auto n = load_at<Elf64_Nhdr>(notes, at)) {
    const uint64_t name = at + sizeof *n,
                   data = name + ((uint64_t{n->n_namesz} + 3) & ~uint64_t{3});
    const uint64_t next = data + ((uint64_t{n->n_descsz} + 3) & ~uint64_t{3});
    if (!fits(data, n->n_descsz, notes.size())) return;
    const bool is_gnu = n->n_namesz == 4 && std::memcmp(notes.data() + name, "GNU", 4) == 0;
    if (is_gnu && n->n_type == NT_GNU_BUILD_ID && n->n_descsz <= 64 && build_id_.empty())
      build_id_.assign(notes.begin() + data, notes.begin() + data + n->n_descsz);
    at = next;
  }
}

// ---- questions
// ---------------------------------------------------------------------------------------------------

std::string File::build_id_hex() const {
  std::string hex;
  for (const uint8_t byte : build_id_) hex += fmt::format("{:02x}", byte);
  return hex;
}

bool File::is_go() const {
  return section(".gopclntab") != nullptr || section(".go.buildinfo") != nullptr ||
         section(".note.go.buildid") != nullptr || section(".data.rel.ro.gopclntab") != nullptr;
}

const Section* File::section(std::string_view name) const {
  const auto found = std::ranges::find(sections_, name, &Section::name);
  return found == sections_.end() ? nullptr : &*found;
}

const Segment* File::segment_at(LinkAddr addr) const {
  auto after = std::ranges::upper_bound(segments_, addr, {}, &Segment::addr);
  if (after == segments_.begin()) return nullptr;
  const auto& segment = *std::prev(after);
  return segment.contains(addr) ? &segment : nullptr;
}

bool File::is_executable(LinkAddr addr) const {
  const auto* segment = segment_at(addr);
  return segment != nullptr && segment->executable;
}

std::optional<FileOffset> File::to_offset(LinkAddr addr) const {
  const auto* segment = segment_at(addr);
  if (segment == nullptr) return std::nullopt;
  const uint64_t inside = addr.value - segment->addr.value;
  if (inside >= segment->file_size) return std::nullopt;
  return segment->offset + inside;
}

std::optional<LinkAddr> File::to_link(FileOffset offset) const {
  std::optional<LinkAddr> found;
  for (const auto& s : segments_) {
    if (offset < s.offset || offset.value - s.offset.value >= s.file_size) continue;
    if (!found || s.executable) found = s.addr + (offset.value - s.offset.value);
    if (s.executable) break;
  }
  return found;
}

std::optional<uint64_t> File::dynamic(int64_t tag) const {
  const auto found = std::ranges::find(dynamic_, tag, &std::pair<int64_t, uint64_t>::first);
  if (found == dynamic_.end()) return std::nullopt;
  return found->second;
}

// ---- bytes
// -------------------------------------------------------------------------------------------------------

Result<void> File::read_into(uint64_t offset, std::span<uint8_t> out) const {
  if (!fits(offset, out.size(), size_))
    return fail(ErrorCode::kCorrupt, "{} is truncated: {} bytes wanted at {:#x}, it has {:#x}",
                path_, out.size(), offset, size_);
  if (!fd_) {
    std::copy_n(owned_.begin() + static_cast<ptrdiff_t>(offset), out.size(), out.begin());
    return {};
  }
  while (!out.empty()) {
    const ssize_t got = ::pread(fd_.get(), out.data(), out.size(), static_cast<off_t>(offset));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return fail_errno(errno, "read {}", path_);
    if (got == 0) return fail(ErrorCode::kCorrupt, "{} became shorter while it was read", path_);
    offset += static_cast<uint64_t>(got);
    out = out.subspan(static_cast<size_t>(got));
  }
  return {};
}

Result<std::vector<uint8_t>> File::read(FileOffset offset, uint64_t size) const {
  if (!fits(offset.value, size, size_))  // before the allocation
    return fail(ErrorCode::kCorrupt, "{} is truncated: {} bytes wanted at {:#x}, it has {:#x}",
                path_, size, offset.value, size_);
  if (size > kMaxPartBytes)
    return fail(ErrorCode::kUnsupported, "{}: {} bytes at once", path_, size);
  std::vector<uint8_t> bytes(size);
  SPILE_TRY_VOID(read_into(offset.value, bytes));
  return bytes;
}

Result<std::vector<uint8_t>> File::read(LinkAddr addr, uint64_t size) const {
  const auto* segment = segment_at(addr);
  const auto offset = to_offset(addr);
  if (segment == nullptr || !offset)
    return fail(ErrorCode::kNotFound, "{} loads nothing at {}", path_, addr);
  if (size > segment->file_size - (addr.value - segment->addr.value))
    return fail(ErrorCode::kNotFound, "{} loads fewer than {} bytes at {}", path_, size, addr);
  return read(*offset, size);
}

Result<std::span<const uint8_t>> File::cached(uint64_t offset, uint64_t size) const {
  if (!fits(offset, size, size_))
    return fail(ErrorCode::kCorrupt, "{} is truncated: {} bytes wanted at {:#x}, it has {:#x}",
                path_, size, offset, size_);
  if (size > kMaxPartBytes)
    return fail(ErrorCode::kUnsupported, "{}: a part of {} bytes", path_, size);
  if (!fd_) return std::span<const uint8_t>(owned_).subspan(offset, size);
  auto& part = cache_[{offset, size}];
  if (part.data == nullptr) {
    auto data = std::make_unique_for_overwrite<uint8_t[]>(size);
    if (auto done = read_into(offset, {data.get(), size}); !done) return forward(done);
    part = {std::move(data), size};
  }
  return std::span<const uint8_t>(part.data.get(), part.size);
}

Result<std::span<const uint8_t>> File::bytes(const Section& section) const {
  if (section.type == SHT_NOBITS) return std::span<const uint8_t>();
  if ((section.flags & SHF_COMPRESSED) != 0)
    return fail(ErrorCode::kUnsupported, "section {} of {} is compressed", section.name, path_);
  return cached(section.offset.value, section.size);
}

Result<std::span<const uint8_t>> File::bytes(const Segment& segment) const {
  return cached(segment.offset.value, segment.file_size);
}

Result<std::span<const uint8_t>> File::bytes_from(LinkAddr addr) const {
  const auto* segment = segment_at(addr);
  if (segment == nullptr || !to_offset(addr))
    return fail(ErrorCode::kNotFound, "{} loads nothing at {}", path_, addr);
  SPILE_TRY(const auto all, bytes(*segment));
  return all.subspan(addr.value - segment->addr.value);
}

}  // namespace spile::elf
