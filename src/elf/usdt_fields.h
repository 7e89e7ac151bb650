// What the arguments of static tracepoints are called: what spile's own tracepoints leave in
// .note.spile, beside their .note.stapsdt, which has places and sizes only.
//
//   owner "spile", type 1   provider, name, fields      of one tracepoint
//                  type 2   class, fields               several tracepoints share them
//                  type 3   provider, name, class       a tracepoint of a class
//
// Each a string that ends with a NUL. Fields are written as the parameters of a C function: "int
// id, const char* path".
//
// Source: include/spile/detail/site.h, which writes them.
#pragma once

#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/error.h"
#include "elf/file.h"

namespace spile::elf {

struct UsdtField {
  std::string type;  ///< "const char*", as the program spells it
  std::string name;
  bool operator==(const UsdtField&) const = default;
};

/// "int id, const char* path" -> both. Empty where one of them is no plain declaration.
std::vector<UsdtField> parse_usdt_fields(std::string_view parameters);

/// By provider and name. Left out: tracepoints that two notes describe differently.
/// Errors: corrupt  a damaged note; those of read_notes
Result<std::map<std::pair<std::string, std::string>, std::vector<UsdtField>>> read_usdt_fields(
    const File& file);

}  // namespace spile::elf
