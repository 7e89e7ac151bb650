// What structs, unions and enums are made of, wherever that is known from.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "lang/sema/type.h"

namespace spile::lang {

struct StructField {
  std::string name;  ///< "" for an anonymous struct or union, whose fields are found through it
  Type type;         ///< `char x[N]` is a string of N bytes
  uint32_t offset_bytes = 0;  ///< of a bitfield: of the unit of type.size bytes that holds it
  uint32_t shift = 0;         ///< of a bitfield: its lowest bit in that unit
  uint32_t bits = 0;          ///< of a bitfield; 0: not one
};

/// A struct or union.
struct Structure {
  std::string name;  ///< "struct sock", "union x"
  uint32_t size_bytes = 0;
  std::vector<StructField> fields;
};

}  // namespace spile::lang
