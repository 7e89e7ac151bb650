// The kernel's functions, from the text of /proc/kallsyms.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"

namespace spile::symbols {

struct KernelFunction {
  std::string_view name;
  std::string_view module;  ///< "" for the kernel itself
  uint64_t addr = 0;        ///< 0 where the reader lacks privilege (kptr_restrict)
};

class Kallsyms {
 public:
  /// Keeps the text; symbols of the types t, T, w, W are functions. Lines that make no sense are
  /// passed over and counted.
  static Kallsyms parse(std::string text);
  /// Reads the file (at most 256 MiB). Errors: not found, denied.
  static Result<Kallsyms> load(const std::string& path = "/proc/kallsyms");

  /// In the file's order.
  const std::vector<KernelFunction>& functions() const { return functions_; }
  size_t bad_lines() const { return bad_lines_; }
  /// False: all addresses read as 0.
  bool has_addresses() const { return has_addresses_; }

  /// All of that name (static functions may share one); `module` "" is any, "vmlinux" the kernel
  /// itself.
  std::vector<const KernelFunction*> find(std::string_view name,
                                          std::string_view module = "") const;
  bool exists(std::string_view name, std::string_view module = "") const {
    return !find(name, module).empty();
  }
  /// Both may hold `*`.
  std::vector<const KernelFunction*> match(std::string_view glob,
                                           std::string_view module_glob = "") const;
  std::vector<std::string> nearest(std::string_view name, size_t at_most = 3) const;

  struct Resolved {
    const KernelFunction* function;
    uint64_t offset;
  };
  /// The last function that starts at or before `addr`. Empty without addresses.
  std::optional<Resolved> resolve(uint64_t addr) const;

 private:
  void add_line(std::string_view line);

  std::vector<char> text_;  ///< a vector: its bytes stay where they are when the object moves
  std::vector<KernelFunction> functions_;
  std::vector<uint32_t> by_name_, by_addr_;  ///< indices into functions_
  size_t bad_lines_ = 0;
  bool has_addresses_ = false;
};

}  // namespace spile::symbols
