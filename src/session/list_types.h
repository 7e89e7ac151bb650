// `spile -l 'struct X'`: types of the kernel as C declares them.
#pragma once

#include <string>
#include <string_view>

#include "base/error.h"

namespace spile::session {

/// True for "struct X", "union X" and "enum X".
bool names_a_type(std::string_view pattern);

/// The running kernel's declaration, members in lines of their own, as bpftrace prints it.
///
/// Errors:  not found   there is no such type, or it is only declared
///          and those of reading `btf_path`
Result<std::string> kernel_declaration(const std::string& btf_path, std::string_view name);

}  // namespace spile::session
