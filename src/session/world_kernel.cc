// Which functions of the kernel a probe names.
#include <algorithm>
#include <set>

#include "os/process.h"
#include "session/world.h"
#include "symbols/glob.h"

namespace spile::session {

namespace {

/// Not a function: a name that kallsyms gives to padding or type hashes in front of one.
bool is_prefix_symbol(std::string_view name) {
  return name.starts_with("__pfx_") || name.starts_with("__cfi_");
}

}  // namespace

/// What ftrace can trace is what a pattern means, where the kernel tells it: the other list takes
/// longer to read and names much that cannot be probed.
std::optional<std::vector<lang::KernelFunction>> MachineWorld::traceable(std::string_view module,
                                                                         std::string_view symbol) {
  for (const auto& base : options_.tracefs) {
    const auto text = os::read_file(base + "/available_filter_functions");
    if (!text) continue;
    std::vector<lang::KernelFunction> found;
    std::set<std::pair<std::string_view, std::string_view>> seen;
    for (size_t at = 0; at < text->size();) {
      const size_t end = std::min(text->find('\n', at), text->size());
      const auto line = std::string_view(*text).substr(at, end - at);
      at = end + 1;
      const auto name = line.substr(0, line.find(' '));
      const auto open = line.find('[');
      const auto its_module = open == std::string_view::npos
                                  ? std::string_view()
                                  : line.substr(open + 1, line.rfind(']') - open - 1);
      const bool is_meant = !name.empty() && symbols::glob_matches(symbol, name) &&
                            (module.empty() || symbols::glob_matches(module, its_module) ||
                             (module == "vmlinux" && its_module.empty()));
      if (is_meant && seen.emplace(name, its_module).second)
        found.push_back({std::string(name), std::string(its_module)});
    }
    return found;
  }
  return std::nullopt;
}

/// The kernel itself judges a plain name: its list takes longer to read than a probe to attach.
Result<std::vector<lang::KernelFunction>> MachineWorld::kernel_functions(std::string_view module,
                                                                         std::string_view symbol) {
  if (!symbols::has_wildcard(symbol) && !symbols::has_wildcard(module))
    return std::vector{lang::KernelFunction{
        std::string(symbol), module == "vmlinux" ? std::string() : std::string(module)}};
  return known_kernel_functions(module, symbol);
}

Result<std::vector<lang::KernelFunction>> MachineWorld::known_kernel_functions(
    std::string_view module, std::string_view symbol) {
  auto found = traceable(module, symbol);
  if (!found) {
    SPILE_TRY(found, listed_functions(module, symbol));
  }
  if (!found->empty()) return std::move(*found);
  return fail(ErrorCode::kNotFound, "no kernel function matches {}{}", symbol,
              module.empty() ? "" : fmt::format(" in module {}", module));
}

Result<std::vector<lang::KernelFunction>> MachineWorld::listed_functions(std::string_view module,
                                                                         std::string_view symbol) {
  auto kernel = this->kernel();
  if (!kernel) return forward(kernel, "list the kernel's functions");
  std::vector<lang::KernelFunction> found;
  std::set<std::pair<std::string_view, std::string_view>> seen;
  for (const auto* f : (*kernel)->match(symbol, module)) {
    if (is_prefix_symbol(f->name)) continue;
    if (seen.emplace(f->name, f->module).second)
      found.push_back({std::string(f->name), std::string(f->module)});
  }
  return found;
}

}  // namespace spile::session
