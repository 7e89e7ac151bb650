// The static tracepoints (USDT) of one ELF file: what <sys/sdt.h> and its kin leave in
// .note.stapsdt.
//
// A note names a provider and a probe, the address of a nop, a 16-bit counter (the *semaphore*: the
// program prepares costly arguments only while it is not zero) and, as text of the assembler, where
// each argument is when the nop is reached. A probe that the compiler has inlined or unrolled has
// several notes, each with other places of its arguments.
//
// Source: the file <sys/sdt.h> of SystemTap; "UserSpaceProbeImplementation" of its wiki.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "base/address.h"
#include "base/error.h"
#include "elf/file.h"

namespace spile::elf {

/// One place of a static tracepoint.
struct UsdtNote {
  std::string_view provider, name;  ///< live as long as the File, and so does `arguments`
  std::string_view arguments;       ///< "-4@%edi 8@-8(%rbp)"; "" where it has none
  LinkAddr address;                 ///< of the nop
  LinkAddr semaphore;               ///< of its counter; 0: it has none
};

/// All notes, in the file's order. Addresses of prelinked files are corrected by .stapsdt.base.
/// Notes of code that the linker has thrown away (no code at their address) are left out.
/// Errors:  corrupt      a note leaves its section, or its counter is no writable data
///          unsupported  more than 65,536 notes; those of File::bytes
Result<std::vector<UsdtNote>> read_usdt_notes(const File& file);

}  // namespace spile::elf
