#include "elf/usdt_notes.h"

#include "elf/notes.h"
#include "elf/reader.h"

namespace spile::elf {
namespace {

constexpr std::string_view kSection = ".note.stapsdt", kBaseSection = ".stapsdt.base";
constexpr std::string_view kOwner{"stapsdt", 8};  // with its NUL
constexpr uint32_t kType = 3;                     // NT_STAPSDT
constexpr size_t kMaxNotes = 1 << 16;

class NoteReader {
 public:
  explicit NoteReader(const File& file) : file_(file) {}

  Result<void> read(const Note& from, std::vector<UsdtNote>& notes) const {
    Reader reader(from.data);
    LinkAddr address(reader.value<uint64_t>());
    const auto base = reader.value<uint64_t>();
    LinkAddr semaphore(reader.value<uint64_t>());
    UsdtNote note;
    note.provider = reader.string();
    note.name = reader.string();
    note.arguments = reader.string();
    if (!reader.ok() || note.provider.empty() || note.name.empty())
      return fail(ErrorCode::kCorrupt, "{}: the note at byte {:#x} of {} is damaged", file_.path(),
                  from.at, kSection);
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

 private:
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
};

}  // namespace

Result<std::vector<UsdtNote>> read_usdt_notes(const File& file) {
  std::vector<UsdtNote> notes;
  SPILE_TRY(const auto all, read_notes(file, kSection));
  const NoteReader reader(file);
  for (const Note& note : all) {
    if (note.type == kType && note.owner == kOwner) SPILE_TRY_VOID(reader.read(note, notes));
  }
  return notes;
}

}  // namespace spile::elf
