// The words of a file that the dynamic loader fills with addresses of functions: GOT entries.
#pragma once

#include <string_view>
#include <vector>

#include "base/address.h"
#include "base/error.h"
#include "elf/file.h"

namespace spile::elf {

/// One word. Its contents in a process say which function a name, or an IFUNC's resolver, stands
/// for.
struct BoundSlot {
  LinkAddr slot;
  std::string_view symbol;  ///< JUMP_SLOT, GLOB_DAT, 64: as .dynsym has it, without a version
  LinkAddr resolver;        ///< IRELATIVE: the function whose result is written there
};

/// Those of the dynamic table, or of the sections where there is none (static programs). A damaged
/// symbol leaves its slot out. Errors: corrupt, a relocation table that is truncated.
Result<std::vector<BoundSlot>> read_bound_slots(const File& file);

}  // namespace spile::elf
