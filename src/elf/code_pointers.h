// Every place in code whose address the file keeps as data: jump tables of absolute addresses,
// vtables, function pointers, computed gotos. A patch must not have one of them inside its window.
#pragma once

#include <vector>

#include "base/address.h"
#include "base/error.h"
#include "elf/file.h"

namespace spile::elf {

/// Link addresses in executable segments, sorted and unique, from
///   - the entry point, DT_INIT and DT_FINI;
///   - relocations: R_X86_64_RELATIVE, IRELATIVE, 64, GLOB_DAT, JUMP_SLOT, COPY's symbols, and
///   RELR;
///   - files with fixed addresses: every 8 bytes of data, at steps of 4, whose value lies in code
///   (a superset).
/// Not from tables of 32-bit distances: those only make sense with the code that reads them.
/// Cost: reads the data segments (node, 100 MB: about 50 ms). Errors: corrupt.
Result<std::vector<LinkAddr>> read_code_pointers(const File& file);

}  // namespace spile::elf
