#include "symbols/cpp_name.h"

#include <cxxabi.h>

#include <algorithm>
#include <cctype>
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

bool is_word(char c) {
  return std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '_';
}

constexpr std::string_view kOperator = "operator";

bool is_operator_at(std::string_view name, size_t at) {
  const size_t end = at + kOperator.size();
  return name.substr(at).starts_with(kOperator) && (at == 0 || !is_word(name[at - 1])) &&
         (end == name.size() || !is_word(name[end]));
}

/// `operator` and its symbol, where that has brackets which open and close nothing: how many bytes
/// of it are at `at`; 0: none.
size_t bytes_of_operator(std::string_view name, size_t at) {
  if (!is_operator_at(name, at)) return 0;
  for (std::string_view symbol :
       {"<=>", "<<=", ">>=", "->*", "<<", ">>", "<=", ">=", "->", "<", ">"}) {
    if (name.substr(at + kOperator.size()).starts_with(symbol))
      return kOperator.size() + symbol.size();
  }
  return 0;
}

/// Behind the last blank at the outermost level: "void ns::f<int>" is ns::f<int>. Blanks behind
/// `operator` are the function's own.
std::string_view without_return_type(std::string_view name) {
  int depth = 0;
  size_t start = 0;
  for (size_t i = 0; i < name.size() && !(depth == 0 && is_operator_at(name, i)); i++) {
    i += bytes_of_operator(name, i);
    if (i >= name.size()) break;
    if (opens(name[i])) depth++;
    if (closes(name[i])) depth--;
    if (name[i] == ' ' && depth == 0) start = i + 1;
  }
  return name.substr(start);
}

/// "ns::f" of "ns::f<int>", "C::get" of "C<std::string>::get".
std::string without_template_arguments(std::string_view name) {
  std::string kept;
  int depth = 0;
  for (size_t i = 0; i < name.size();) {
    const size_t own = bytes_of_operator(name, i);
    const size_t end = i + std::max<size_t>(own, 1);
    if (own == 0 && name[i] == '<') {
      if (depth++ == 0 && kept.ends_with(' ')) kept.pop_back();  // "operator< <int>"
    } else if (own == 0 && name[i] == '>') {
      depth--;
    } else if (depth == 0) {
      kept += name.substr(i, end - i);
    }
    i = end;
  }
  return kept;
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
  // A part of a function that is jumped to: no call begins there.
  if (demangled.contains(" [clone .cold") && !pattern.contains("[clone")) return false;
  if (glob_matches(pattern, demangled)) return true;
  const auto name = without_parameters(demangled);
  const auto function = without_return_type(name);
  if (glob_matches(pattern, name) || glob_matches(pattern, function)) return true;
  return function.find('<') != std::string_view::npos &&
         glob_matches(pattern, without_template_arguments(function));
}

}  // namespace spile::symbols
