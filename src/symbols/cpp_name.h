// C++ names: what a mangled symbol means, and whether a script's pattern means it.
#pragma once

#include <optional>
#include <string>
#include <string_view>

namespace spile::symbols {

/// "ns::f(int)" for "_ZN2ns1fEi"; empty for what is no mangled name.
std::optional<std::string> demangle(const std::string& symbol);

/// Whether `pattern` names the function: with its parameters, without them, or without the return
/// type that templates have in front, or without any template arguments: "ns::f" names all that was
/// made of a template. Only `*` is a wildcard.
bool cpp_name_matches(std::string_view pattern, std::string_view demangled);

}  // namespace spile::symbols
