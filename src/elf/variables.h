// The variables of one ELF file by name.
#pragma once

#include <optional>
#include <string_view>
#include <unordered_map>

#include "base/address.h"
#include "base/error.h"
#include "elf/file.h"

namespace spile::elf {

struct Variable {
  LinkAddr address;
  uint64_t size_bytes = 0;  ///< 0: the table does not say
};

/// Names live as long as the File. Empty: several static variables share the name.
using Variables = std::unordered_map<std::string_view, std::optional<Variable>>;

/// All variables of .symtab and .dynsym, without versions; thread-local ones have no address and
/// are left out. A stripped file has only those that it exports. Errors: those of File::bytes.
Result<Variables> read_variables(const File& file);

}  // namespace spile::elf
