#include "elf/notes.h"

#include <elf.h>

#include "elf/reader.h"

namespace spile::elf {
namespace {

uint64_t padded(uint64_t size) {
  return (size + 3) & ~uint64_t{3};
}

Result<void> read_section(const File& file, const Section& section, std::vector<Note>& notes) {
  SPILE_TRY(const auto bytes, file.bytes(section));
  for (uint64_t at = 0; at + sizeof(Elf64_Nhdr) <= bytes.size();) {
    const auto header = *load_at<Elf64_Nhdr>(bytes, at);
    const uint64_t name = at + sizeof header, data = name + padded(header.n_namesz);
    if (data > bytes.size() || header.n_descsz > bytes.size() - data)
      return fail(ErrorCode::kCorrupt, "{}: the note at byte {:#x} of {} is damaged", file.path(),
                  at, section.name);
    const auto* owner = reinterpret_cast<const char*>(bytes.data() + name);
    notes.push_back({std::string_view(owner, header.n_namesz), header.n_type,
                     bytes.subspan(data, header.n_descsz), at});
    at = data + padded(header.n_descsz);
  }
  return {};
}

}  // namespace

Result<std::vector<Note>> read_notes(const File& file, std::string_view name) {
  std::vector<Note> notes;
  for (const Section& section : file.sections()) {
    if (section.name != name || section.type != SHT_NOTE) continue;
    SPILE_TRY_VOID(read_section(file, section, notes));
  }
  return notes;
}

}  // namespace spile::elf
