#include "symbols/cpp_name.h"

#include <cxxabi.h>

#include <cstdlib>
#include <memory>

#include "symbols/glob.h"

namespace spile::symbols {
namespace {

/// Longer ones come from hostile files: the demangler's work grows with what they expand to.
constexpr size_t kMaxSymbolBytes = 4096;

struct Free {
  void operator()(char* text) const { std::free(text); }
};

bool opens(char c) {
  return c == '(' || c == '<' || c == '[' || c == '{';
}
bool closes(char c) {
  return c == ')' || c == '>' || c == ']' || c == '}';
}

/// Up to the parenthesis that opens the parameters: the last at the outermost level.
std::string_view without_parameters(std::string_view name) {
  const size_t end = name.rfind(')');
  if (end == std::string_view::npos) return name;
  int depth = 0;
  for (size_t i = end + 1; i-- > 0;) {
    if (closes(name[i])) depth++;
    if (opens(name[i]) && --depth == 0) return name.substr(0, i);
  }
  return name;
}

/// Behind the last blank at the outermost level: "void ns::f<int>" is ns::f<int>.
std::string_view without_return_type(std::string_view name) {
  int depth = 0;
  for (size_t i = name.size(); i-- > 0;) {
    if (closes(name[i])) depth++;
    if (opens(name[i])) depth--;
    if (name[i] == ' ' && depth == 0) return name.substr(i + 1);
  }
  return name;
}

}  // namespace

std::optional<std::string> demangle(const std::string& symbol) {
  if (!symbol.starts_with("_Z") || symbol.size() > kMaxSymbolBytes) return std::nullopt;
  int status = 0;
  const std::unique_ptr<char, Free> text(
      abi::__cxa_demangle(symbol.c_str(), nullptr, nullptr, &status));
  if (status != 0 || text == nullptr) return std::nullopt;
  return std::string(text.get());
}

bool cpp_name_matches(std::string_view pattern, std::string_view demangled) {
  if (glob_matches(pattern, demangled)) return true;
  const auto name = without_parameters(demangled);
  return glob_matches(pattern, name) || glob_matches(pattern, without_return_type(name));
}

}  // namespace spile::symbols
