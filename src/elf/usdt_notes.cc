#include "elf/usdt_notes.h"

#include <elf.h>

#include <cstring>

#include "elf/reader.h"

namespace spile::elf {
namespace {

constexpr std::string_view kSection = ".note.stapsdt", kBaseSection = ".stapsdt.base";
constexpr std::string_view kOwner{"stapsdt", 8};  // with its NUL
constexpr uint32_t kType = 3;                     // NT_STAPSDT
constexpr size_t kMaxNotes = 1 << 16;

uint64_t padded(uint64_t size) {
  return (size + 3) & ~uint64_t{3};
}

/// Reads the notes of one section, one after the other.
class NoteReader {
 public:
  NoteReader(const File& file, const Section& section, std::span<const uint8_t> bytes)
      : file_(file), section_(section), bytes_(bytes) {}

  Result<void> read(std::vector<UsdtNote>& notes) {
    for (uint64_t at = 0; at + sizeof(Elf64_Nhdr) <= bytes_.size();) {
      const auto header = *load_at<Elf64_Nhdr>(bytes_, at);
      const uint64_t name = at + sizeof header, data = name + padded(header.n_namesz);
      if (data > bytes_.size() || header.n_descsz > bytes_.size() - data) return damaged(at);
      const bool is_probe = header.n_type == kType && header.n_namesz == kOwner.size() &&
                            std::memcmp(bytes_.data() + name, kOwner.data(), kOwner.size()) == 0;
      if (is_probe) SPILE_TRY_VOID(read_probe(at, bytes_.subspan(data, header.n_descsz), notes));
      at = data + padded(header.n_descsz);
    }
    return {};
  }

 private:
  std::unexpected<Error> damaged(uint64_t at) const {
    return fail(ErrorCode::kCorrupt, "{}: the note at byte {:#x} of {} is damaged", file_.path(),
                at, section_.name);
  }

  Result<void> read_probe(uint64_t at,
                          std::span<const uint8_t> data,
                          std::vector<UsdtNote>& notes) const {
    Reader reader(data);
    LinkAddr address(reader.value<uint64_t>());
    const auto base = reader.value<uint64_t>();
    LinkAddr semaphore(reader.value<uint64_t>());
    UsdtNote note;
    note.provider = reader.string();
    note.name = reader.string();
    note.arguments = reader.string();
    if (!reader.ok() || note.provider.empty() || note.name.empty()) return damaged(at);
    // prelink moves segments and does not know this section; the base section moves with them.
    const Section* marker = file_.section(kBaseSection);
    const uint64_t moved = marker != nullptr && base != 0 ? marker->addr.value - base : 0;
    note.address = LinkAddr(address.value + moved);
    if (address.value == 0 || !file_.is_executable(note.address) || !file_.to_offset(note.address))
      return {};
    if (semaphore.value != 0) {
      note.semaphore = LinkAddr(semaphore.value + moved);
      SPILE_TRY_VOID(check_semaphore(note));
    }
    if (notes.size() == kMaxNotes)
      return fail(ErrorCode::kUnsupported, "{}: more than {} static tracepoints", file_.path(),
                  kMaxNotes);
    notes.push_back(note);
    return {};
  }

  /// Tracers write there: it must be two bytes of data that the program itself could write.
  Result<void> check_semaphore(const UsdtNote& note) const {
    const Segment* segment = file_.segment_at(note.semaphore);
    if (segment != nullptr && segment->writable && !segment->executable &&
        segment->contains(note.semaphore + 1) && note.semaphore.value % 2 == 0)
      return {};
    return fail(ErrorCode::kCorrupt,
                "{}: the semaphore of usdt {}:{} at {} is not in writable data", file_.path(),
                note.provider, note.name, note.semaphore);
  }

  const File& file_;
  const Section& section_;
  std::span<const uint8_t> bytes_;
};

}  // namespace

Result<std::vector<UsdtNote>> read_usdt_notes(const File& file) {
  std::vector<UsdtNote> notes;
  for (const Section& section : file.sections()) {
    if (section.name != kSection || section.type != SHT_NOTE) continue;
    SPILE_TRY(const auto bytes, file.bytes(section));
    SPILE_TRY_VOID(NoteReader(file, section, bytes).read(notes));
  }
  return notes;
}

}  // namespace spile::elf
