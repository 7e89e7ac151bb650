// The entries of a note section: an owner, a type, bytes.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "elf/file.h"

namespace spile::elf {

struct Note {
  std::string_view owner;  ///< with its NUL; lives as long as the File, and so does `data`
  uint32_t type = 0;
  std::span<const uint8_t> data;
  uint64_t at = 0;  ///< in the section, for messages
};

/// All entries of all sections of that name, in the file's order.
/// Errors:  corrupt      an entry leaves its section
///          unsupported  those of File::bytes
Result<std::vector<Note>> read_notes(const File& file, std::string_view section);

}  // namespace spile::elf
