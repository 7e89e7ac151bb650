// The file of a module whose file cannot be opened, made of what the process has mapped of it.
//
// A package upgrade removes or replaces files that processes go on running. Their bytes are still
// behind /proc/PID/map_files, which takes a privilege; without it there is only the process's
// memory. There the loaded segments lie as the loader left them: program headers, dynamic symbols
// and unwind tables are among them. Three things differ from the file and are put right or left
// out:
//
//   the dynamic table   glibc adds the load bias to its addresses where it may write: taken off
//   again sections            never loaded: the image has none. Symbols come from DT_SYMTAB, unwind
//   rows from
//                       PT_GNU_EH_FRAME
//   relocated data      stays as it is: nobody takes addresses from it, relocations carry addends
//
// Inside the module.
#pragma once

#include "base/error.h"
#include "base/fd.h"
#include "os/memory.h"
#include "user_engine/target/process.h"

namespace spile::target {

/// A memory file of ours that reads like the module's file. Pages that cannot be read are zero.
/// Errors:  not found     a segment of code cannot be read
///          unsupported   more than 2 GiB; a Go program (without its sections nothing tells which
///                        functions check their stack)
///          those of making the file
Result<Fd> make_memory_image(const os::ProcessMemory& memory, const Module& module);

}  // namespace spile::target
