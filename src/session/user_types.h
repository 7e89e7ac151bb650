// Debug information of a file as the language sees it: what functions take, structs.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "dwarf/dwarf.h"
#include "lang/sema/structure.h"
#include "lang/sema/world.h"

namespace spile::session {

class UserTypes {
 public:
  /// `file` holds the debug information; `owner` is the file that scripts name. Errors: those of
  /// dwarf::File::open.
  static Result<UserTypes> load(const std::string& file, std::string owner);

  /// Of the function at a link address. Errors: not found.
  Result<std::vector<lang::UserParameter>> parameters(uint64_t address) const;
  /// As dwarf::File::line.
  Result<std::vector<dwarf::LinePlace>> line(std::string_view source,
                                             uint32_t line,
                                             uint32_t column) const {
    return file_.line(source, line, column);
  }
  /// "struct pair", "union u", "struct <1234>" (where it is described). Errors: not found.
  Result<lang::Structure> structure(std::string_view name) const;

 private:
  UserTypes(dwarf::File file, std::string owner)
      : file_(std::move(file)), owner_(std::move(owner)) {}
  lang::Type type_of(const dwarf::Type& type) const;
  lang::StructField field_of(const dwarf::Field& field) const;
  std::string name_of(const dwarf::Type& structure) const;

  dwarf::File file_;
  std::string owner_;
};

}  // namespace spile::session
