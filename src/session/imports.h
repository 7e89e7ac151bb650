// A script -> the script with all files that it imports, as one source.
//
// `import "x.bt"` names a file or a folder beside the importing file, read once however often it is
// named, and before what imports it: its probes run first, and its macros are known. Modules of
// bpftrace's standard library need no file (lang/sema/catalog.h).
#pragma once

#include "lang/syntax/diagnostic.h"
#include "lang/syntax/source.h"
#include "session/request.h"

namespace spile::session {

/// Part 0 is the script itself. What cannot be imported is reported at its `import`: no such file,
/// a C program, a file or folder that everybody may write.
lang::Source with_imports(const Script& script, lang::Diagnostics& diagnostics);

}  // namespace spile::session
