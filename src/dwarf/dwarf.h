// Debug information of one ELF file, as far as it says what a function takes.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"

namespace spile::dwarf {

struct Type {
  enum class Kind : uint8_t { kVoid, kInteger, kBool, kFloat, kPointer, kStruct, kArray, kOther };
  Kind kind = Kind::kVoid;
  uint32_t size_bytes = 0;       ///< kInteger, kBool, kFloat, kStruct
  bool is_signed = false;        ///< kInteger
  bool is_char = false;          ///< kInteger: of characters
  bool is_union = false;         ///< kStruct
  uint32_t count = 0;            ///< kArray: elements; 0: not known
  std::string name;              ///< kStruct: without "struct"; "" for an anonymous one
  uint64_t die = 0;              ///< kStruct: where it is described: structure_at()
  std::shared_ptr<Type> target;  ///< kPointer: null for void; kArray: the element
};

struct Parameter {
  std::string name;
  Type type;
  /// Which of the integer registers holds it at the function's entry (0: rdi ... 5: r9); -1: none
  /// does, `problem` says why.
  int register_index = -1;
  std::string problem;
};

struct Field {
  std::string name;  ///< "" for an anonymous member
  Type type;
  uint64_t offset_bits = 0;
  uint32_t bits = 0;  ///< of a bitfield; 0: none
};

struct Structure {
  Type type;
  std::vector<Field> fields;
};

/// Where code of a source line begins.
struct LinePlace {
  uint64_t address = 0;  ///< link address
  std::string function;  ///< that it is in, as the linker calls it; "": not known
};

/// One thread uses it. Keeps the file open.
class File {
 public:
  /// Errors: not found, denied; unsupported    there is no debug information in it
  static Result<File> open(const std::string& path);
  File(File&&) noexcept;
  File& operator=(File&&) noexcept;
  ~File();

  /// Of the function that begins at a link address. Errors: not found.
  Result<std::vector<Parameter>> parameters(uint64_t address) const;
  /// The places where a line of a source file (its name, or the end of its path) begins, one for
  /// each function that has code of it, inlined copies among them; `column` 0: any.
  ///
  /// Errors: not found    no such source file, or no code begins there; names the next line that
  /// has
  Result<std::vector<LinePlace>> line(std::string_view file, uint32_t line, uint32_t column) const;
  /// A struct, union or class that is defined somewhere in the file. Errors: not found.
  Result<Structure> structure(std::string_view name, bool is_union) const;
  /// The one that Type::die names. Errors: not found.
  Result<Structure> structure_at(uint64_t die) const;

 private:
  struct Handle;
  explicit File(std::unique_ptr<Handle> handle);
  std::unique_ptr<Handle> handle_;
};

}  // namespace spile::dwarf
