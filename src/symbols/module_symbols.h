// The functions of one module (a program or a library), by name and by address.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/address.h"
#include "base/error.h"
#include "elf/file.h"
#include "elf/symbol.h"
#include "elf/unwind.h"

namespace spile::symbols {

struct Function {
  std::string_view name;     ///< without version; lives as long as the ModuleSymbols
  std::string_view version;  ///< "GLIBC_2.2.5" or ""
  LinkAddr addr;
  uint64_t size = 0;  ///< bytes; completed from .eh_frame or the next symbol where the file says 0
  bool size_is_guessed = false;
  elf::SymbolType type = elf::SymbolType::kFunction;
  elf::Binding binding = elf::Binding::kLocal;
  bool is_default_version = true;

  LinkAddr end() const { return addr + size; }
};

/// A name for an address.
struct Resolved {
  const Function* function;
  uint64_t offset;  ///< bytes after its start
};

struct LoadOptions {
  std::string root;          ///< "" or "/proc/PID/root": where debug files are looked for
  std::string path_in_root;  ///< the file's path there; "" is the path it was opened by
  bool use_debug_files = true;
};

class ModuleSymbols {
 public:
  /// Opens the file and reads its symbols, its debug file's (looked up only where .symtab is
  /// missing), and those of .gnu_debugdata. A module without any symbol is not an error:
  /// functions() is empty. Errors: those of elf::File::open. Cost: node (100 MB, 80,000 functions)
  /// 100 ms or less.
  static Result<ModuleSymbols> load(const std::string& path, LoadOptions options = {});
  static Result<ModuleSymbols> load(elf::File file, LoadOptions options = {});

  const elf::File& file() const { return *file_; }
  /// False: the module is stripped and only its exported functions are known.
  bool has_full_symbols() const { return has_full_symbols_; }

  /// By address, then name; aliases are separate entries.
  std::span<const Function> functions() const { return functions_; }

  /// All functions of exactly this name: static functions may share one. Of several versions the
  /// default one is meant; "memcpy@GLIBC_2.2.5" names a version, "memcpy@@GLIBC_2.14" too. Labels
  /// are found only where no function has the name.
  std::vector<const Function*> find(std::string_view name) const;
  /// All functions whose name matches; only `*` is a wildcard. By address. No labels.
  std::vector<const Function*> match(std::string_view glob) const;
  /// For "did you mean": names at most 3 edits away, nearest first.
  std::vector<std::string> nearest(std::string_view name, size_t at_most = 3) const;
  /// The innermost function that covers `addr`; of aliases the global one with the shortest name.
  std::optional<Resolved> resolve(LinkAddr addr) const;

  /// Read when first asked for.
  Result<const elf::UnwindTable*> unwind() const;
  Result<std::span<const LinkAddr>> code_pointers() const;

 private:
  ModuleSymbols() = default;
  void add(const std::vector<elf::Symbol>& symbols);
  void index();
  void complete_sizes();
  uint64_t guessed_size(LinkAddr addr, uint64_t room) const;
  void add_debug_symbols(const std::string& root, const std::string& path_in_root);
  template <typename Visit>
  void for_each_named(std::string_view name, Visit visit) const;

  // Names point into the files, so these stay where they are when the object moves.
  std::unique_ptr<elf::File> file_, debug_;
  bool has_full_symbols_ = false;
  std::vector<Function> functions_;
  std::vector<std::pair<uint32_t, uint32_t>>
      by_name_;                  ///< hash of the name, index into functions_; sorted
  std::vector<uint64_t> reach_;  ///< the largest end() of functions_[0..i]
  mutable std::unique_ptr<elf::UnwindTable> unwind_;
  mutable std::optional<std::vector<LinkAddr>> code_pointers_;
};

}  // namespace spile::symbols
