// One ELF file, opened for reading: what it is, where its segments lie, the bytes of its parts.
//
// The file may come from a container that wishes us ill. So it is never mapped (a truncation would
// raise SIGBUS in us): headers and the sections that somebody asks for are read once, into memory
// of our own, and every number in them is checked against what was read before it is used.
// Structures are those of <elf.h>.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/address.h"
#include "base/error.h"
#include "base/fd.h"

namespace spile::elf {

/// A PT_LOAD: `file_size` bytes at `offset` of the file are mapped at `addr`, zeros follow up to
/// `mem_size`.
struct Segment {
  LinkAddr addr;
  uint64_t mem_size = 0;
  FileOffset offset;
  uint64_t file_size = 0;
  bool readable = false, writable = false, executable = false;

  bool contains(LinkAddr a) const { return a >= addr && a.value - addr.value < mem_size; }
};

struct Section {
  std::string_view name;  ///< lives as long as the File
  uint32_t type = 0;      ///< SHT_*
  uint64_t flags = 0;     ///< SHF_*
  LinkAddr addr;          ///< 0 where not loaded
  FileOffset offset;
  uint64_t size = 0;  ///< bytes
  uint64_t entry_size = 0;
  uint32_t link = 0, info = 0;
  uint32_t index = 0;
};

enum class FileKind : uint8_t {
  kExecutable,  ///< ET_EXEC: link addresses are the target's addresses
  kPie,         ///< a position-independent program, static or not
  kShared,      ///< a shared object
};

/// Which file it is, whatever path led to it: /lib and /usr/lib are often one folder.
struct FileIdentity {
  dev_t device = 0;
  ino_t inode = 0;
  auto operator<=>(const FileIdentity&) const = default;
};

enum class OpenMode : uint8_t {
  kProgram,  ///< must be loadable
  kDebug,    ///< a separate debug file: its segments have no bytes
};

/// One thread at a time: reads fill caches. Moves keep all spans and string views valid.
class File {
 public:
  /// Opens a regular file.
  /// Errors: not found, denied   as the kernel says
  ///         invalid      not a regular file, or not ELF
  ///         unsupported  32-bit, big-endian, another machine, an object file or a core; the
  ///         message says which corrupt      the headers contradict each other or the file's size
  static Result<File> open(const std::string& path, OpenMode mode = OpenMode::kProgram);
  /// The same with a descriptor that is open for reading. `name` is for messages.
  static Result<File> from_fd(Fd fd, std::string name, OpenMode mode = OpenMode::kProgram);
  /// The same with the file's bytes, for example the vdso's.
  static Result<File> from_bytes(std::vector<uint8_t> bytes,
                                 std::string name,
                                 OpenMode mode = OpenMode::kProgram);

  File(File&&) noexcept;
  File& operator=(File&&) noexcept;
  ~File();

  const std::string& path() const { return path_; }
  uint64_t size_bytes() const { return size_; }
  FileIdentity identity() const { return identity_; }  ///< zeros for from_bytes

  FileKind kind() const { return kind_; }
  /// True where the loader adds a bias: every address in the file needs a relocation.
  bool is_position_independent() const { return kind_ != FileKind::kExecutable; }
  /// A program that needs neither a dynamic loader nor libraries.
  bool is_static() const {
    return kind_ != FileKind::kShared && interpreter_.empty() && needed_.empty();
  }
  LinkAddr entry() const { return entry_; }
  std::span<const uint8_t> build_id() const { return build_id_; }
  std::string build_id_hex() const;
  const std::string& soname() const { return soname_; }  ///< "" where none
  const std::string& interpreter() const {
    return interpreter_;
  }  ///< PT_INTERP: "/lib64/ld-linux-x86-64.so.2"
  const std::vector<std::string>& needed() const { return needed_; }  ///< DT_NEEDED, at most 4096
  /// Built by the Go tool chain: goroutine stacks move and hold few bytes.
  bool is_go() const;

  std::span<const Segment> segments() const { return segments_; }  ///< ascending, never overlapping
  std::span<const Section> sections() const {
    return sections_;
  }  ///< empty for files without section headers
  /// The first section of that name.
  const Section* section(std::string_view name) const;
  const Segment* segment_at(LinkAddr addr) const;
  bool is_executable(LinkAddr addr) const;

  /// Empty where the address has no bytes in the file (.bss, not loaded).
  std::optional<FileOffset> to_offset(LinkAddr addr) const;
  /// Empty where no segment loads that byte. Bytes that two segments share count as the executable
  /// one's.
  std::optional<LinkAddr> to_link(FileOffset offset) const;

  /// A copy of `size` bytes that are loaded at `addr`, from one segment. Errors: not found,
  /// corrupt.
  Result<std::vector<uint8_t>> read(LinkAddr addr, uint64_t size) const;
  Result<std::vector<uint8_t>> read(FileOffset offset, uint64_t size) const;

  /// All bytes of a section or of a segment's file part; read once, valid as long as the File.
  /// Errors: corrupt, unsupported (more than 1 GiB, compressed).
  Result<std::span<const uint8_t>> bytes(const Section& section) const;
  Result<std::span<const uint8_t>> bytes(const Segment& segment) const;
  /// From `addr` to the end of its segment's file part. For tables whose length only their contents
  /// tell.
  Result<std::span<const uint8_t>> bytes_from(LinkAddr addr) const;

  /// The value of the first dynamic entry with this tag (DT_*).
  std::optional<uint64_t> dynamic(int64_t tag) const;
  /// The address of PT_GNU_EH_FRAME's contents.
  std::optional<LinkAddr> eh_frame_header() const { return eh_frame_header_; }

 private:
  struct Cached {
    std::unique_ptr<uint8_t[]> data;
    uint64_t size = 0;
  };

  File();
  static Result<File> parse(File file, OpenMode mode);
  Result<void> read_into(uint64_t offset, std::span<uint8_t> out) const;
  Result<std::span<const uint8_t>> cached(uint64_t offset, uint64_t size) const;
  Result<void> parse_segments(std::span<const uint8_t> table, OpenMode mode);
  Result<void> parse_sections(uint64_t offset, uint64_t count, uint32_t names_index);
  Result<void> parse_dynamic(uint64_t offset, uint64_t size);
  void read_dynamic_strings();
  void find_build_id();
  void find_notes_in(std::span<const uint8_t> notes);

  std::string path_;
  Fd fd_;
  std::vector<uint8_t> owned_;  ///< from_bytes
  uint64_t size_ = 0;
  FileIdentity identity_;
  FileKind kind_ = FileKind::kExecutable;
  LinkAddr entry_;
  std::vector<uint8_t> build_id_;
  std::string soname_, interpreter_;
  std::vector<std::string> needed_;
  std::vector<Segment> segments_;
  std::vector<Section> sections_;
  std::vector<std::pair<int64_t, uint64_t>> dynamic_;
  std::vector<std::pair<uint64_t, uint64_t>> notes_;  ///< PT_NOTE: offset, size
  std::optional<LinkAddr> eh_frame_header_;
  mutable std::map<std::pair<uint64_t, uint64_t>, Cached> cache_;
};

}  // namespace spile::elf
