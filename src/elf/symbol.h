// The function symbols of one ELF file.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "base/address.h"
#include "base/error.h"
#include "elf/file.h"

namespace spile::elf {

enum class SymbolType : uint8_t {
  kFunction,  ///< STT_FUNC
  kIfunc,     ///< STT_GNU_IFUNC: the address is the resolver's, not the function's
  kLabel,     ///< STT_NOTYPE, global or weak, in executable memory: assembly without .type
};

enum class Binding : uint8_t { kLocal, kWeak, kGlobal };

struct Symbol {
  std::string_view name;     ///< without version; lives as long as the File
  std::string_view version;  ///< "GLIBC_2.2.5"; "" where none
  LinkAddr addr;
  uint64_t size = 0;  ///< bytes; 0: the file does not say
  SymbolType type = SymbolType::kFunction;
  Binding binding = Binding::kLocal;
  /// fopen@@V, or no version at all: what a program linked today gets. False: fopen@V, kept for old
  /// programs.
  bool is_default_version = true;
};

/// The defined function symbols of .symtab, then those of .dynsym (found by PT_DYNAMIC where there
/// are no section headers), in the file's order; aliases are kept, entries of both tables come
/// twice. For a debug file give the program as `loaded`: symbols are kept where *its* segments are
/// executable. Errors: corrupt (a table or name outside its section), unsupported (more than 16
/// million symbols).
Result<std::vector<Symbol>> read_symbols(const File& file, const File& loaded);
inline Result<std::vector<Symbol>> read_symbols(const File& file) {
  return read_symbols(file, file);
}

}  // namespace spile::elf
